"""Nested phases as one fraction, and builds that Ctrl-C cancels; the builder is a function here."""

import _thread
import threading

import pytest
import rich.console

from ltx_export.engines import progress as engine_progress
from ltx_export.engines.progress import BuildProgress, in_thread, shown


def test_a_fraction_is_the_steps_done_and_what_the_current_step_has_done_within():
    told = []
    progress = BuildProgress(lambda phase, fraction: told.append((phase, fraction)))
    progress.start("build", None, 4)
    progress.step("build")
    progress.start("optimize", "build", 2)
    progress.step("optimize")
    progress.start("time", "optimize", 5)
    progress.step("time")
    progress.finish("time")
    progress.step("optimize")
    progress.finish("optimize")
    progress.step("build")
    progress.finish("build")
    assert told == [
        ("build", 0),
        ("build", 1 / 4),
        ("optimize", 1 / 4),
        ("optimize", pytest.approx((1 + 1 / 2) / 4)),
        ("time", pytest.approx((1 + 1 / 2) / 4)),
        ("time", pytest.approx((1 + (1 + 1 / 5) / 2) / 4)),
        ("optimize", pytest.approx((1 + 2 / 2) / 4)),
        ("build", 2 / 4),
        ("build", 1.0),
    ]


def test_a_phase_that_ends_early_or_tells_too_much_never_leads_back_or_beyond():
    told = []
    progress = BuildProgress(lambda phase, fraction: told.append(fraction))
    progress.start("build", None, 2)
    progress.start("first", "build", 10)
    for _ in range(15):
        progress.step("first")
    progress.finish("first")
    progress.start("second", "build", 0)
    progress.step("unknown")
    progress.finish("unknown")
    progress.step("build")
    progress.finish("build")
    assert told == sorted(told) and told[-1] == 1 and max(told[:-1]) == 1 / 2


def test_phases_of_several_threads_are_told_one_at_a_time():
    at_once, most = [0], [0]

    def show(phase, fraction):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        at_once[0] -= 1

    progress = BuildProgress(show)
    progress.start("build", None, 4)

    def work(name):
        progress.start(name, "build", 500)
        for _ in range(500):
            progress.step(name)
        progress.finish(name)

    threads = [threading.Thread(target=work, args=(f"part {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert progress.fraction <= 1 / 4


def test_only_outermost_phases_are_told_when_they_end():
    ended = []
    progress = BuildProgress(ended=lambda phase, seconds: ended.append((phase, seconds >= 0)))
    progress.start("build", None, 1)
    progress.start("inner", "build", 1)
    progress.finish("inner")
    progress.finish("build")
    assert ended == [("build", True)]


def test_work_is_done_in_a_thread_of_its_own_and_its_result_and_failure_come_back():
    assert in_thread(threading.get_ident, BuildProgress()) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0, BuildProgress())


def test_ctrl_c_ends_the_work_at_its_next_step_and_is_raised_only_then():
    progress, steps, more = BuildProgress(), [], threading.Event()

    def work():
        progress.start("build", None, 1000)
        _thread.interrupt_main()
        while progress.step("build"):
            steps.append(1)
            more.wait(0.01)
        _thread.interrupt_main()  # a second, impatient Ctrl-C
        more.wait(0.3)
        steps.append("tidied up")
        raise RuntimeError("cancelled")

    with pytest.raises(KeyboardInterrupt):
        in_thread(work, progress)
    assert steps[-1] == "tidied up" and len(steps) < 100


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_a_bar_and_anything_else_one_line_for_what_has_ended(monkeypatch, capsys, is_terminal):
    console = rich.console.Console
    monkeypatch.setattr(
        rich.console, "Console", lambda stderr: console(stderr=stderr, force_terminal=is_terminal, width=120)
    )
    with shown("vae_decoder") as progress:
        progress.start("Building engine", None, 2)
        progress.start("Timing", "Building engine", 1)
        progress.step("Timing")
        progress.finish("Timing")
        progress.finish("Building engine")
    out, err = capsys.readouterr()
    assert out == ""
    if is_terminal:
        assert "vae_decoder: " in err and "%" in err
    else:
        assert err == "vae_decoder: building engine 0.0 s\n"


def test_the_librarys_monitor_hands_on_every_phase_and_whether_to_go_on():
    class Library:
        """Library with a progress monitor to derive from."""

        class IProgressMonitor:
            """Stands in for TensorRT's monitor."""

    progress = BuildProgress()
    monitor = engine_progress.monitor_of(Library, progress)
    monitor.phase_start("build", None, 4)
    assert monitor.step_complete("build", 0) is True
    assert progress.fraction == 1 / 4
    progress.cancelled.set()
    assert monitor.step_complete("build", 1) is False
    monitor.phase_finish("build")
    assert progress.fraction == 2 / 4  # a cancelled phase finishes too, but is not complete
