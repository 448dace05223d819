"""Progress: bars with a total on a terminal, a line for each stage elsewhere, and nothing on standard output."""

import re
import sys
import time

import pytest

from ltx_runtime.cli.progress import display, display_many, duration
from ltx_runtime.files import amount

ERASE_LINE = "\x1b[2K"


def use_terminal(monkeypatch):
    """Makes standard error a terminal of 120 columns."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def shown(text):
    """Returns the lines of the last picture of all bars, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
    return [line.rstrip() for line in plain.split("\n") if line.strip()]


def last(lines, name):
    return next(line for line in reversed(lines) if f" {name} " in line)


def test_each_stage_is_a_bar_and_the_total_counts_their_work(monkeypatch, capsys):
    use_terminal(monkeypatch)
    with display({"text": 1.0, "denoise": 2.0, "decode": 1.0}) as progress:
        with progress("text", 1) as advance:
            advance(1)
        with progress("denoise", 4) as advance:
            advance(1)
            advance(1)
    captured = capsys.readouterr()
    lines = shown(captured.err)
    assert captured.out == ""
    assert "1/1" in last(lines, "text") and "2/4" in last(lines, "denoise") and "s each" in last(lines, "denoise")
    assert " 50 % " in last(lines, "total")  # all of the text, and half of the denoising


def test_one_stage_alone_has_no_total(monkeypatch, capsys):
    use_terminal(monkeypatch)
    with display({"decode": 3.0}) as progress, progress("decode", 2) as advance:
        advance(2)
    assert not any(" total " in line for line in shown(capsys.readouterr().err))


def test_bars_of_bytes_are_gone_at_the_end(monkeypatch, capsys):
    use_terminal(monkeypatch)
    with display(in_bytes=True) as progress, progress("weights", 2_000_000_000) as advance:
        advance(500_000_000)
        time.sleep(0.3)  # bars are drawn ten times a second
    text = capsys.readouterr().err
    assert f"{amount(500_000_000)} of {amount(2_000_000_000)}" in last(shown(text), "weights")
    assert "weights" not in text[text.rindex(ERASE_LINE) :]


def test_where_there_is_no_terminal_a_stage_is_a_line_once_it_has_ended(capsys):
    with display({"text": 1.0, "denoise": 2.0}) as progress:
        with progress("text", 1) as advance:
            advance(1)
        assert re.fullmatch(r"text: 1 in \d+\.\d s\n", capsys.readouterr().err)
        with progress("denoise", 4) as advance:
            assert capsys.readouterr().err == ""
    assert re.fullmatch(r"denoise: 4 in \d+\.\d s, \d+\.\d\d s each\n", capsys.readouterr().err)
    with display(in_bytes=True) as progress, progress("weights", 9) as advance:
        advance(9)
    assert capsys.readouterr() == ("", "")


def test_a_stage_that_fails_is_no_finished_line(capsys):
    with pytest.raises(ValueError, match="no"), display() as progress, progress("decode", 9):
        raise ValueError("no")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (100, "2 min"), (119 * 60, "119 min"), (2 * 3600, "2 h 0 min"), (9000, "2 h 30 min")],
)
def test_a_time_is_told_in_the_unit_that_people_would_use(seconds, text):
    assert duration(seconds) == text


def test_many_videos_have_a_bar_for_all_and_bars_of_stages_only_while_they_are_made(monkeypatch, capsys):
    use_terminal(monkeypatch)
    with display_many(3, 4.0) as video:
        with video(1.0) as progress, progress("denoise", 2) as advance:
            advance(1)
            time.sleep(0.3)
        time.sleep(0.3)
    captured = capsys.readouterr()
    lines = shown(captured.err)
    assert captured.out == ""
    assert "1/2" in last(lines, "denoise") and "1/3" in last(lines, "videos")
    assert " denoise " not in lines[-1]


def test_where_there_is_no_terminal_a_line_tells_what_is_left_after_each_video(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with display_many(3, 4.0) as video:
        for _ in range(3):
            with video(4 / 3):
                clock[0] += 600
    assert capsys.readouterr().err.splitlines() == [
        "1 of 3 videos, about 20 min left",
        "2 of 3 videos, about 10 min left",
        "3 of 3 videos",
    ]
