"""Files in huggingface_hub's shared cache are used and never changed."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from fakes.hub_server import RELEASE, SHARDS, UPSCALER, WITH_GGUF, Fault, bring, found, lent_hub

from ltx_export.sources.download import TEXT_ENCODER_INDEX, TOKENIZER
from ltx_runtime.errors import LtxError

CHECKPOINT = RELEASE.checkpoint
READS_IT = f"{CHECKPOINT}: computing its checksum"
hub = pytest.fixture(lent_hub)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def cached(name, revision=None):
    """Lets the library put a file into the shared cache; returns the file, not the link to it."""
    from huggingface_hub import hf_hub_download

    repository = "tests/video" if name in (CHECKPOINT, UPSCALER) else "tests/text"
    return Path(hf_hub_download(repository, name, revision=revision)).resolve()


def without_links(monkeypatch):
    """Makes hard links fail, as between two file systems."""

    def refuses(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuses)


@pytest.mark.parametrize("linkable", [True, False], ids=["linked", "copied"])
def test_files_in_the_shared_cache_are_not_fetched_again(hub, folder, monkeypatch, linkable):
    blob = cached(CHECKPOINT)
    hub.requests.clear()
    if not linkable:
        without_links(monkeypatch)
    assert f"{CHECKPOINT}: taken from {blob}" in bring(folder)
    assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}
    assert CHECKPOINT not in {one.name for one in hub.asked("GET")}
    assert blob.samefile(folder / CHECKPOINT) == linkable
    assert f"{CHECKPOINT}: already present" in bring(folder)


def test_what_a_killed_download_had_just_taken_is_in_nobodys_way(hub, folder):
    blob = cached(CHECKPOINT)
    leftover = folder / ".cache/huggingface/download" / f"{CHECKPOINT}.{blob.name}.taken"
    leftover.parent.mkdir(parents=True)
    os.link(blob, leftover)
    bring(folder)
    assert blob.samefile(folder / CHECKPOINT)
    assert not leftover.exists()


def test_a_copy_from_the_cache_needs_room(hub, folder, monkeypatch):
    cached(CHECKPOINT)
    without_links(monkeypatch)
    nearly = shutil.disk_usage(folder.parent)._replace(free=49_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly)
    monkeypatch.setattr(shutil, "copyfile", None)
    with pytest.raises(LtxError, match="free some space"):
        bring(folder)


def test_a_file_cached_for_the_newest_commit_alone_is_used(hub, folder):
    cached(CHECKPOINT, hub.commit)
    hub.requests.clear()
    bring(folder)
    assert CHECKPOINT not in {one.name for one in hub.asked("GET")}


def test_a_cached_file_is_used_though_its_repository_has_a_newer_commit(hub, folder):
    cached(CHECKPOINT)
    hub.publish("tests/video", "README.md", b"newer")
    hub.requests.clear()
    bring(folder)
    assert CHECKPOINT not in {one.name for one in hub.asked("GET")}


@pytest.mark.parametrize(("how", "reads"), [("damaged", 2), ("outdated", 1), ("truncated", 1)])
def test_a_cached_file_that_is_not_the_hubs_is_fetched_and_left_alone(hub, folder, how, reads):
    blob, content = cached(CHECKPOINT), hub.contents[CHECKPOINT]
    if how == "outdated":
        content = hub.publish("tests/video", CHECKPOINT, content[::-1]).content
    else:
        blob.write_bytes(bytes(len(content)) if how == "damaged" else content[:100])
    before = blob.read_bytes()
    lines = bring(folder)
    assert found(folder)[CHECKPOINT] == content
    assert blob.read_bytes() == before
    assert list(folder.rglob("*.taken")) == []
    assert lines.count(READS_IT) == reads


@pytest.mark.parametrize("damaged", [False, True])
def test_a_partial_file_and_a_cached_one_do_not_meet(hub, folder, damaged):
    hub.faults = [Fault(CHECKPOINT, break_at=30_720)]
    with pytest.raises(LtxError):
        bring(folder)
    hub.faults.clear()
    blob = cached(CHECKPOINT)
    if damaged:
        blob.write_bytes(bytes(50_000))
    before = blob.read_bytes()
    hub.requests.clear()
    bring(folder)
    assert found(folder)[CHECKPOINT] == hub.contents[CHECKPOINT]
    assert blob.read_bytes() == before
    starts = [one.start for one in hub.asked("GET", "storage") if one.name == CHECKPOINT]
    assert starts == ([30_720] if damaged else [])
    assert list(folder.rglob("*.incomplete")) == []


def test_offline_the_shared_cache_completes_a_folder(hub, folder, monkeypatch):
    names = (CHECKPOINT, UPSCALER, TOKENIZER, TEXT_ENCODER_INDEX, *SHARDS)
    blobs = [cached(name) for name in names]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    bring(folder, "bf16")
    assert found(folder) == {name: hub.contents[name] for name in names}
    assert hub.requests == []
    record = (folder / ".cache/huggingface/download" / f"{SHARDS[0]}.metadata").read_text()
    assert record.startswith(f"{hub.commit}\n")
    (folder / SHARDS[1]).unlink()
    blobs[-1].write_bytes(b"damaged")
    with pytest.raises(LtxError, match=SHARDS[1]):
        bring(folder, "bf16")
