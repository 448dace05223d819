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
from ltx_runtime.media.video import FPS_RANGES, WRITERS, TakenError, save_video, target_of

EVERY_WRITER = pytest.mark.parametrize("suffix", WRITERS)
BLACK = np.zeros((64, 96, 3), np.uint8)
ROOT = Path(__file__).parents[3]


def write(output, fps=24.0, frames=(BLACK, BLACK), **how):
    """Writes black frames, or others, and returns the path of the file or folder."""
    return save_video(frames, output, BLACK.shape[:2], fps, **how)


def failing(error):
    """Yields a frame, and then raises an error."""
    yield BLACK
    raise error


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

    def frames():
        for _ in range(8):
            yield BLACK
            assert not target.exists()

    write(tmp_path / f"clip{suffix}", frames=frames())
    assert target.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, LtxError])
@EVERY_WRITER
def test_an_exception_leaves_nothing_and_comes_through(tmp_path, suffix, error):
    with pytest.raises(error, match="stop"):
        write(tmp_path / f"clip{suffix}", frames=failing(error("stop")))
    assert placed(tmp_path) == []


def existing(output):
    """Makes what an earlier run has left under the name of an output, and returns it with its content."""
    target = write(output, frames=[BLACK + 40])
    return target, content(target)


def content(target):
    """Returns the bytes of a file, or of every file in a folder."""
    return [path.read_bytes() for path in (sorted(target.iterdir()) if target.is_dir() else [target])]


@EVERY_WRITER
def test_what_exists_is_replaced_only_if_that_is_asked_for_and_only_by_a_whole_video(tmp_path, suffix):
    output = tmp_path / f"clip{suffix}"
    target, before = existing(output)
    with pytest.raises(TakenError, match=r"clip.* exists - choose another name, or add --overwrite"):
        write(output, frames=(pytest.fail("a frame was made") for _ in range(1)))
    with pytest.raises(RuntimeError):
        write(output, frames=failing(RuntimeError()), overwrite=True)
    assert content(target) == before
    assert write(output, overwrite=True) == target
    assert content(target) != before
    assert list(tmp_path.iterdir()) == [target]


@EVERY_WRITER
def test_a_name_that_was_taken_meanwhile_is_left_alone_and_the_video_gets_the_next_one(tmp_path, suffix):
    output = tmp_path / f"clip{suffix}"

    def frames():
        yield BLACK
        taken.append(existing(output))
        existing(output.with_stem("clip-2"))

    taken = []
    written = write(output, frames=frames())
    target, before = taken[0]
    assert content(target) == before
    assert written == target.with_stem("clip-3")
    assert content(written) == content(write(tmp_path / f"alone{suffix}", frames=[BLACK]))


def test_what_others_put_into_a_folder_of_frames_meanwhile_is_not_replaced_with_them(tmp_path):
    existing(tmp_path / "clip.png")

    def frames():
        yield BLACK
        (tmp_path / "clip" / "notes.txt").write_text("hours of work")

    assert write(tmp_path / "clip.png", frames=frames(), overwrite=True) == tmp_path / "clip-2"
    assert (tmp_path / "clip" / "notes.txt").read_text() == "hours of work"


def test_a_link_to_an_empty_folder_is_kept(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "clip").symlink_to("disk")
    assert write(tmp_path / "clip.png", frames=[BLACK]) == tmp_path / "clip"
    assert placed(tmp_path) == ["clip", "disk", "disk/frame_0000.png"]


def test_a_link_is_kept_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "film.mp4").write_bytes(b"before")
    (tmp_path / "clip.mp4").symlink_to(tmp_path / "disk" / "film.mp4")
    write(tmp_path / "clip.mp4", overwrite=True)
    assert (tmp_path / "clip.mp4").is_symlink()
    assert (tmp_path / "disk" / "film.mp4").read_bytes()[:6] != b"before"
    assert placed(tmp_path) == ["clip.mp4", "disk", "disk/film.mp4"]


ABANDON = """
import os, sys
from pathlib import Path
import numpy as np
from ltx_runtime.media.video import save_video
black = np.zeros((64, 96, 3), np.uint8)
def frames():
    yield black
    yield black
    os._exit(9)
save_video(frames(), Path(sys.argv[1]), (64, 96), 24.0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="without locks on files, a day must pass before that")
@EVERY_WRITER
def test_what_a_killed_run_left_is_deleted_by_the_next_one_in_that_folder(tmp_path, suffix):
    command = [sys.executable, "-c", ABANDON, str(tmp_path / f"clip{suffix}")]
    assert subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode == 9
    assert placed(tmp_path) != []
    target = write(tmp_path / f"another{suffix}")
    assert list(tmp_path.iterdir()) == [target]


@EVERY_WRITER
def test_what_a_run_that_is_under_way_has_written_is_not_deleted_by_another(tmp_path, suffix):
    def frames():
        yield BLACK
        write(tmp_path / f"other{suffix}")
        yield BLACK

    target = write(tmp_path / f"clip{suffix}", frames=frames())
    assert content(target) == content(target_of(tmp_path / f"other{suffix}"))


# Names that a library could take for a protocol, a pattern, an option or a list; and the longest that are allowed.
NAMES = [
    *("12:30", "take:2", "file:x", "pipe:1", "http:", "concat:a|b", "-y", "%03d", "a[0-9]*?", "tee:[f=mp4]b", "a\nb"),
    *("~", "$HOME", "a b", "über 狐", "\udcff", "x" * 250, "a.mp4.", ".hidden"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@EVERY_WRITER
def test_a_name_is_a_name_whatever_it_looks_like(tmp_path, suffix, name):
    for folder in (tmp_path, tmp_path / name):
        folder.mkdir(exist_ok=True)
        target = write(folder / f"{name}{suffix}")
        assert target == target_of(folder / f"{name}{suffix}")
        assert target in list(folder.iterdir())


@EVERY_WRITER
def test_a_name_that_is_too_long_is_refused_before_the_first_frame(tmp_path, suffix):
    assert "choose a shorter name" in refused_before_the_first_frame(tmp_path / f"{'x' * 260}{suffix}")


@EVERY_WRITER
def test_whatever_the_library_of_a_format_refuses_is_found_before_the_first_frame(tmp_path, suffix, monkeypatch):
    writer = WRITERS[suffix]

    @contextmanager
    def refusing(path, fps, comment):
        with writer(path, fps, comment) as write_frame:

            def write_to_file(frame):
                write_frame(frame)
                raise ValueError("this codec was built without threads")

            yield write_to_file

    monkeypatch.setitem(WRITERS, suffix, refusing)
    assert "this codec was built without threads" in refused_before_the_first_frame(tmp_path / f"clip{suffix}")
    assert placed(tmp_path) == []


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


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "frame_0000.jpg", "frame_1.png"])
def test_frames_never_replace_a_folder_of_other_things(tmp_path, name, overwrite):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "frame_0000.png").touch()
    (tmp_path / "clip" / name).touch()
    with pytest.raises(LtxError, match="choose another name"):
        write(tmp_path / "clip.png", overwrite=overwrite)
    assert placed(tmp_path) == ["clip", *sorted(["clip/frame_0000.png", f"clip/{name}"])]


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
    with pytest.raises(LtxError, match="cannot write") as refused:
        write(output, frames=(pytest.fail("a frame was made") for _ in range(1)))
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
    def full(path, fps, comment):
        path.write_bytes(b"half")

        def write_frame(frame):
            if path.parent.name != "trial":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        yield write_frame

    monkeypatch.setitem(WRITERS, ".full", full)
    with pytest.raises(LtxError, match=r"cannot write .*clip\.full: no space left on device - free some space"):
        write(tmp_path / "clip.full")
    assert placed(tmp_path) == []


@EVERY_WRITER
def test_a_missing_file_of_another_stage_is_not_blamed_on_the_output(tmp_path, suffix):
    with pytest.raises(FileNotFoundError) as raised:
        write(tmp_path / f"clip{suffix}", frames=failing(FileNotFoundError(errno.ENOENT, "", "transformer.data")))
    assert raised.value.filename.endswith("transformer.data")


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from ltx_runtime.errors import reported
from ltx_runtime.media.video import save_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
random = np.random.RandomState(0)
frames = (random.randint(0, 256, (128, 192, 3)).astype(np.uint8) for _ in range(20))
with reported():
    save_video(frames, Path(sys.argv[1]), (128, 192), 24.0)
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="RLIMIT_FSIZE as Linux has it; test_a_full_disk_is_explained covers the refusal elsewhere",
)
@EVERY_WRITER
def test_a_disk_that_takes_no_more_bytes_ends_in_one_line_and_leaves_nothing(tmp_path, suffix):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / f"clip{suffix}")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"error: cannot write {target_of(Path(command[-1]))}: ")
    assert "Traceback" not in ended.stderr
    assert placed(tmp_path) == []
