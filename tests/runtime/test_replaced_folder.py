"""A run ends with the version folder with which it began, even if an export replaces that meanwhile."""

import sys

import pytest
from fakes.stages import write_engines

from ltx_runtime import LtxError, Pipeline
from ltx_runtime.files import Lock, lock_of, partial_folder
from ltx_runtime.replacing import held
from ltx_runtime.replacing.exchange import exchanged
from ltx_runtime.sessions import BACKENDS
from ltx_runtime.spec.versions import VERSIONS

SINGLE = VERSIONS["0.9.5"]
SMALL = {"height": 64, "width": 96, "num_frames": 9, "steps": 1, "seed": 1}


@pytest.fixture
def folder(engines):
    return engines(SINGLE)


@pytest.fixture
def loaded(folder, monkeypatch):
    """Returns a list of the files that backends have opened, by their numbers on the disk."""
    module, files = sys.modules[BACKENDS["cpu"].module], []
    load = module.load

    def noting(found):
        files.append(found.path.stat().st_ino)
        return load(found)

    monkeypatch.setattr(module, "load", noting)
    return files


@pytest.fixture
def replace(folder, spiece):
    """Returns a function that replaces the folder like an export."""

    def replaced():
        with partial_folder(folder.parent) as partial:
            write_engines(partial / folder.name, SINGLE, spiece)
            exchanged(partial / folder.name, folder)

    return replaced


def numbers_of(folder):
    return {path.stat().st_ino for path in folder.glob("*.onnx")}


def test_a_run_that_was_planned_ends_with_the_old_folder_and_the_next_one_has_the_new(
    folder, loaded, replace, tmp_path
):
    if not lock_of(folder).keeps_out:
        pytest.skip("folders cannot be locked here")
    old = numbers_of(folder)
    with Pipeline(folder) as pipe:
        video = pipe("a cat", **SMALL)
        replace()
        video.save(tmp_path / "old.mp4")
        assert loaded and {*loaded} <= old
        loaded.clear()
        with Pipeline(folder) as other:
            other("a cat", **SMALL).save(tmp_path / "new.mp4")
        assert loaded and {*loaded} <= numbers_of(folder) - old
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_where_folders_cannot_be_locked_the_run_is_told_in_a_sentence(folder, loaded, replace, tmp_path, monkeypatch):
    monkeypatch.setattr(held, "lock_of", lambda path, shared: Lock(None))
    with Pipeline(folder) as pipe:
        video = pipe("a cat", **SMALL)
        replace()
        with pytest.raises(LtxError, match="was replaced while it was read - run the command again"):
            video.save(tmp_path / "fox.mp4")
    assert loaded == [] and not (tmp_path / "fox.mp4").exists()
