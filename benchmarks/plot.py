"""Draws the seconds of several programs as bars, the least time as a mark inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

_INCHES_PER_BAR, _WIDTH_INCHES = 0.4, 9
_OURS, _PEER = "#3b7ea1", "#b0b0b0"

Row = tuple[str, float, float]  # name, median and least seconds


def draw(path: Path, title: str, tables: Mapping[str, Sequence[Row]], peer: str) -> None:
    """Writes a PNG with a chart for each table.

    Args:
        path: the file.
        title: machine, versions and date.
        tables: rows by the name of what was measured.
        peer: the bars whose name begins with it are grey.
    """
    heights = [1 + len(rows) for rows in tables.values()]
    size = _WIDTH_INCHES, 1 + _INCHES_PER_BAR * sum(heights)
    figure, charts = pyplot.subplots(len(tables), 1, figsize=size, height_ratios=heights, squeeze=False)
    for chart, (name, rows) in zip(charts[:, 0], tables.items(), strict=True):
        names, medians, least = zip(*rows, strict=True)
        bars = chart.barh(names, medians, color=[_PEER if row.startswith(peer) else _OURS for row in names])
        chart.bar_label(bars, [f"{median:.1f} s" for median in medians], padding=3)
        chart.plot(least, names, "|", color="black", markersize=12)
        chart.invert_yaxis()
        chart.set_title(name, loc="left")
        chart.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
