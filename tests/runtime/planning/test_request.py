"""Laws of what a request is written as: a condition is read from its end, and the rest is its file."""

from pathlib import Path

import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.planning.request import Condition, parse_condition


@pytest.mark.parametrize(
    ("text", "path", "frame", "strength"),
    [
        ("a.png@0", "a.png", 0, 1.0),
        ("a.png@24:0.5", "a.png", 24, 0.5),
        ("a.png@24:0", "a.png", 24, 0.0),
        ("a.png@7:1e-1", "a.png", 7, 0.1),
        (r"C:\clips\a.mp4@8", r"C:\clips\a.mp4", 8, 1.0),
        (r"C:\clips\a.mp4@8:.25", r"C:\clips\a.mp4", 8, 0.25),
        ("photo@2x.png@0", "photo@2x.png", 0, 1.0),
        ("me@home:1@3@16:0.75", "me@home:1@3", 16, 0.75),
        ("dir with spaces/ä.mov@120", "dir with spaces/ä.mov", 120, 1.0),
    ],
)
def test_a_condition_is_read_from_its_end(text, path, frame, strength):
    assert parse_condition(text) == Condition(Path(path), frame, strength)


@pytest.mark.parametrize("text", ["", "a.png", "a.png@", "@3", "a@2x.png", "a.png@1.5", "a.png@x:1", "a.png@1:2:0.5"])
def test_a_condition_without_file_or_frame_is_refused_with_an_example(text):
    with pytest.raises(LtxError, match=r"^a condition is FILE@FRAME or .* - write image.png@0 for example$"):
        parse_condition(text)


def test_a_negative_frame_is_refused():
    with pytest.raises(LtxError, match=r"^the frame of a condition must be at least 0; got -8 in 'a.png@-8' - use"):
        parse_condition("a.png@-8")


@pytest.mark.parametrize("strength", ["1.01", "-0.1", "nan", "inf", "", "strong"])
def test_a_strength_outside_0_to_1_is_refused(strength):
    with pytest.raises(LtxError, match=r"^the strength of a condition must be from 0 to 1; got .* - use 1$"):
        parse_condition(f"a.png@0:{strength}")
