"""Formats a result of benchmarks/gpu.py as markdown for docs/benchmarks/gpu.md, with the goals it reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gpu_arithmetic import goals_of
from gpu_measure import COMPILED, EAGER

Result = Mapping[str, Any]
_COLUMNS = (
    "size",
    "what",
    "median (least to most, rounds)",
    "to eager",
    "share of peak",
    "GPU memory",
    "relative L2 to eager",
    "first run",
)
_TITLES = {"transformer": "Transformer step, batch 1", "vae_decoder": "Decode"}


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares the goals with our fastest backend at every size.

    Steps are compared with compiled diffusers, decodes with the faster of eager and compiled diffusers.
    """
    speedups, shares, decodes = [], [], []
    for component, size in dict.fromkeys((row["component"], row["size"]) for row in rows):
        here = {row["name"]: row for row in rows if (row["component"], row["size"]) == (component, size)}
        ours = [row for name, row in here.items() if name not in (EAGER, COMPILED)]
        if not ours:
            continue
        best = min(ours, key=lambda row: row["median_s"])
        if component == "transformer":
            shares += [best["share_of_peak"]] if best["share_of_peak"] is not None else []
            speedups += [here[COMPILED]["median_s"] / best["median_s"]] if COMPILED in here else []
        else:
            theirs = min((row["median_s"] for name, row in here.items() if name in (EAGER, COMPILED)), default=None)
            decodes += [best["median_s"] / theirs] if theirs else []
    return [asdict(goal) for goal in goals_of(speedups, shares, decodes)]


def markdown(result: Result) -> str:
    """Returns the result as markdown for the documentation."""
    return "\n".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    machine = result["machine"]
    yield f"### {machine['device']}, {result['version']}, {result['date']}"
    yield ""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value)
    yield f"`{result['command']}`; {versions}"
    yield ""
    peak = result["peak"]
    if peak:
        yield f"Peak of matrix products ({peak['dtype']}): {peak['flops_per_s'] / 1e12:.1f} TFLOP/s."
    for component, title in _TITLES.items():
        rows = [row for row in result["rows"] if row["component"] == component]
        if rows:
            yield from ("", f"**{title}**", "", *_table(rows))
    if result["copies"]:
        yield from ("", "**Copies between host and device**", "", *_copies(result["copies"]))
    if result["fp32"]:
        yield from ("", "**Relative L2 to diffusers in float32**", "", *_numbers(result["fp32"]))
    yield ""
    yield from (f"- {_goal(goal)}" for goal in result["goals"])
    yield from (f"- {finding}" for finding in result["findings"])
    yield from (
        f'- section "{one["name"]}" failed after {one["seconds"]:.0f} s: {one["problem"]}'
        for one in result["sections"]
        if one["problem"]
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"| {' | '.join(_COLUMNS)} |"
    yield f"|{'---|' * len(_COLUMNS)}"
    eager = {row["size"]: row["median_s"] for row in rows if row["name"] == EAGER}
    for row in rows:
        spread = f"{_ms(row['least_s'])} to {_ms(row['most_s'])}, {row['rounds']}"
        ratio = f"{row['median_s'] / eager[row['size']]:.2f}" if row["size"] in eager else ""
        share = row.get("share_of_peak")
        cells = (
            row["size"],
            row["name"],
            f"{_ms(row['median_s'])} ms ({spread})",
            ratio,
            "" if share is None else f"{share:.0%}",
            "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e9:.2f} GB",
            "" if row["relative_l2"] is None else f"{row['relative_l2']:.1e}",
            f"{row['first_s']:.1f} s",
        )
        yield f"| {' | '.join(cells)} |"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _copies(copies: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    names = list(next(iter(copies.values())))
    yield f"| size | {' | '.join(name.removesuffix('_s').replace('_', ' ') for name in names)} |"
    yield f"|---|{'---|' * len(names)}"
    for size, taken in copies.items():
        yield f"| {size} | {' | '.join(f'{_ms(taken[name])} ms' for name in names)} |"


def _numbers(numbers: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield "| component | what | relative L2 |"
    yield "|---|---|---|"
    for component, distances in numbers.items():
        for name, value in distances.items():
            yield f"| {component} | {name} | {value:.1e} |"


def _goal(goal: Mapping[str, Any]) -> str:
    if goal["measured"] is None:
        return f"Goal: {goal['says']}: not measured."
    return f"Goal: {goal['says']}: {goal['measured']:.2f}, {'reached' if goal['reached'] else 'missed'}."
