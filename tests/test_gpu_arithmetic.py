"""Laws of the formulas and the time budget of benchmarks/gpu.py: FLOPs, medians, goals, sections, rounds."""

import sys
from pathlib import Path

import pytest
import torch
from oracles.networks import diffusers_dit
from torch.utils.flop_counter import FlopCounterMode

from ltx_runtime.spec.geometry import grid_of
from ltx_runtime.spec.versions import SIZE_2B, SIZE_13B, TransformerSize

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu_table
from gpu_arithmetic import Timing, goals_of, share_of_peak, step_flops, timing_of
from gpu_budget import Budget
from gpu_contest import Contestant, contest
from gpu_measure import COMPILED, EAGER


class Clock:
    """Clock whose time passes only on request."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def passing(self, seconds):
        def work(*_):
            self.now += seconds

        return work


@pytest.mark.parametrize(("grid", "tflop"), [(grid_of(512, 768, 97), 22.6), (grid_of(704, 1216, 121), 86.0)])
def test_a_step_of_the_2b_version_takes_the_operations_that_are_known(grid, tflop):
    assert step_flops(SIZE_2B, grid.tokens) / 1e12 == pytest.approx(tflop, rel=5e-3)


@pytest.mark.parametrize(
    ("size", "tokens", "text_tokens"),
    [
        (TransformerSize(layers=2, heads=4, head_dim=32, text_channels=64), 96, 32),
        (TransformerSize(layers=1, heads=32, head_dim=64), 512, 256),
        (TransformerSize(layers=3, heads=2, head_dim=64, text_channels=96, channels=16), 33, 8),
    ],
)
def test_the_formula_counts_what_torch_counts_of_diffusers_transformer(size, tokens, text_tokens):
    with torch.device("meta"):
        model = diffusers_dit(size)
        feeds = (
            torch.empty(1, tokens, size.channels),
            torch.empty(1, text_tokens, size.text_channels),
            torch.empty(1, 1),
            torch.ones(1, text_tokens, dtype=torch.int64),
        )
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            model(*feeds, video_coords=torch.empty(1, 3, tokens), return_dict=False)
    assert step_flops(size, tokens, text_tokens) == counted.get_total_flops()


def test_the_13b_version_takes_more_than_four_times_as_many():
    assert 4 < step_flops(SIZE_13B, 4992) / step_flops(SIZE_2B, 4992) < 13 / 2


def test_a_timing_is_the_median_and_its_ends():
    assert timing_of([3.0, 1.0, 2.0, 9.0, 2.5], 20.0) == Timing(2.5, 1.0, 9.0, 5, 20.0)
    assert timing_of([1.0, 3.0], 1.0).median_s == 2.0


def test_a_share_of_the_peak_is_one_where_nothing_is_lost():
    assert share_of_peak(6e12, 2.0, 3e12) == 1.0
    assert share_of_peak(6e12, 4.0, 3e12) == 0.5


def test_goals_are_held_against_the_worst_size():
    step, share, decode = goals_of([1.5, 1.2], [0.7, 0.56], [0.3, 0.6])
    assert (step.measured, step.reached) == (1.2, False)
    assert (share.measured, share.reached) == (0.56, True)
    assert (decode.measured, decode.reached) == (0.6, True)
    assert {goal.reached for goal in goals_of([], [], [])} == {None}


def row(component, size, name, seconds, share=None):
    return {"component": component, "size": size, "name": name, "median_s": seconds, "share_of_peak": share}


def test_the_fastest_of_our_backends_is_held_against_diffusers():
    rows = [
        row("transformer", "a", "cuda", 3.0, 0.4),
        row("transformer", "a", "tensorrt", 2.0, 0.6),
        row("transformer", "a", EAGER, 8.0, 0.1),
        row("transformer", "a", COMPILED, 5.0, 0.2),
        row("vae_decoder", "a", "tensorrt", 1.0),
        row("vae_decoder", "a", EAGER, 4.0),
        row("vae_decoder", "a", COMPILED, 2.0),
    ]
    assert [goal["measured"] for goal in gpu_table.goals(rows)] == [2.5, 0.6, 0.5]
    alone = [one for one in rows if one["name"] in (EAGER, COMPILED)]
    assert [goal["measured"] for goal in gpu_table.goals(alone)] == [None] * 3
    assert [goal["measured"] for goal in gpu_table.goals(rows[:2])] == [None, 0.6, None]


def test_a_section_that_fails_is_told_in_one_line_and_ends_nothing():
    clock = Clock()
    budget = Budget(100, clock)

    def fail(left):
        clock.now += 3
        raise RuntimeError("out of\n memory")

    assert budget.section("one", 50, fail) is None
    assert budget.section("two", 50, lambda left: "made") == "made"
    one, two = budget.sections
    assert (one.name, one.seconds, one.problem) == ("one", 3, "RuntimeError: out of memory")
    assert (two.problem, budget.left()) == ("", 97)


def test_a_section_is_told_the_less_of_its_own_time_and_of_the_whole():
    clock = Clock()
    budget = Budget(100, clock)
    seen = []
    budget.section("short", 30, lambda left: seen.append(left()))
    clock.now = 90
    budget.section("late", 30, lambda left: seen.append(left()))
    assert seen == [30, 10]


def test_no_section_begins_after_the_end():
    clock = Clock()
    budget = Budget(10, clock)
    budget.section("long", 100, clock.passing(11))
    assert budget.section("never", 5, lambda left: pytest.fail("begun")) is None
    assert budget.sections[-1].problem == "no time was left"


def test_ctrl_c_ends_the_run():
    def interrupt(left):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Budget(10, Clock()).section("one", 5, interrupt)


def test_contestants_take_turns():
    order = []
    two = [Contestant(name, lambda name=name: order.append(name)) for name in "ab"]
    timings, problems = contest(two, rounds=3, left=lambda: 1e9)
    assert order == list("aabb") + list("ab") * 3
    assert problems == {} and {one.rounds for one in timings.values()} == {3}


def test_a_contestant_is_timed_without_its_preparation():
    clock = Clock()
    took = iter([60.0, 1.0, 1.0, 5.0, 2.0])
    one = Contestant("compiled", lambda: clock.passing(next(took))())
    timings, _ = contest([one], rounds=3, left=lambda: 1e9, clock=clock)
    assert timings["compiled"] == Timing(2.0, 1.0, 5.0, 3, 60.0)


def test_rounds_end_when_another_would_take_too_long():
    clock = Clock()
    contestants = [Contestant(name, clock.passing(10)) for name in "ab"]
    timings, _ = contest(contestants, rounds=9, left=lambda: 95 - clock(), clock=clock)
    assert {one.rounds for one in timings.values()} == {2}  # 40 s of warm-up, then two rounds of 20 s; 15 s are left


def test_one_round_is_run_whatever_the_time():
    timings, _ = contest([Contestant("a", lambda: None)], rounds=9, left=lambda: -1.0)
    assert timings["a"].rounds == 1


def test_a_contestant_that_fails_is_out_and_told():
    def fail():
        raise RuntimeError("CUDA out of memory")

    timings, problems = contest([Contestant("a", fail), Contestant("b", lambda: None)], 2, lambda: 1e9)
    assert set(timings) == {"b"} and problems == {"a": "RuntimeError: CUDA out of memory"}
