"""Trains the demo's weights on drawn clips, on the CPU: python -m training"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from training.run import Run
from training.stages import STAGES


def main() -> None:
    """Does all stages whose results are not there yet, or one that is named, again."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where results are kept")
    parser.add_argument("--stage", choices=STAGES, help="do only this one, and again if it has been done")
    parser.add_argument("--share", type=float, default=1.0, help="share of all clips and steps, e.g. 0.1 for a try")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = Run(options.folder, options.seed, options.share, partial(print, flush=True))
    for name, stage in STAGES.items():
        if options.stage in (None, name) and not (options.stage is None and run.has(name)):
            run.report(f"-- {name}")
            stage(run)


if __name__ == "__main__":
    main()
