"""Runs side by side on one folder while exports replace it again and again: each ends with the old or with the new.

    python tests/soak/replaced.py [VERSION_FOLDER VERSION_FOLDER] [--runs 80] [--side-by-side 8]

The two exports differ in their random weights. The video of a run must have the bytes, its record included, of a run
on one of them alone; or the run ends with exit code 2 and one sentence that says that the folder was replaced.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from samples.shared import FOLDER as SHARED
from samples.tiny import export, sources_of
from soak.ways import MADE_S, RUN, Circumstances, started

from ltx_export.random_weights import write_random_weights
from ltx_export.weights.staging import staged
from ltx_runtime.errors import USER_ERROR
from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.spec.versions import VERSIONS

DEMO = VERSIONS["demo"]
SMALL = ("A red fox", "--seed", "7", "--height", "64", "--width", "96", "--num-frames", "9", "--backend", "cpu")


def exports(folder: Path, count: int = 2) -> list[Path]:
    """Exports the demo with different random weights; returns the version folders."""
    made = []
    os.environ.setdefault(SHARED, str(folder))
    for seed in range(count):
        weights, target = folder / f"weights{seed}", folder / f"export{seed}" / "demo"
        write_random_weights(DEMO, weights, seed=seed)
        export(DEMO, sources_of(DEMO, weights), target)
        made.append(target)
    return made


def replace_with(source: Path, target: Path) -> None:
    """Replaces a version folder by a copy of another one, as an export does."""
    with staged(target) as staging:
        for path in sorted(source.iterdir(), key=lambda path: path.name == MANIFEST):  # which is written last
            if path.is_file() and not path.name.startswith("."):
                shutil.copy2(path, staging / path.name)


def run(engines: Path, folder: Path, number: int) -> tuple[int, str, bytes]:
    """Makes a video of a folder that may be replaced; returns the exit code, the last line and the bytes."""
    output = folder / f"video{number}.mp4"
    typed = [*SMALL, "--engines", str(engines), "--output", str(output)]
    process = started(RUN, typed, Circumstances(), folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, told = process.communicate(timeout=MADE_S)
    saved = output.read_bytes() if output.exists() else b""
    output.unlink(missing_ok=True)
    return process.returncode, told.decode().splitlines()[-1], saved


@contextmanager
def replacing(sources: Sequence[Path], target: Path, pause_s: float) -> Iterator[list[int]]:
    """Replaces a folder by one after another inside the block; yields the list to which each is added."""
    ended, done = threading.Event(), []

    def replace() -> None:
        while not ended.wait(pause_s):
            replace_with(sources[len(done) % len(sources)], target)
            done.append(len(done))

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()


def soaked(
    sources: Sequence[Path], folder: Path, runs: int, side_by_side: int, pause_s: float = 0.05
) -> tuple[Counter[str], int]:
    """Returns how the runs have ended, and how often the folder was replaced.

    Args:
        sources: version folders that take each other's place.
        folder: where everything is written.
        runs: number of runs.
        side_by_side: how many of them there are at a time.
        pause_s: time between two replacements.
    """
    target, outcomes = folder / "engines" / "demo", Counter[str]()
    references = {run(source, folder, index)[2]: f"video {index}" for index, source in enumerate(sources)}
    assert len(references) == len(sources) and b"" not in references
    replace_with(sources[0], target)
    with replacing(sources, target, pause_s) as done, ThreadPoolExecutor(side_by_side) as threads:
        for code, line, saved in threads.map(lambda number: run(target, folder, number), range(runs)):
            if code == USER_ERROR:
                assert line.startswith("error: ") and "replaced" in line and not saved, line
                outcomes[line.replace(str(target), "FOLDER")] += 1
            else:
                assert code == 0, line
                assert saved in references, "a video of neither export"
                outcomes[references[saved]] += 1
    left = sorted(path.name for path in target.parent.iterdir() if path != target)
    assert not [name for name in left if name.endswith((".partial", ".new"))], left
    assert {*references.values()} <= outcomes.keys(), f"not every export has made a video: {dict(outcomes)}"
    return outcomes, len(done)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints how the runs have ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="*", help="version folders; by default, two are exported")
    parser.add_argument("--runs", type=int, default=80)
    parser.add_argument("--side-by-side", type=int, default=8)
    typed = parser.parse_args(arguments)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sources = [path.absolute() for path in typed.sources] or exports(Path(folder))
        outcomes, replaced = soaked(sources, Path(folder), typed.runs, typed.side_by_side)
    took_s = time.perf_counter() - began
    sys.stdout.write(f"{typed.runs} runs, {replaced} replacements, {took_s:.0f} s: {dict(outcomes)}\n")


if __name__ == "__main__":
    main()
