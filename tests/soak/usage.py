"""What a process holds: memory, threads, descriptors and temporary files; and whether that grows. Linux only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

# Growth from the second fifth of a run to its last one that is taken for noise: so much for each video, and in any
# case so much. The latents of the smallest video have 6 kB, its frames 166 kB, and each of the demo's networks 3 MB.
MOST_GROWTH_KB, SPREAD_MB = 5.0, 2.0


@dataclass(frozen=True)
class Usage:
    """What a process holds at one moment.

    Attributes:
        resident_mb: resident memory, with pages of mapped files.
        private_mb: memory that no other process shares.
        threads: number of threads.
        descriptors: number of open descriptors.
        files: number of files and folders below the places that are watched.
    """

    resident_mb: float
    private_mb: float
    threads: int
    descriptors: int
    files: int


def usage_of(process: int | str = "self", places: Sequence[Path] = ()) -> Usage:
    """Returns what a process holds, by its number, and how many files are left in some places."""
    root = Path("/proc") / str(process)
    memory = {
        name: int(size) / 1e3
        for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", (root / "smaps_rollup").read_text(), re.MULTILINE)
    }
    return Usage(
        memory["Rss"],
        memory["Private_Clean"] + memory["Private_Dirty"],
        sum(1 for _ in (root / "task").iterdir()),
        sum(1 for _ in (root / "fd").iterdir()),
        sum(1 for place in places for _ in place.rglob("*")),
    )


def table_of(usages: Sequence[tuple[int, Usage]]) -> str:
    """Returns a row for every moment, as a table in Markdown."""
    lines = ["| after | RSS, MB | private, MB | threads | descriptors | files |", "|---|---|---|---|---|---|"]
    for count, usage in usages:
        rounded = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in asdict(usage).values()]
        lines.append(f"| {' | '.join((str(count), *rounded))} |")
    return "\n".join(lines)


def growth_of(usages: Sequence[tuple[int, Usage]]) -> dict[str, float]:
    """Returns how much each figure has grown: median of the last fifth of the moments less that of the second fifth."""
    fifth = max(1, len(usages) // 5)
    early, late = usages[fifth : 2 * fifth], usages[-fifth:]
    names = asdict(usages[0][1])
    return {
        name: median(getattr(usage, name) for _, usage in late) - median(getattr(usage, name) for _, usage in early)
        for name in names
    }


def grown(usages: Sequence[tuple[int, Usage]]) -> list[str]:
    """Returns what has grown by more than noise: a name and the growth of each."""
    growth, fifth = growth_of(usages), max(1, len(usages) // 5)
    count = usages[-1][0] - usages[fifth][0]
    most_mb = SPREAD_MB + MOST_GROWTH_KB * count / 1e3
    limits = {"resident_mb": most_mb, "private_mb": most_mb}
    return [f"{name} by {by:g}" for name, by in growth.items() if by > limits.get(name, 0)]
