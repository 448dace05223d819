"""Runs contestants one after another in rounds, so that what warms or slows a GPU meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_arithmetic import Timing, timing_of
from gpu_budget import Clock, Left, reason_of, said

_WARM_RUNS = 2


@dataclass(frozen=True)
class Contestant:
    """Something that is timed; `run` returns when its work is done."""

    name: str
    run: Callable[[], object]


def contest(
    contestants: Sequence[Contestant],
    rounds: int,
    left: Left,
    clock: Clock = time.perf_counter,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times of each contestant, in rounds until there are enough or there is no time for another.

    A contestant that fails is out, and the others go on.

    Args:
        contestants: in the order of each round.
        rounds: at most; at least one is run.
        left: seconds that may be spent.
        clock: tells seconds.

    Returns:
        Timings by name, and why others have none.
    """
    seconds: dict[str, list[float]] = {}
    firsts: dict[str, float] = {}
    problems: dict[str, str] = {}
    for one in contestants:
        try:
            firsts[one.name] = _seconds(one, clock)
            for _ in range(_WARM_RUNS - 1):
                one.run()
        except Exception as error:  # out of memory, or a compiler that gives up
            problems[one.name] = reason_of(error)
            said(f"  {one.name}: {problems[one.name]}")
            continue
        seconds[one.name] = []
        said(f"  {one.name}: first run {firsts[one.name]:.2f} s")
    for _ in range(rounds):
        started = clock()
        for one in contestants:
            if one.name in seconds:
                seconds[one.name].append(_seconds(one, clock))
        if left() < clock() - started:
            break
    return {name: timing_of(taken, firsts[name]) for name, taken in seconds.items()}, problems


def _seconds(one: Contestant, clock: Clock) -> float:
    started = clock()
    one.run()
    return clock() - started
