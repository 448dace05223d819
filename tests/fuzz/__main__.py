"""Fuzzes readers of files, guided by the coverage of their Python code; each in a process of its own.

    pip install atheris
    PYTHONPATH=tests python -m fuzz [--seconds 600] [--inputs 1000000] [READER ...]

By default, every reader of `fuzz.readers.READERS` is fuzzed, one after another, until the time is over or the number of
inputs is reached. A reader fails at the first input for which it raises anything but an LtxError of one line that names
the file, crashes, takes longer than a minute, or takes 1 GB more than an idle process. That input is kept, and named.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST_MEMORY_MB, MOST_S = 1000, 60  # of memory beyond an idle process, and of seconds for one input
INSTRUMENTED = ("ltx_runtime", "ltx_export", "PIL")
_DONE = re.compile(r"^#(\d+)\s+DONE", re.MULTILINE)


def fuzz(name: str, seconds: int, inputs: int, kept: Path) -> None:
    """Fuzzes a reader in this process, and ends it."""
    import atheris

    with atheris.instrument_imports(include=[*INSTRUMENTED]):
        from PIL import Image

        Image.init()
        from fuzz.reader import attempt
        from fuzz.readers import READERS
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path, corpus = Path(folder, f"fuzzed{reader.suffix}"), Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(reader.seeds()):
            (corpus / str(number)).write_bytes(seed)
            attempt(reader, seed, path)  # loads libraries, so that they count as idle
        idle_mb = resident_mb()
        limits = [f"-rss_limit_mb={idle_mb + MOST_MEMORY_MB}", f"-timeout={MOST_S}"]
        limits += [f"-max_total_time={seconds}", f"-runs={inputs}"]
        shown = [f"-artifact_prefix={kept}/{name}-", "-verbosity=1", "-print_final_stats=0"]
        atheris.Setup([sys.argv[0], *limits, *shown, str(corpus)], lambda data: attempt(reader, data, path))
        atheris.Fuzz()


def resident_mb() -> int:
    """Returns the memory that this process has now."""
    import psutil

    return int(psutil.Process().memory_info().rss >> 20)


def main() -> int:
    """Fuzzes the readers that were named, and prints a line for each. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER")
    parser.add_argument("--seconds", type=int, default=600, help="most time for each reader")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="most inputs for each reader")
    parser.add_argument("--kept", type=Path, default=Path("build/fuzz"), help="folder for inputs that failed")
    parser.add_argument("--here", action="store_true", help="fuzz the one reader in this process")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: pip install atheris, or make fuzz")
    options.kept.mkdir(parents=True, exist_ok=True)
    if options.here:
        fuzz(options.readers[0], options.seconds, options.inputs, options.kept)
        return 0
    from fuzz.readers import READERS

    unknown = [name for name in options.readers if name not in READERS]
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(READERS)}")
    failed = [name for name in options.readers or READERS if not fuzzed(name, options)]
    return len(failed) > 0


def fuzzed(name: str, options: argparse.Namespace) -> bool:
    """Fuzzes a reader in a new process, prints how far it came, and returns whether nothing failed."""
    command = [sys.executable, "-m", "fuzz", name, "--here", "--kept", str(options.kept)]
    command += ["--seconds", str(options.seconds), "--inputs", str(options.inputs)]
    log, begin = options.kept / f"{name}.log", time.monotonic()
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=file, env=os.environ).returncode
    done = _DONE.search(log.read_text(errors="replace"))
    count = f"{int(done[1]):,} inputs" if done else f"FAILED, see {log}"
    sys.stdout.write(f"{name}: {count} in {time.monotonic() - begin:.0f} s\n")
    sys.stdout.flush()
    return code == 0 and done is not None


if __name__ == "__main__":
    sys.exit(main())
