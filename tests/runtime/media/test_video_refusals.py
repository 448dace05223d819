"""Laws of writers when something goes wrong: a file appears only when complete, and every error says what to do."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.media import video
from ltx_runtime.media.video import FPS_RANGES, WRITERS, open_writer, target_of

EVERY_WRITER = pytest.mark.parametrize("suffix", WRITERS)
BLACK = np.zeros((64, 96, 3), np.uint8)


def write(output, fps=24.0):
    """Writes two black frames and returns the path of the file or folder."""
    target = target_of(output)
    with open_writer(output, fps) as write_frame:
        write_frame(BLACK)
        write_frame(BLACK)
    return target


def placed(folder):
    """Returns every name below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@EVERY_WRITER
def test_only_the_target_is_left_and_it_is_the_one_announced(tmp_path, suffix):
    target = write(tmp_path / f"my.clip{suffix.upper()}")
    assert list(tmp_path.iterdir()) == [target]


@EVERY_WRITER
def test_nothing_stands_under_the_name_before_the_end(tmp_path, suffix):
    target = target_of(tmp_path / f"clip{suffix}")
    with open_writer(tmp_path / f"clip{suffix}", 24.0) as write_frame:
        for _ in range(8):
            write_frame(BLACK)
            assert not target.exists()
    assert target.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, LtxError])
@EVERY_WRITER
def test_an_exception_leaves_nothing_and_comes_through(tmp_path, suffix, error):
    with pytest.raises(error, match="stop"), open_writer(tmp_path / f"clip{suffix}", 24.0) as write_frame:
        write_frame(BLACK)
        raise error("stop")
    assert placed(tmp_path) == []


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix != ".png"])
def test_an_existing_file_is_kept_on_an_exception_and_replaced_on_success(tmp_path, suffix):
    output = tmp_path / f"clip{suffix}"
    output.write_bytes(b"before")
    with pytest.raises(RuntimeError), open_writer(output, 24.0) as write_frame:
        write_frame(BLACK)
        raise RuntimeError
    assert output.read_bytes() == b"before"
    assert write(output).read_bytes()[:6] != b"before"


@EVERY_WRITER
def test_what_an_interrupted_run_left_does_not_stand_in_the_way(tmp_path, suffix, monkeypatch):
    output = tmp_path / f"clip{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(video, "_remove", lambda path: None)  # as after a power failure
        with pytest.raises(RuntimeError), open_writer(output, 24.0) as write_frame:
            write_frame(BLACK)
            raise RuntimeError
    assert placed(tmp_path) != []
    target = write(output)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["clip", "clip.avi", "clip.mp4.txt", ".mp4"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path, name):
    with pytest.raises(LtxError, match="unknown output suffix") as refused:
        write(tmp_path / name)
    assert all(suffix in str(refused.value) for suffix in WRITERS)
    assert placed(tmp_path) == []


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(LtxError, match="it is a folder - give a file name"):
        write(tmp_path / "clip.mp4")


def test_pngs_are_not_mixed_with_what_is_already_in_the_folder(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "frame_0000.png").touch()
    with pytest.raises(LtxError, match="exists and is not empty - choose another name"):
        write(tmp_path / "clip.png")
    assert placed(tmp_path) == ["clip", "clip/frame_0000.png"]


def test_pngs_go_into_a_folder_that_is_there_and_empty(tmp_path):
    (tmp_path / "clip").mkdir()
    write(tmp_path / "clip.png")
    assert placed(tmp_path) == ["clip", "clip/frame_0000.png", "clip/frame_0001.png"]


def test_pngs_do_not_replace_a_file(tmp_path):
    (tmp_path / "clip").write_bytes(b"before")
    with pytest.raises(LtxError, match="choose another name"):
        write(tmp_path / "clip.png")
    assert (tmp_path / "clip").read_bytes() == b"before"


@pytest.fixture(params=[0o555, 0o000], ids=["read_only", "closed"])
def locked(request):
    """Yields a folder in which nothing can be created, not even by root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(request.param)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield folder
    if is_root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def refused_before_the_first_frame(output):
    with pytest.raises(LtxError, match="cannot write") as refused, open_writer(output, 24.0):
        pytest.fail("the writer was opened")
    assert output.stem in str(refused.value)
    return str(refused.value)


@EVERY_WRITER
def test_a_folder_without_permission_is_refused_before_the_first_frame(locked, suffix):
    assert "permission" in refused_before_the_first_frame(locked / f"clip{suffix}")


@EVERY_WRITER
def test_a_missing_folder_is_refused_before_the_first_frame(tmp_path, suffix):
    assert "check the path" in refused_before_the_first_frame(tmp_path / "missing" / f"clip{suffix}")


@EVERY_WRITER
def test_a_file_in_the_place_of_the_folder_is_refused_before_the_first_frame(tmp_path, suffix):
    (tmp_path / "file").touch()
    assert "check the path" in refused_before_the_first_frame(tmp_path / "file" / f"clip{suffix}")


@pytest.mark.parametrize("suffix", FPS_RANGES)
def test_a_frame_rate_outside_what_a_format_takes_is_refused_with_the_range(tmp_path, suffix):
    slowest, fastest = FPS_RANGES[suffix]
    for fps in (1e-4, slowest * 0.99, fastest * 1.01, 1e10):
        with pytest.raises(LtxError, match=rf"takes {slowest} to {fastest} frames a second; got fps .* - use"):
            write(tmp_path / f"clip{suffix}", fps)
    assert placed(tmp_path) == []


def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path, monkeypatch):
    @contextmanager
    def full(path, fps):
        path.write_bytes(b"half")

        def write_frame(frame):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        yield write_frame

    monkeypatch.setitem(WRITERS, ".full", full)
    with pytest.raises(LtxError, match=r"cannot write .*clip\.full: no space left on device - free some space"):
        write(tmp_path / "clip.full")
    assert placed(tmp_path) == []


@EVERY_WRITER
def test_a_missing_file_of_another_stage_is_not_blamed_on_the_output(tmp_path, suffix):
    with pytest.raises(FileNotFoundError) as raised, open_writer(tmp_path / f"clip{suffix}", 24.0) as write_frame:
        write_frame(BLACK)
        (tmp_path / "transformer.data").read_bytes()
    assert raised.value.filename.endswith("transformer.data")


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from ltx_runtime.errors import reported
from ltx_runtime.media.video import open_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
random = np.random.RandomState(0)
with reported(), open_writer(Path(sys.argv[1]), 24.0) as write:
    for _ in range(20):
        write(random.randint(0, 256, (128, 192, 3)).astype(np.uint8))
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="RLIMIT_FSIZE as Linux has it; test_a_full_disk_is_explained covers the refusal elsewhere",
)
@EVERY_WRITER
def test_a_disk_that_takes_no_more_bytes_ends_in_one_line_and_leaves_nothing(tmp_path, suffix):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / f"clip{suffix}")]
    root = Path(video.__file__).parents[2]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: cannot write ")
    assert "Traceback" not in ended.stderr
    assert placed(tmp_path) == []
