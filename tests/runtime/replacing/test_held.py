"""Laws of folders that are read while others replace them."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.files import Lock, lock_of, partial_folder
from ltx_runtime.replacing import held as holding
from ltx_runtime.replacing.exchange import exchanged, whole_beside
from ltx_runtime.replacing.held import UNHELD, Held, opened


def write(folder, text):
    folder.mkdir(parents=True)
    (folder / "file").write_text(text)


def replace(folder, text):
    with partial_folder(folder.parent) as partial:
        write(partial / folder.name, text)
        exchanged(partial / folder.name, folder)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "demo", "0")
    if not lock_of(tmp_path / "demo").keeps_out:
        pytest.skip("folders cannot be locked here")
    return tmp_path / "demo"


def test_a_folder_stays_whole_for_every_reader_however_often_it_is_replaced(folder):
    readers = [Held(folder)]
    for number in range(1, 5):
        replace(folder, str(number))
        readers.append(Held(folder))
    assert [reader.now(folder / "file").read_text() for reader in readers] == ["0", "1", "2", "3", "4"]
    for reader in readers:
        reader.release()
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_a_reader_through_a_link_finds_its_folder_beside_the_one_that_the_link_leads_to(folder, tmp_path):
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(folder)
    reader = Held(link)
    replace(folder, "1")
    assert (link / "file").read_text() == "1"
    assert reader.now(link / "file").read_text() == "0"
    with pytest.raises(LtxError, match="link was replaced meanwhile - run the command again"):
        reader.check_stands()


def test_reading_is_done_again_if_the_folder_gets_its_name_meanwhile(folder):
    whole = folder.rename(whole_beside(folder))

    def read(path, held):
        if not path.exists():
            whole.rename(path)
            return (whole / "file").read_text()
        return (path / "file").read_text()

    assert opened(folder, read) == "0"


def test_reading_is_done_again_if_the_folder_is_moved_meanwhile(folder):
    reader, seen = Held(folder), []

    def read():
        path = reader.now(folder / "file")
        if len(seen) < 3:
            replace(folder, "new")
        seen.append(path.read_text())
        return seen[-1]

    assert reader.read(read) == "0"
    assert "0" in seen


def test_errors_of_reading_pass_as_they_are_where_nothing_was_moved(folder):
    with pytest.raises(FileNotFoundError):
        Held(folder).read(lambda: (folder / "other").read_text())
    with pytest.raises(FileNotFoundError):
        opened(folder, lambda folder, held: (folder / "other").read_text())
    assert UNHELD.read(lambda: UNHELD.now(folder / "file")) == folder / "file"


def test_opening_is_done_again_if_the_folder_is_replaced_meanwhile(folder):
    seen = []

    def read(folder, held):
        seen.append((folder / "file").read_text())
        if len(seen) == 1:
            replace(folder, "1")
        if len(seen) == 2:
            replace(folder, "2")
            raise LtxError("mixed")
        return held, (folder / "file").read_text()

    held, text = opened(folder, read)
    assert (held.stands, text, seen) == (True, "2", ["0", "1", "2"])


def test_where_folders_cannot_be_locked_it_is_told_that_one_was_replaced(folder, monkeypatch):
    monkeypatch.setattr(holding, "lock_of", lambda path, shared: Lock(None))
    reader = Held(folder)
    assert reader.now(folder / "file") == folder / "file"
    replace(folder, "1")
    with pytest.raises(LtxError, match="demo was replaced while it was read - run the command again"):
        reader.now(folder / "file")


@pytest.mark.skipif(os.name != "posix", reason="Windows does not remove the working directory of a process")
def test_the_runtime_can_be_imported_where_the_working_directory_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    program = "import os; os.rmdir(os.getcwd()); import ltx_runtime.replacing.held"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "gone", env=environment, check=True)


def test_a_copy_of_a_held_folder_such_as_another_process_gets_closes_nothing_of_this_one(folder):
    held = Held(folder)
    for _ in range(3):
        copy = pickle.loads(pickle.dumps(held))
        assert copy.stands
        copy.release()
    held.release()  # its descriptor is still its own, or this fails
