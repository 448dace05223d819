"""Laws of errors: one that the user can fix ends in one line and exit code 2, our own bugs keep their traceback."""

import errno
import os
import pickle
import signal
import time

import pytest

from ltx_runtime.errors import INTERRUPTED, USER_ERROR, LtxError, explaining, reported

REFUSALS = ("ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "EFBIG")


def left_with(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Returns exit code and standard error of a command that raises `error`."""
    with pytest.raises(SystemExit) as left, reported():
        raise error
    captured = capsys.readouterr()
    assert captured.out == ""
    return left.value.code, captured.err


def test_an_error_of_the_user_ends_with_code_2_and_its_message_on_one_line(capsys):
    code, message = left_with(LtxError("height must be a multiple of 32; got 500 - use 480 or 512"), capsys)
    assert (code, message) == (2, "error: height must be a multiple of 32; got 500 - use 480 or 512\n")


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (("no fox",), "no fox"),
        (("no fox", "draw one"), "no fox - draw one"),
        (("no fox", "", "draw fox"), "no fox - run: draw fox"),
        (("a - b is no fox", "draw one", "draw fox"), "a - b is no fox - run: draw fox, or draw one"),
    ],
)
def test_an_error_keeps_its_parts_and_says_them_in_one_sentence(parts, sentence):
    error = LtxError(*parts)
    assert (error.problem, error.advice, error.command) == (*parts, "", "")[:3]
    assert str(error) == sentence
    assert str(pickle.loads(pickle.dumps(error))) == sentence


def test_an_interrupted_command_ends_with_the_code_shells_use_for_ctrl_c(capsys):
    code, message = left_with(KeyboardInterrupt(), capsys)
    assert code == 128 + 2 == INTERRUPTED
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_of_the_operating_system_is_explained_with_file_reason_and_advice(name, capsys):
    number = getattr(errno, name)
    code, message = left_with(OSError(number, os.strerror(number), "clip.mp4"), capsys)
    assert code == USER_ERROR
    assert "clip.mp4" in message
    assert os.strerror(number).lower() in message
    advice = message.rpartition(" - ")[2]
    assert advice.strip()
    assert message.count("\n") == 1


def test_too_little_memory_is_the_user_s_to_mend(capsys):
    code, message = left_with(MemoryError("137438953472 bytes"), capsys)
    assert (code, message) == (
        2,
        "error: not enough memory - ask for a smaller size or fewer frames, or close other programs\n",
    )


def test_names_from_files_can_not_write_to_the_terminal_as_they_like(capsys):
    _, message = left_with(LtxError("no tensor \x1b[31mred\nerror: fake \u202e Füchse"), capsys)
    assert message == "error: no tensor \\x1b[31mred\\nerror: fake \\u202e Füchse\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_being_ended_by_a_signal_is_an_interruption_that_cleans_up(name, capsys):
    number, cleaned = getattr(signal, name), []
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left, reported("what has arrived is kept"):
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            cleaned.append(True)
    assert (left.value.code, cleaned) == (INTERRUPTED, [True])
    assert capsys.readouterr().err == "error: interrupted; what has arrived is kept\n"
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with reported():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_without_a_file_name_is_still_explained(capsys):
    code, message = left_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), capsys)
    assert code == USER_ERROR
    assert "None" not in message
    assert "no space left on device" in message


@pytest.mark.parametrize("error", [ValueError("a bug"), AssertionError(), KeyError("x"), OSError(errno.EBADF, "bad")])
def test_our_own_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, reported():
        raise error
    assert raised.value is error


def test_an_operating_system_error_without_advice_stays_as_it_is():
    for error in (OSError(errno.EBADF, "bad"), OSError("without a number")):
        with pytest.raises(OSError) as raised, explaining("write clip.mp4"):
            raise error
        assert raised.value is error


def test_an_explanation_says_what_was_being_done():
    with (
        pytest.raises(LtxError, match=r"^cannot write clip\.mp4: read-only file system - "),
        explaining("write clip.mp4"),
    ):
        raise OSError(errno.EROFS, "", "other.txt")


def test_an_explanation_leaves_every_other_exception_alone():
    for error in (LtxError("x"), ValueError("y"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, explaining("write clip.mp4"):
            raise error
        assert raised.value is error


def test_a_function_of_a_command_line_can_be_decorated(capsys):
    @reported()
    def command():
        raise LtxError("no")

    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            command()
        assert (left.value.code, capsys.readouterr().err) == (2, "error: no\n")


def test_a_command_that_ends_well_is_left_alone(capsys):
    with reported():
        pass
    assert capsys.readouterr() == ("", "")


def test_an_exit_asked_for_inside_keeps_its_own_code():
    with pytest.raises(SystemExit) as left, reported():
        raise SystemExit(7)
    assert left.value.code == 7
