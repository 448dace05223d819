"""Times contestants one after another in rounds, so that whatever heats or slows the GPU affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_arithmetic import Timing, timing_of
from gpu_budget import Clock, Left, reason_of, said

_WARM_RUNS = 2


@dataclass(frozen=True)
class Contestant:
    """A contestant to be timed; `run` returns when its work is done."""

    name: str
    run: Callable[[], object]


def contest(
    contestants: Sequence[Contestant],
    rounds: int,
    left: Left,
    clock: Clock = time.perf_counter,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times each contestant in rounds, until there are enough rounds or no time is left for another.

    A contestant that fails is dropped; the others continue.

    Args:
        contestants: contestants in the order of each round.
        rounds: maximum number of rounds; at least one is run.
        left: returns the seconds that may still be spent.
        clock: returns the time in seconds.

    Returns:
        Timings by contestant name, and for the other names the reason why they have none.
    """
    seconds: dict[str, list[float]] = {}
    firsts: dict[str, float] = {}
    problems: dict[str, str] = {}
    for one in contestants:
        try:
            firsts[one.name] = _seconds(one, clock)
            for _ in range(_WARM_RUNS - 1):
                one.run()
        except Exception as error:  # out of memory, or a failed compilation
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
