"""Downloads to the weights folder from a local hub that breaks off, changes files, or sends wrong ones."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
from fakes.hub_server import GGUF, RELEASE, SHARDS, UPSCALER, WITH_GGUF, Fault, bring, checksum_of, found, lent_hub

from ltx_export.sources.download import GGUF_REPOSITORY, T5_CHOICES, TEXT_ENCODER_INDEX, TOKENIZER, download, files_of
from ltx_runtime.errors import LtxError
from ltx_runtime.hub import folder as module
from ltx_runtime.spec.versions import VERSIONS

CHECKPOINT = RELEASE.checkpoint
STATE = ".cache/huggingface/download"
hub = pytest.fixture(lent_hub)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def partial(folder, name, content):
    return folder / STATE / f"{name}.{checksum_of(content, in_lfs=True)}.incomplete"


def test_the_files_of_a_release_keep_the_names_that_its_repositories_give_them():
    release = VERSIONS["0.9.8-13b-dev"]
    video, text = "Lightricks/LTX-Video", "PixArt-alpha/PixArt-XL-2-1024-MS"
    places = [(file.repository, file.name) for file in files_of(release, "bf16")]
    assert places == [
        (video, "ltxv-13b-0.9.8-dev.safetensors"),
        (video, "ltxv-spatial-upscaler-0.9.8.safetensors"),
        (text, "tokenizer/spiece.model"),
        (text, "text_encoder/model.safetensors.index.json"),
    ]
    assert all(file.target == file.name for t5 in T5_CHOICES for file in files_of(release, t5))


@pytest.mark.parametrize("version", [one for one in VERSIONS.values() if one.repository], ids=lambda one: one.name)
def test_every_published_release_has_its_checkpoint_and_its_upscaler_if_it_has_one(version):
    names = {file.name for file in files_of(version, "Q8_0") if file.repository == version.repository}
    assert names == {version.checkpoint, version.upscaler} - {None}


@pytest.mark.parametrize("t5", sorted(set(T5_CHOICES) - {"bf16"}))
def test_a_quantized_text_encoder_is_one_file_of_its_own_repository(t5):
    (file,) = (file for file in files_of(RELEASE, t5) if file.repository == GGUF_REPOSITORY)
    assert file.name == f"t5-v1_1-xxl-encoder-{t5}.gguf"


def test_a_release_that_is_not_published_is_refused_with_the_command_that_exports_it(tmp_path):
    with pytest.raises(LtxError, match=r"come with this program.*ltx-export onnx demo"):
        download(VERSIONS["demo"], tmp_path / "weights", "bf16", print)
    assert not (tmp_path / "weights").exists()


def test_an_unknown_text_encoder_is_refused_with_the_known_ones():
    with pytest.raises(LtxError) as refused:
        files_of(RELEASE, "Q2_K")
    assert all(name in str(refused.value) for name in ("'Q2_K'", *T5_CHOICES))


def test_a_download_brings_every_file_byte_for_byte(hub, folder):
    lines = bring(folder)
    assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in WITH_GGUF)


def test_of_a_text_encoder_in_shards_come_the_index_and_the_shards_it_names(hub, folder):
    hub.publish("tests/text", "text_encoder/model-00009-of-00009.safetensors", b"of no index")
    lines = bring(folder, "bf16")
    wanted = (CHECKPOINT, UPSCALER, TOKENIZER, TEXT_ENCODER_INDEX, *SHARDS)
    assert found(folder) == {name: hub.contents[name] for name in wanted}
    assert "float32" in lines[-1]


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "C:x.safetensors", "x.py", 5]
)
def test_an_index_that_names_anything_but_plain_files_is_refused(hub, folder, name):
    hub.publish("tests/text", TEXT_ENCODER_INDEX, json.dumps({"weight_map": {"a": name}}).encode(), in_lfs=False)
    with pytest.raises(LtxError, match="is not an index"):
        bring(folder, "bf16")
    assert set(found(folder)) == {TEXT_ENCODER_INDEX}


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'{"weight_map": {}}', b'{"weight_map": {"a": []}}'])
def test_an_index_without_files_is_refused(hub, folder, content):
    hub.publish("tests/text", TEXT_ENCODER_INDEX, content, in_lfs=False)
    with pytest.raises(LtxError, match="is not an index"):
        bring(folder, "bf16")


def test_a_complete_folder_is_neither_fetched_nor_read_again(hub, folder, monkeypatch):
    bring(folder, "bf16")
    gets = len(hub.asked("GET"))
    monkeypatch.setattr(module, "checksum_like", None)
    lines = bring(folder, "bf16")
    assert len(hub.asked("GET")) == gets
    assert sum(line.endswith(": already present") for line in lines) == 6


def test_files_from_elsewhere_are_read_once_and_then_trusted(hub, folder, monkeypatch):
    for name in WITH_GGUF:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(hub.contents[name])
    assert sum("checksum verified" in line for line in bring(folder)) == 4
    assert hub.asked("GET") == []
    monkeypatch.setattr(module, "checksum_like", None)
    bring(folder)


def test_what_the_librarys_own_download_brought_is_trusted_and_the_other_way_round(hub, folder):
    from huggingface_hub import hf_hub_download

    for repository, name in (("tests/video", CHECKPOINT), (GGUF_REPOSITORY, GGUF)):
        hf_hub_download(repository, name, local_dir=folder)
    lines = bring(folder)
    assert [line for line in lines if line.startswith((CHECKPOINT, GGUF))] == [
        f"{CHECKPOINT}: already present",
        f"{GGUF}: already present",
    ]
    gets = len(hub.asked("GET"))
    hf_hub_download("tests/text", TOKENIZER, local_dir=folder)
    hf_hub_download("tests/video", UPSCALER, local_dir=folder)
    assert len(hub.asked("GET")) == gets


@pytest.mark.parametrize("wrong", [bytes(50_000), b"short"], ids=["same size", "other size"])
@pytest.mark.parametrize("was_downloaded", [True, False])
def test_a_file_that_somebody_has_changed_is_refused_and_left_alone(hub, folder, wrong, was_downloaded):
    folder.mkdir()
    if was_downloaded:
        bring(folder)
    (folder / CHECKPOINT).write_bytes(wrong)
    later = (folder / CHECKPOINT).stat().st_mtime + 60
    os.utime(folder / CHECKPOINT, (later, later))
    gets = len(hub.asked("GET"))
    with pytest.raises(LtxError, match=f"{CHECKPOINT} is not the hub's file, .* - move it away, or delete it"):
        bring(folder)
    assert (folder / CHECKPOINT).read_bytes() == wrong
    assert len(hub.asked("GET")) == gets
    (folder / CHECKPOINT).unlink()
    bring(folder)
    assert found(folder)[CHECKPOINT] == hub.contents[CHECKPOINT]


def test_a_complete_file_that_is_published_anew_is_fetched_anew(hub, folder):
    bring(folder)
    changed = hub.publish("tests/video", CHECKPOINT, hub.contents[CHECKPOINT][::-1]).content
    bring(folder)
    assert found(folder)[CHECKPOINT] == changed


def test_a_damaged_record_means_that_the_file_is_read_again(hub, folder):
    bring(folder)
    (folder / STATE / f"{CHECKPOINT}.metadata").write_text("no record")
    assert f"{CHECKPOINT}: already present, checksum verified" in bring(folder)


def test_too_small_a_disk_is_refused_before_anything_is_fetched(hub, folder, monkeypatch):
    hub.claimed_sizes[CHECKPOINT] = 28_600_000_000
    free = shutil.disk_usage(folder.parent)._replace(free=5_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(LtxError, match=r"needs 28\.60 GB more, but only 5\.00 GB are free"):
        bring(folder)
    assert hub.asked("GET") == []


def test_only_what_is_missing_needs_room(hub, folder, monkeypatch):
    def usage(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=free))

    real = shutil.disk_usage(folder.parent)
    usage(sum(len(hub.contents[name]) for name in WITH_GGUF))
    bring(folder)
    (folder / CHECKPOINT).unlink()
    partial(folder, CHECKPOINT, hub.contents[CHECKPOINT]).write_bytes(hub.contents[CHECKPOINT][:20_000])
    usage(29_999)
    with pytest.raises(LtxError, match="free some space"):
        bring(folder)
    usage(30_000)
    bring(folder)
    assert found(folder)[CHECKPOINT] == hub.contents[CHECKPOINT]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_broken_connections_are_resumed_as_long_as_something_arrives(hub, folder, reset):
    hub.faults = [Fault(CHECKPOINT, 1, break_at=4096 * n, reset=reset) for n in range(1, 9)]
    bring(folder)
    assert found(folder)[CHECKPOINT] == hub.contents[CHECKPOINT]
    starts = [one.start for one in hub.asked("GET", "storage") if one.name == CHECKPOINT]
    assert starts[0] is None
    assert starts[1:] == [4096 * n for n in range(1, 9)]


def test_a_dead_connection_leaves_a_partial_file_which_the_next_run_completes(hub, folder):
    hub.faults = [Fault(CHECKPOINT, break_at=30_720)]
    with pytest.raises(LtxError, match=r"kept - run the command again"):
        bring(folder)
    assert CHECKPOINT not in found(folder)
    assert len(hub.asked("GET")) < 40
    assert partial(folder, CHECKPOINT, hub.contents[CHECKPOINT]).read_bytes() == hub.contents[CHECKPOINT][:30_720]
    hub.faults, hub.bytes_sent = [], 0
    bring(folder)
    assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}
    assert hub.bytes_sent == sum(len(hub.contents[name]) for name in WITH_GGUF) - 30_720
    assert list(folder.rglob("*.incomplete")) == []


def test_a_file_that_changes_between_two_runs_is_fetched_whole(hub, folder):
    hub.faults = [Fault(CHECKPOINT, break_at=30_720)]
    with pytest.raises(LtxError):
        bring(folder)
    changed = hub.publish("tests/video", CHECKPOINT, hub.contents[CHECKPOINT][::-1]).content
    with pytest.raises(LtxError):
        bring(folder)
    assert list(folder.rglob("*.incomplete")) == [partial(folder, CHECKPOINT, changed)]
    hub.faults = []
    bring(folder)
    assert found(folder)[CHECKPOINT] == changed
    assert list(folder.rglob("*.incomplete")) == []


def test_a_file_that_changes_while_it_is_fetched_stays_the_one_that_was_asked_for(hub, folder):
    def changes(line):
        if line.startswith(CHECKPOINT):
            hub.publish("tests/video", CHECKPOINT, b"newer")

    download(RELEASE, folder, "Q8_0", changes)
    assert found(folder)[CHECKPOINT] == hub.contents[CHECKPOINT]


@pytest.mark.parametrize("name", [CHECKPOINT, TEXT_ENCODER_INDEX], ids=["in LFS", "in git"])
def test_wrong_bytes_are_deleted_and_refused_and_the_next_run_repairs_it(hub, folder, name):
    flipped = bytearray(hub.contents[name])
    flipped[len(flipped) // 2] ^= 1
    hub.send_instead[name.rpartition("/")[2]] = bytes(flipped)
    with pytest.raises(LtxError, match=r"wrong checksum and was deleted - run the command again"):
        bring(folder, "bf16")
    assert name not in found(folder)
    assert list(folder.rglob("*.incomplete")) == []
    hub.send_instead.clear()
    bring(folder, "bf16")
    assert found(folder)[name] == hub.contents[name]


def test_a_resume_that_meets_other_bytes_makes_no_mixed_file(hub, folder):
    hub.faults = [Fault(CHECKPOINT, break_at=30_720)]
    with pytest.raises(LtxError):
        bring(folder)
    hub.faults, hub.send_instead[CHECKPOINT] = [], hub.contents[CHECKPOINT][::-1]
    with pytest.raises(LtxError, match="wrong checksum"):
        bring(folder)
    assert CHECKPOINT not in found(folder)
    hub.send_instead.clear()
    bring(folder)
    assert found(folder)[CHECKPOINT] == hub.contents[CHECKPOINT]


@pytest.mark.parametrize("kept", [20_000, 60_000], ids=["the hub ignores ranges", "the partial file is too long"])
def test_a_partial_file_that_can_not_be_continued_is_begun_anew(hub, folder, kept):
    hub.ignores_ranges = kept < len(hub.contents[CHECKPOINT])
    file = partial(folder, CHECKPOINT, hub.contents[CHECKPOINT])
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(kept))
    bring(folder)
    assert found(folder)[CHECKPOINT] == hub.contents[CHECKPOINT]


def test_a_full_disk_during_the_transfer_is_refused_and_what_arrived_is_kept(hub, folder, monkeypatch):
    def fills_up(url, out, **_):
        out.write(b"something")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fills_up)
    with pytest.raises(LtxError, match="free some space"):
        bring(folder)
    assert [path.read_bytes() for path in folder.rglob("*.incomplete")] == [b"something"]


def test_two_downloads_into_one_folder_do_not_meet(hub, folder):
    from huggingface_hub.utils import WeakFileLock

    (folder / STATE).mkdir(parents=True)
    with WeakFileLock(folder / STATE / "ltx-export.lock"), pytest.raises(LtxError, match="another download"):
        bring(folder)
    bring(folder)


def test_a_release_without_an_upscaler_asks_for_none(hub, folder):
    bring(folder, release=replace(RELEASE, upscaler=None))
    assert set(found(folder)) == {CHECKPOINT, TOKENIZER, GGUF}


def test_an_empty_file_is_a_file(hub, folder):
    hub.publish("tests/text", TOKENIZER, b"")
    bring(folder)
    assert found(folder)[TOKENIZER] == b""
