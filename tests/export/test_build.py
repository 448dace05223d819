"""The exporter as a whole: complete folders for every release, or nothing at all."""

import errno
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.networks import RELATIVE_L2
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples.tiny import Exported, export, tiny

from ltx_export.build import DEFAULT_PRECISIONS
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, Sources
from ltx_export.weights import staging
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.spec.presets import Schedule
from ltx_runtime.spec.versions import VERSIONS

EVERY_RELEASE = pytest.mark.parametrize("name", VERSIONS)
CHECKPOINT_FILE = "checkpoint.safetensors"
LINKS = {"checkpoint": CHECKPOINT_FILE, "text_encoder": TEXT_ENCODER_FILE, "tokenizer": TOKENIZER_FILE}


def with_header(release: Exported, folder: Path, change) -> Sources:
    """Returns the sources with a checkpoint whose header is changed by `change` (None: no header)."""
    with safe_open(release.sources.checkpoint, "pt") as file:
        header = change(json.loads(file.metadata()["config"]))
    metadata = None if header is None else {"config": json.dumps(header)}
    save_file(load_file(release.sources.checkpoint), folder / "changed.safetensors", metadata)
    return replace(release.sources, checkpoint=folder / "changed.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@EVERY_RELEASE
def test_every_release_becomes_a_folder_that_the_runtime_accepts(exported, name):
    release = exported(name)
    engines = open_engines(release.folder)
    assert engines.manifest == release.manifest
    assert engines.manifest.version == name
    assert engines.manifest.causal_positions == VERSIONS[name].causal_positions
    upsampler = ["upsampler"] if len(VERSIONS[name].passes) == 2 else []
    assert list(engines.manifest.components) == [
        "text_encoder",
        "vae_encoder",
        "transformer",
        *upsampler,
        "vae_decoder",
    ]
    assert engines.manifest.allowed_sigmas == VERSIONS[name].allowed_sigmas
    listed = {*engines.manifest.files, MANIFEST}
    assert {path.name for path in release.folder.iterdir()} == listed
    for component, entry in engines.manifest.components.items():
        assert entry.recorded == f"{component}.recorded.npz"
        assert {entry.recorded, *entry.weights} <= listed
        assert max(entry.parity.relative_l2) <= RELATIVE_L2
        assert set(entry.graphs.values()) <= listed


@EVERY_RELEASE
def test_rotary_frequencies_in_the_manifest_are_the_float32_numbers_that_torch_computes(exported, name):
    release = exported(name)
    rope = open_engines(release.folder).manifest.rope
    expected = 10000 ** torch.linspace(0, 1, release.version.transformer.width // 6) * math.pi / 2
    assert torch.equal(torch.tensor(rope.frequencies, dtype=torch.float32), expected)
    assert rope.max_position == (20.0, 2048.0, 2048.0)


@pytest.mark.parametrize("source", LINKS)
def test_weights_are_linked_not_copied_on_one_file_system(exported, source):
    release = exported("0.9.0")
    original, placed = getattr(release.sources, source), release.folder / LINKS[source]
    assert placed.stat().st_ino == original.stat().st_ino
    assert not placed.is_symlink()


def test_weights_given_by_a_symlink_are_placed_as_the_file_itself(exported, tmp_path):
    release = exported("0.9.0")
    link = tmp_path / "link.safetensors"
    link.symlink_to(release.sources.checkpoint)
    export(release.version, replace(release.sources, checkpoint=link), tmp_path / "out")
    placed = tmp_path / "out" / CHECKPOINT_FILE
    assert not placed.is_symlink()
    assert placed.stat().st_ino == release.sources.checkpoint.stat().st_ino


def test_weights_are_copied_where_no_link_can_be_made(exported, tmp_path, monkeypatch):
    def refuses(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    release = exported("0.9.0")
    monkeypatch.setattr(os, "link", refuses)
    export(release.version, release.sources, tmp_path / "out")
    for source, name in LINKS.items():
        original, placed = getattr(release.sources, source), tmp_path / "out" / name
        assert placed.stat().st_ino != original.stat().st_ino
        assert placed.read_bytes() == original.read_bytes()
    open_engines(tmp_path / "out")


@pytest.mark.parametrize(("name", "causal"), [("0.9.0", True), ("0.9.5", False)])
def test_the_positions_and_the_schedule_of_the_header_win_over_those_of_the_release(exported, tmp_path, name, causal):
    def change(header):
        header["transformer"]["causal_temporal_positioning"] = causal
        header["scheduler"] = {"shifting": "SD3", "target_shift_terminal": 0.25}
        return header

    release = exported(name)
    assert VERSIONS[name].causal_positions != causal
    manifest = export(release.version, with_header(release, tmp_path, change), tmp_path / "out")
    assert manifest.causal_positions == causal
    assert manifest.schedule == Schedule("Uniform", "SD3", 0.25)
    assert open_engines(tmp_path / "out").manifest == manifest


@pytest.mark.parametrize("name", ["0.9.0", "0.9.5"])
def test_a_checkpoint_without_a_header_is_what_its_release_says(exported, tmp_path, name):
    release = exported(name)
    manifest = export(release.version, with_header(release, tmp_path, lambda header: None), tmp_path / "out")
    said = VERSIONS[name]
    assert (manifest.causal_positions, manifest.schedule) == (said.causal_positions, said.schedule)
    signatures = [{n: c.signature for n, c in m.components.items()} for m in (manifest, release.manifest)]
    assert signatures[0] == signatures[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_weights_may_be_stored_in_any_float_dtype_and_stay_in_it(exported, tmp_path, dtype):
    release = exported("0.9.1")
    for source in ("checkpoint", "text_encoder"):
        with safe_open(getattr(release.sources, source), "pt") as file:
            stored = {name: values.to(dtype) for name, values in load_file(getattr(release.sources, source)).items()}
            save_file(stored, tmp_path / f"{source}.safetensors", file.metadata())
    given = {source: tmp_path / f"{source}.safetensors" for source in ("checkpoint", "text_encoder")}
    sources = replace(release.sources, **given)
    manifest = export(release.version, sources, tmp_path / "out")
    assert all(max(entry.parity.relative_l2) <= RELATIVE_L2 for entry in manifest.components.values())
    assert (tmp_path / "out" / CHECKPOINT_FILE).read_bytes() == given["checkpoint"].read_bytes()


def test_weights_may_begin_at_an_odd_byte(exported, tmp_path):
    release = exported("0.9.0")
    raw = release.sources.checkpoint.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length] + b" " * (1 + length % 2)
    odd = tmp_path / "odd.safetensors"
    odd.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    assert (8 + len(header)) % 2 == 1
    manifest = export(release.version, replace(release.sources, checkpoint=odd), tmp_path / "out")
    assert all(max(entry.parity.relative_l2) <= RELATIVE_L2 for entry in manifest.components.values())


def test_an_older_header_without_positions_means_those_of_the_release(exported, tmp_path):
    def change(header):
        del header["transformer"]["causal_temporal_positioning"]
        return header

    release = exported("0.9.0")
    assert not export(release.version, with_header(release, tmp_path, change), tmp_path / "out").causal_positions


def test_what_is_done_is_reported_once_per_component_and_step(exported, tmp_path):
    release, lines = exported("0.9.0"), []
    export(release.version, release.sources, tmp_path / "out", DEFAULT_PRECISIONS, lines.append)
    told = iter(lines)
    for component in ("vae_encoder", "vae_decoder", "text_encoder", "transformer"):
        graphs = ", ".join(f"{component}.{precision}.onnx" for precision in DEFAULT_PRECISIONS)
        assert re.fullmatch(rf"{component}: traced to \d+ nodes in [\d.]+ s", next(told))
        assert re.fullmatch(rf"{component}: relative L2 [\d.e-]+, [\d.e-]+ to PyTorch", next(told))
        assert re.fullmatch(rf"{component}: {re.escape(graphs)}, [\d.]+ s in all", next(told))
    assert list(told) == []


STOPS = [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]


def stopping(exception: BaseException, at: int):
    """Returns a report function that raises at line number `at`."""
    lines = []

    def report(line: str) -> None:
        lines.append(line)
        if len(lines) == at:
            raise exception

    return report


@pytest.mark.parametrize("at", [1, 2, 6, 9])
@pytest.mark.parametrize("exception", STOPS, ids=["interrupted", "disk_full"])
def test_an_export_that_is_stopped_leaves_nothing_behind(exported, tmp_path, exception, at):
    release = exported("0.9.0")
    root = tmp_path / "engines"
    with pytest.raises((type(exception), LtxError)):
        export(release.version, release.sources, root / "0.9.0", report=stopping(exception, at))
    assert not root.exists() or list(root.iterdir()) == []
    assert all(getattr(release.sources, source).is_file() for source in LINKS)


@pytest.mark.parametrize("exception", STOPS, ids=["interrupted", "disk_full"])
def test_an_export_that_is_stopped_keeps_the_complete_folder_of_before(exported, tmp_path, exception):
    release = exported("0.9.0")
    root = tmp_path / "engines"
    export(release.version, release.sources, root / "0.9.0")
    before = contents(root)
    with pytest.raises((type(exception), LtxError)):
        export(release.version, release.sources, root / "0.9.0", report=stopping(exception, 6))
    assert contents(root) == before
    open_engines(root / "0.9.0")


@pytest.mark.parametrize("exception", STOPS, ids=["interrupted", "disk_full"])
def test_even_the_last_renaming_can_fail_without_losing_the_folder_of_before(
    exported, tmp_path, monkeypatch, exception
):
    release = exported("0.9.0")
    root = tmp_path / "engines"
    export(release.version, release.sources, root / "0.9.0")
    before = contents(root)

    def fails(new: Path, old: Path) -> None:
        raise exception

    monkeypatch.setattr(staging, "exchanged", fails)
    with pytest.raises((type(exception), LtxError)):
        export(release.version, release.sources, root / "0.9.0")
    assert contents(root) == before


def test_a_new_export_replaces_the_old_folder_whole(exported, tmp_path):
    release = exported("0.9.0")
    folder = tmp_path / "0.9.0"
    export(release.version, release.sources, folder)
    (folder / "stray.engine").write_bytes(b"old")
    export(release.version, release.sources, folder)
    assert not (folder / "stray.engine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["0.9.0"]


@pytest.mark.parametrize("source", ["checkpoint", "text_encoder"])
def test_a_truncated_file_is_refused_before_anything_is_written(exported, tmp_path, source):
    release = exported("0.9.0")
    raw = getattr(release.sources, source).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(raw[:-1])
    sources = replace(release.sources, **{source: tmp_path / "cut.safetensors"})
    with pytest.raises(LtxError, match=r"cut\.safetensors is truncated"):
        export(release.version, sources, tmp_path / "engines" / "0.9.0")
    assert not (tmp_path / "engines").exists()


def test_a_text_encoder_of_another_width_is_refused(exported, tmp_path):
    release = exported("0.9.0")
    wider = replace(release.version, text_encoder=replace(release.version.text_encoder, width=40))
    write_random_weights(wider, tmp_path)
    sources = replace(release.sources, text_encoder=tmp_path / TEXT_ENCODER_FILE)
    with pytest.raises(LtxError, match=r"width 40.*width 32"):
        export(release.version, sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "meant"), [("0.9.0", "0.9.1"), ("0.9.5", "0.9.0"), ("0.9.1", "0.9.5")])
def test_the_checkpoint_of_another_release_without_a_header_is_refused(exported, tmp_path, given, meant):
    sources = with_header(exported(given), tmp_path, lambda header: None)
    with pytest.raises(
        LtxError, match=rf"vae\.\w+ is .*, but {re.escape(meant)} has .* - use the checkpoint's own version name"
    ):
        export(tiny(meant), sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Changes of a header, by part, that its tensors contradict, and how they are refused; no release has such networks.
CONTRADICTIONS = [
    ("transformer", {"num_layers": 3}, r"transformer lacks 25 tensors \(transformer_blocks\.2\."),
    ("transformer", {"num_layers": 1}, r"transformer has 25 unexpected tensors \(transformer_blocks\.1\."),
    ("transformer", {"attention_head_dim": 18}, r"transformer\.cross_attention_dim is 32, but only 36 is supported"),
    (
        "transformer",
        {"attention_head_dim": 18, "cross_attention_dim": 36},
        r"transformer has \d+ wrongly shaped tensors \(scale_shift_table \[2, 32\] instead of \[2, 36\]",
    ),
    ("vae", {"timestep_conditioning": False}, r"vae_decoder has 26 unexpected tensors \(decoder\.last_scale_shift_"),
    ("vae", {"decoder_blocks": [["res_x", {"num_layers": 1}]]}, r"vae_decoder has 33 unexpected tensors \("),
]


@pytest.mark.parametrize(("part", "change", "told"), CONTRADICTIONS)
def test_a_header_that_its_tensors_contradict_is_refused_by_what_does_not_fit(exported, tmp_path, part, change, told):
    release = exported("0.9.5")
    sources = with_header(release, tmp_path, lambda header: {**header, part: {**header[part], **change}})
    with pytest.raises(LtxError, match=told):
        export(release.version, sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "change", "field"),
    [
        ("transformer", {"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 64}, "num_layers"),
        ("transformer", {"num_layers": 48, "num_attention_heads": 32, "attention_head_dim": 128}, "num_layers"),
    ],
)
def test_a_header_of_another_release_is_refused_by_the_field_that_differs(exported, tmp_path, part, change, field):
    release = exported("0.9.5")
    sources = with_header(release, tmp_path, lambda header: {**header, part: {**header[part], **change}})
    with pytest.raises(
        LtxError, match=f"{field} is .*, but 0.9.5 has .* - use the checkpoint's own version name, such"
    ):
        export(release.version, sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_none_or_knows_more_than_the_text_encoder_is_refused(exported, tmp_path):
    release = exported("0.9.5")
    (tmp_path / "text").write_text("no model")
    with pytest.raises(LtxError, match="is not T5's SentencePiece model"):
        export(release.version, replace(release.sources, tokenizer=tmp_path / "text"), tmp_path / "out")
    small = replace(release.version, text_encoder=replace(release.version.text_encoder, vocabulary=200))
    write_random_weights(small, tmp_path / "small")
    sources = replace(release.sources, text_encoder=tmp_path / "small" / TEXT_ENCODER_FILE)
    with pytest.raises(LtxError, match="pieces, but the text encoder knows 200"):
        export(release.version, sources, tmp_path / "out")
