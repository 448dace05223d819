"""Laws of records: what the user has made is known by its bytes wherever it lies, and nothing else is."""

import os
from pathlib import Path

import platformdirs
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.trust import made_here
from ltx_runtime.trust.made_here import check_records, is_made_here, is_own_link, record_link, record_made, still_known


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "made" / "a.engine"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 5000)
    assert not is_made_here(path) and record_made(path)
    return path


def test_what_was_made_here_is_known_and_so_is_a_copy_of_it(made, tmp_path):
    copy = tmp_path / "copy.engine"
    copy.write_bytes(made.read_bytes())
    assert is_made_here(made) and is_made_here(copy) and is_made_here(copy)
    made.rename(tmp_path / "moved.engine")
    assert is_made_here(tmp_path / "moved.engine")


@pytest.mark.parametrize("place", [0, 700_000, -1])
def test_no_byte_may_be_another_even_if_size_and_time_are_the_same(made, place):
    status, content = made.stat(), bytearray(made.read_bytes())
    content[place] ^= 1
    made.write_bytes(content)
    os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not is_made_here(made)


def test_what_is_still_the_same_file_is_not_read_again(made, monkeypatch):
    monkeypatch.setattr(made_here, "_mark_of_bytes", None)
    assert is_made_here(made) and record_made(made)


def test_what_has_the_size_of_nothing_that_was_made_is_not_read(made, tmp_path, monkeypatch):
    os.truncate(made, 1 << 40)
    monkeypatch.setattr(made_here, "_mark_of_bytes", None)
    assert not is_made_here(made)


def test_links_folders_and_what_is_gone_are_not_what_was_made(made, tmp_path):
    (tmp_path / "link").symlink_to(made)
    os.mkfifo(tmp_path / "pipe")
    assert not any(is_made_here(tmp_path / name) for name in ("link", "pipe", "made", "none"))


def test_a_link_is_known_by_place_size_and_checksum_together(tmp_path):
    place = tmp_path / "weights" / "a.safetensors"
    assert record_link(place, 5, "sum")
    assert is_own_link(place, 5, "sum")
    for other in ((place, 6, "sum"), (place, 5, "other"), (place.with_name("b"), 5, "sum"), (Path("a"), 5, "sum")):
        assert not is_own_link(*other)


def test_the_current_folder_is_no_place_for_records(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: Path("~/.local/share"))
    assert not record_made(made) and not is_made_here(made) and not record_link(made, 1, "sum")
    assert not is_own_link(made, 1, "sum") and sorted(os.listdir(tmp_path)) == ["made"]
    with pytest.raises(LtxError, match="cannot write to made-here, where it is recorded what you have made"):
        check_records()


def test_a_user_whose_data_cannot_be_written_is_told_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path / "data")
    check_records()
    (tmp_path / "file").touch()
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path / "file")
    assert not record_link(tmp_path, 1, "sum")
    with pytest.raises(LtxError, match=r"what you have made: .* - set HOME or XDG_DATA_HOME .*, or give --trust"):
        check_records()


def test_records_are_the_user_s_alone(made, tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path / "data")
    assert record_made(made)
    assert (tmp_path / "data" / "made-here").stat().st_mode & 0o077 == 0


def test_names_that_come_and_go_are_no_reason_to_read_a_file_again_and_nothing_else_is_overlooked(
    made, tmp_path, monkeypatch
):
    unknown, changed = made.with_name("unknown"), made.with_name("changed")
    for path in (unknown, changed):
        path.write_bytes(path.name.encode())
    record_made(changed)
    records = len([*made_here.data_folder("made-here").iterdir()])
    with still_known(made.parent):
        for path in (made, unknown, changed):
            os.link(path, tmp_path / path.name)
        changed.write_bytes(b"another")
    assert len([*made_here.data_folder("made-here").iterdir()]) == records  # those that no file has any more are gone
    with still_known(tmp_path):
        made.unlink()
    assert not is_made_here(unknown) and not is_made_here(changed)
    monkeypatch.setattr(made_here, "_mark_of_bytes", None)
    assert is_made_here(tmp_path / made.name)
