"""Shows progress bars on standard error, with the time per unit and the remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


@contextmanager
def bars(name: str, units: int) -> Iterator[Callable[[int], None]]:
    """Shows a stage as a progress bar; implements ltx_runtime.progress.Progress."""
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(compact=True),
    )
    last = time.perf_counter()
    with Bars(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(name, total=units, pace="")

        def advance(done: int) -> None:
            nonlocal last
            now = time.perf_counter()
            shown.update(task, advance=done, pace=f"{(now - last) / max(done, 1):.2f} s each")
            last = now

        yield advance
