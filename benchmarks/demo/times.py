"""Times two whole processes with the demo, start included: ltx-run, and one that ends at its first preview.

python -m benchmarks.demo.times [--engines engines/demo] [--runs 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

PROMPT = "A red fox runs through deep snow"
FIRST_PREVIEW = """
import sys
from pathlib import Path
from PIL import Image
from ltx_runtime import Pipeline

engines, prompt, threads, output = sys.argv[1:]
with Pipeline(engines, threads=int(threads)) as pipe:
    step = next(pipe(prompt, seed=1).steps())
    Image.fromarray(step.preview()[0]).save(Path(output) / "preview.png")
"""


def main() -> None:
    """Prints the least and the median of both in seconds; they take turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--engines", type=Path, default=Path("engines/demo"))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--engines", str(options.engines), "--prompt", PROMPT, "--seed", "1", "--overwrite"]
        output = ["--threads", str(options.threads), "--output", f"{folder}/video.mp4"]
        programs = {
            "ltx-run, 256x384, 25 frames": [Path(sys.executable).with_name("ltx-run"), *shared, *output],
            "until the first preview": [
                *(sys.executable, "-c", FIRST_PREVIEW),
                *(str(options.engines), PROMPT, str(options.threads), folder),
            ],
        }
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(options.runs):
            for name, command in programs.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times[name].append(time.perf_counter() - started)
    for name, seconds in times.items():
        print(f"{name}: least {min(seconds):.2f} s, median {median(seconds):.2f} s of {len(seconds)} runs")


if __name__ == "__main__":
    main()
