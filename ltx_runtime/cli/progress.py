"""Shows on standard error how far a command is: a bar for each stage, and one for all stages together."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from ltx_runtime.cli.streams import tell
from ltx_runtime.files import amount
from ltx_runtime.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

_SPEED_PERIOD_S = 3600.0  # steps may take minutes, and the remaining time is estimated from several


@contextmanager
def display(work: Mapping[str, float] | None = None, *, in_bytes: bool = False) -> Iterator[Progress]:
    """Shows stages as bars that move even while a unit is under way; where that is no terminal, a line for each stage.

    Args:
        work: an estimate of each stage's work by its name, for the bar of the total; without it there is none.
        in_bytes: whether units are bytes; the bars are then removed at the end, and not replaced by lines.
    """
    if not sys.stderr.isatty():
        yield silent if in_bytes else _line
        return
    with _bars(transient=in_bytes) as bars:
        yield _stages(bars, work or {}, in_bytes)


@contextmanager
def display_many(count: int, work: float) -> Iterator[Callable[[float], AbstractContextManager[Progress]]]:
    """Shows how far many videos are: a bar for all of them with the time left, and one for each stage under way.

    Args:
        count: number of videos.
        work: an estimate of their work.

    Yields:
        A function that opens the display of one video, given its work; where that is no terminal, it prints a line
        with the time left when the video is made.
    """
    started, made, worked = time.perf_counter(), 0, 0.0

    def advance(done: float) -> str:
        nonlocal made, worked
        made, worked = made + 1, worked + done
        left_s = (time.perf_counter() - started) * max(work - worked, 0.0) / worked if worked else 0.0
        return f"{made} of {count} videos" + (f", about {duration(left_s)} left" if made < count else "")

    @contextmanager
    def lines(done: float) -> Iterator[Progress]:
        yield silent
        tell(advance(done))

    if not sys.stderr.isatty():
        yield lines
        return
    with _bars(transient=True) as bars:
        total = bars.add_task("videos", total=work, count=f"0/{count}", pace="")

        @contextmanager
        def stages(done: float) -> Iterator[Progress]:
            before = set(bars.task_ids)
            try:
                yield _stages(bars, {}, in_bytes=False)
            finally:
                for task in set(bars.task_ids) - before:
                    bars.remove_task(task)
                advance(done)
                bars.update(total, advance=done, count=f"{made}/{count}")

        yield stages


def duration(seconds: float) -> str:
    """Formats a time for people: in seconds, in minutes from 2 minutes on, in hours and minutes from 2 hours on."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _bars(*, transient: bool) -> Bars:
    """Returns bars on standard error; the library that draws them is imported only if there is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    # Lines that are printed meanwhile go above the bars, but stay on standard output if that is a file.
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description:10}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=transient,
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=_SPEED_PERIOD_S,
    )


def _stages(bars: Bars, work: Mapping[str, float], in_bytes: bool) -> Progress:
    whole = sum(work.values())
    total = bars.add_task("total", total=whole, count="0 %", pace="") if len(work) > 1 else None
    worked = 0.0

    @contextmanager
    def stage(name: str, units: int) -> Iterator[Callable[[int], None]]:
        task = bars.add_task(name, total=units, count="", pace="")
        share, finished, last = work.get(name, 0.0) / max(units, 1), 0, time.perf_counter()

        def advance(done: int) -> None:
            nonlocal finished, last, worked
            now, before, finished = time.perf_counter(), last, finished + done
            last = now
            count = f"{amount(finished)} of {amount(units)}" if in_bytes else f"{finished}/{units}"
            pace = "" if in_bytes else f"{(now - before) / max(done, 1):.2f} s each"
            bars.update(task, advance=done, count=count, pace=pace)
            if total is not None:
                worked += share * done
                bars.update(total, completed=worked, count=f"{100 * worked / whole:.0f} %")

        try:
            yield advance
        finally:
            bars.stop_task(task)
            if in_bytes:
                bars.remove_task(task)

    return stage


@contextmanager
def _line(name: str, units: int) -> Iterator[Callable[[int], None]]:
    """Prints a line when a stage has ended."""
    started = time.perf_counter()
    yield lambda done: None
    seconds = time.perf_counter() - started
    each = f", {seconds / units:.2f} s each" if units > 1 else ""
    tell(f"{name}: {units} in {seconds:.1f} s{each}")
