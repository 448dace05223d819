"""Draws how the losses of all stages fell: python -m benchmarks.demo.curves [--run build/demo] [--output FILE]

Needs matplotlib (`pip install --group bench`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

STAGES = ("encoder", "decoder", "stills", "motion", "rest", "upsampler")


def main() -> None:
    """Writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else "")
    parser.add_argument("--run", type=Path, default=Path("build/demo"))
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/demo-training.png"))
    options = parser.parse_args()
    figure, charts = pyplot.subplots(2, 3, figsize=(9, 4.5))
    for chart, stage in zip(charts.flat, STAGES, strict=True):
        rows = json.loads((options.run / f"{stage}.json").read_text())
        chart.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="#3b7ea1")
        chart.set_yscale("log")
        chart.set_title(stage, loc="left")
        chart.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("loss", fontsize=9)
    figure.tight_layout()
    figure.savefig(options.output, dpi=100)


if __name__ == "__main__":
    main()
