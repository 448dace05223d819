"""Progress: bars with a total on a terminal, a line for each stage elsewhere, and nothing on standard output."""

import re
import sys
import time

import pytest

from ltx_runtime.cli.progress import display
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
