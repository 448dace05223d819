"""What lies in a folder that is replaced is kept as it is, and no link of a stranger is followed."""

import os
import shutil

import pytest

from ltx_runtime.replacing.keeping import keep_rest


@pytest.fixture
def folders(tmp_path):
    """An old folder with all kinds of things, and a new one with some of its names."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old / "notes", new, tmp_path / "secret"):
        folder.mkdir(parents=True)
    for path in (old / "kept", old / "notes" / "kept", old / "replaced", old / "dropped", old / ".ltx-x.lock"):
        path.write_text("old")
    (new / "replaced").write_text("new")
    (tmp_path / "secret" / "id").write_text("secret")
    return old, new


@pytest.mark.parametrize("has_links", [True, False])
def test_files_and_folders_are_kept_and_what_is_new_or_dropped_is_not_touched(folders, monkeypatch, has_links):
    old, new = folders

    def no_links(*paths):
        raise NotImplementedError

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    for _ in range(2):
        keep_rest(old, new, lambda name: name == "dropped")
    found = {path.relative_to(new).as_posix(): path.read_text() for path in new.rglob("*") if path.is_file()}
    assert found == {"kept": "old", "notes/kept": "old", "replaced": "new"}
    assert (new / "kept").samefile(old / "kept") == has_links


@pytest.mark.skipif(os.name != "posix", reason="makes files of a kind that Windows lacks")
def test_links_stay_the_links_that_they_are_and_what_is_no_file_is_left_out(folders, tmp_path):
    old, new = folders
    links = {"away": tmp_path / "secret", "up": "..", "loop": "loop", "gone": "nowhere", "id": "../secret/id"}
    for name, target in links.items():
        (old / name).symlink_to(target)
        (old / "notes" / name).symlink_to(target)
    os.mkfifo(old / "pipe")
    keep_rest(old, new)
    for name, target in links.items():
        assert os.readlink(new / name) == os.readlink(new / "notes" / name) == str(target)
    assert (tmp_path / "secret" / "id").stat().st_nlink == 1
    assert not os.path.lexists(new / "pipe")
    shutil.rmtree(new)
    assert (tmp_path / "secret" / "id").read_text() == "secret"


def test_a_link_where_a_folder_was_is_not_walked_into(folders, tmp_path):
    old, new = folders
    (new / "notes").symlink_to(tmp_path / "secret")
    keep_rest(old, new)
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["id"]
