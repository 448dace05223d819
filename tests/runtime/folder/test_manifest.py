"""Laws of the version folder: what was written is read back, and whatever is missing or changed is noticed."""

import hashlib
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from fakes.stages import ROPE

from ltx_runtime.errors import LtxError
from ltx_runtime.folder import reading
from ltx_runtime.folder.commands import export_command
from ltx_runtime.folder.finding import find_folder
from ltx_runtime.folder.manifest import (
    MANIFEST,
    ComponentEntry,
    Manifest,
    Parity,
    checksum,
    describe_files,
    write_manifest,
)
from ltx_runtime.folder.reading import open_engines, read_manifest
from ltx_runtime.spec.components import text_encoder, transformer, vae_decoder
from ltx_runtime.spec.encodings import Rope
from ltx_runtime.spec.presets import SD3, Schedule
from ltx_runtime.trust.made_here import record_link

MIB = 1 << 20
SIGNATURES = (
    text_encoder(6),
    transformer(4, 6, 12, stg_layers=2),
    vae_decoder(4, timestep=True, noise_maps={2: (14, 2), 4: (12, 4)}),
)
FILES = {
    "transformer.fp32.onnx": b"graph",
    "transformer.data": b"weights",
    "transformer.recorded.npz": b"numbers",
    "tokenizer/spiece.model": b"pieces",
}


def write_folder(folder, version="demo"):
    """Writes a complete version folder of a few bytes; returns its manifest."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    parity = Parity((1e-6, 2.5e-6), ({"batch": 1, "tokens": 24}, {"batch": 3, "tokens": 30}), "checkpoint")
    graphs, recorded = {"fp32": "transformer.fp32.onnx"}, "transformer.recorded.npz"
    components = {s.name: ComponentEntry(s, ("transformer.data",), graphs, parity, recorded) for s in SIGNATURES}
    components["vae_decoder"] = ComponentEntry(SIGNATURES[2], ("transformer.data",), {})
    files = describe_files({name: folder / name for name in FILES})
    loras, sigmas = ("fox.safetensors:0.8",), (1.0, 0.9937, 0.4219)
    manifest = Manifest(version, True, SD3, ROPE, "tokenizer/spiece.model", components, files, {}, loras, sigmas)
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "demo")
    return tmp_path / "demo"


@pytest.fixture
def weights(folder):
    """Moves the folder's weights elsewhere, so that it links to them as the user wanted; returns their new path."""
    path = folder.parent / "elsewhere" / "transformer.data"
    path.parent.mkdir()
    (folder / path.name).rename(path)
    edit(folder, lambda data: data["linked"].update({path.name: str(path.parent)}))
    record_link(path, path.stat().st_size, checksum(path))
    return path


def edit(folder, change):
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    written = write_folder(tmp_path / "demo")
    assert read_manifest(tmp_path / "demo") == written
    assert open_engines(tmp_path / "demo").manifest == written


@pytest.mark.parametrize("part", ["no\u00a0break", "ideographic\u3000space", "a\u200djoiner", "\udcff", "deep/" * 300])
def test_whatever_a_user_calls_files_what_is_written_is_read_and_what_would_not_be_read_is_not_written(weights, part):
    folder = weights.parents[1] / "demo"
    linked, loras = {weights.name: str(weights.parent / part)}, (f"{Path(part).name}.safetensors:0.5",)
    write_manifest(folder, written := replace(read_manifest(folder), linked=linked, loras=loras))
    with pytest.raises(LtxError, match=r"is '/a\\nb', not a text .* - rename the file or folder of this"):
        write_manifest(folder, replace(written, linked={weights.name: "/a\nb"}))
    assert read_manifest(folder) == written


def test_only_a_folder_without_a_text_encoder_may_have_no_tokenizer(folder):
    edit(folder, lambda data: data.update(tokenizer=None))
    with pytest.raises(LtxError, match=r"manifest\.json is damaged \(there is a text encoder, but no tokenizer\)"):
        read_manifest(folder)
    edit(folder, lambda data: (data["components"].pop("text_encoder"), data["files"].pop("tokenizer/spiece.model")))
    manifest = open_engines(folder).manifest
    assert manifest.tokenizer is None
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


def test_writing_a_manifest_again_replaces_it_and_leaves_nothing_else(folder):
    names = {path.name for path in folder.iterdir()}
    written = write_folder(folder, version="0.9.5")
    assert read_manifest(folder) == written
    assert {path.name for path in folder.iterdir()} == names


def test_a_manifest_that_can_not_be_written_leaves_the_old_one(folder):
    before = read_manifest(folder)
    with pytest.raises(TypeError):
        write_manifest(folder, Manifest("demo", True, Schedule(), ROPE, "spiece.model", {"bad": object()}))
    assert read_manifest(folder) == before


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 100], ids=len)
def test_the_checksum_of_a_small_file_covers_its_size_and_every_byte(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert checksum(path) == hashlib.sha256(str(len(content)).encode() + content).hexdigest()


@pytest.mark.parametrize("place", [0, MIB - 1, -1, -MIB], ids=["first", "end_of_first", "last", "start_of_last"])
def test_a_change_in_the_first_or_last_mib_of_a_large_file_is_noticed(tmp_path, place):
    path = tmp_path / "large"
    path.touch()
    size = 65 * MIB + 3
    os.truncate(path, size)
    before = checksum(path)
    with path.open("r+b") as file:
        file.seek(place % size)
        file.write(b"x")
    assert checksum(path) != before


def test_the_checksum_of_a_large_file_covers_64_evenly_spaced_mib(tmp_path):
    path = tmp_path / "large"
    content = np.arange(100 * MIB // 4, dtype=np.int32).tobytes() + b"end"
    path.write_bytes(content)
    starts = [(len(content) - MIB) * i // 63 for i in range(64)]
    samples = b"".join(content[start : start + MIB] for start in starts)
    assert checksum(path) == hashlib.sha256(str(len(content)).encode() + samples).hexdigest()


def test_large_files_of_zeros_differ_by_their_size(tmp_path):
    sums = set()
    for size in (65 * MIB, 65 * MIB + 1):
        (tmp_path / "zeros").touch()
        os.truncate(tmp_path / "zeros", size)
        sums.add(checksum(tmp_path / "zeros"))
    assert len(sums) == 2


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_command_that_makes_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(LtxError, match=rf"{name} is missing - run: ltx-export onnx demo"):
        open_engines(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_with_both_sizes(folder, name):
    (folder / name).write_bytes(FILES[name][:-1])
    size = len(FILES[name])
    with pytest.raises(LtxError, match=rf"{name} has {size - 1} bytes instead of {size} - run"):
        open_engines(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_same_size_with_other_bytes_is_named(folder, name):
    (folder / name).write_bytes(FILES[name][::-1])
    with pytest.raises(LtxError, match=rf"{name} has changed since the export - run"):
        open_engines(folder)


def test_a_file_that_a_folder_only_links_to_is_verified_where_it_is(folder, weights):
    engines = open_engines(folder)
    assert engines.manifest.place(folder, "transformer.data") == weights
    assert engines.manifest.place(folder, "transformer.fp32.onnx") == folder / "transformer.fp32.onnx"
    assert engines.weights_folder("transformer") == weights.parent
    weights.write_bytes(b"WEIGHTS")
    with pytest.raises(LtxError, match=rf"{weights} has changed since the export - run"):
        open_engines(folder)


def test_a_linked_file_that_is_gone_is_named_with_where_it_was(folder, weights):
    weights.unlink()
    with pytest.raises(LtxError, match=rf"{weights} is gone, and {folder} only links to it - run: ltx-export"):
        open_engines(folder)


def test_weights_that_are_not_linked_are_in_the_folder_itself(folder):
    assert open_engines(folder).weights_folder("transformer") == folder


def test_a_folder_without_a_manifest_is_incomplete_and_the_message_says_how_to_make_it(tmp_path):
    command = rf"run: ltx-export .*ltx-export onnx 0\.9\.5 --engines {tmp_path}$"
    for folder, way in ((tmp_path, "export the version or get its folder again$"), (tmp_path / "0.9.5", command)):
        with pytest.raises(LtxError, match=rf"holds no manifest\.json.* - {way}"):
            read_manifest(folder)


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "demo").touch()
    with pytest.raises(LtxError, match=r"holds no manifest\.json"):
        read_manifest(tmp_path / "demo")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"format": 1', b"[" * 99_999], ids=len)
def test_what_is_not_json_is_refused(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(LtxError, match=r"manifest\.json is not valid JSON - run: ltx-export "):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["[]", "6", "{}", '{"format": 5}', '{"format": "6"}', '{"format": 7}'])
def test_another_format_is_refused(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(
        LtxError,
        match=r"manifest\.json has another format than 6 - run: ltx-export .* demo --engines .*$",
    ):
        read_manifest(folder)


def test_without_allowed_sigmas_every_level_is(folder):
    edit(folder, lambda data: data.update(allowed_sigmas=[]))
    assert read_manifest(folder).allowed_sigmas == ()


@pytest.mark.parametrize("value", [None, 1, True, ["x"], [[1.0]], {"x": 1}, [10**400]], ids=lambda v: str(v)[:9])
def test_allowed_sigmas_that_are_no_numbers_are_refused(folder, value):
    edit(folder, lambda data: data.update(allowed_sigmas=value))
    with pytest.raises(LtxError, match=r"manifest\.json is damaged .* - run: ltx-export "):
        read_manifest(folder)


@pytest.mark.parametrize(
    "rope",
    [
        None,
        1,
        [],
        {},
        {"frequencies": [1.0]},
        {"frequencies": ["fast"], "max_position": [20.0, 2048.0, 2048.0]},
        {"frequencies": [[1.0]], "max_position": [20.0, 2048.0, 2048.0]},
        {"frequencies": 1.0, "max_position": [20.0, 2048.0, 2048.0]},
        {"frequencies": [1.0], "max_position": [20.0, None, 2048.0]},
        {"frequencies": [1.0], "max_position": [20.0, 2048.0]},
    ],
    ids=str,
)
def test_a_position_embedding_that_is_no_numbers_of_three_axes_is_refused(folder, rope):
    edit(folder, lambda data: data.update(rope=rope))
    with pytest.raises(LtxError, match=r"manifest\.json is damaged .* - run: ltx-export "):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("frequencies", "position"),
    [
        ((), 1.0),
        ((1.0,), 1.0),
        ((1.0, 2.0, 3.0), 1.0),
        ((1.0, float("nan")), 1.0),
        ((1.0, float("inf")), 1.0),
        ((1.0, 2.0), 0.0),
    ],
    ids=str,
)
def test_a_position_embedding_that_does_not_fill_the_width_or_is_not_positive_is_no_position_embedding(
    frequencies, position
):
    signature = transformer(4, 6, 12)
    reading._check_rope(Rope((1.0, 2.0), (20.0, 1.0, 1.0)), signature)
    with pytest.raises(ValueError, match="rope has"):
        reading._check_rope(Rope(frequencies, (20.0, position, 1.0)), signature)


@pytest.mark.parametrize("field", [field.name for field in fields(Manifest)])
def test_a_manifest_without_one_of_its_fields_is_incomplete(folder, field):
    edit(folder, lambda data: data.pop(field))
    with pytest.raises(LtxError, match=rf"damaged .*{field}"):
        read_manifest(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_that_lists_no_checksum_of_a_file_it_names_is_incomplete(folder, name):
    edit(folder, lambda data: data["files"].pop(name))
    with pytest.raises(LtxError, match=rf"damaged .*{name}"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "preview",
    [
        1,
        {},
        {"weights": [[1.0], [1.0]], "bias": [0.0] * 3},
        {"weights": [[1.0], [1.0], [1.0, 2.0]], "bias": [0.0] * 3},
        {"weights": [[1.0]] * 3, "bias": [0.0]},
        {"weights": [["red"]] * 3, "bias": [0.0] * 3},
    ],
    ids=str,
)
def test_colours_of_previews_that_are_no_map_to_three_colours_are_refused(folder, preview):
    edit(folder, lambda data: data["components"]["transformer"].update(preview=preview))
    with pytest.raises(LtxError, match=r"manifest\.json is damaged"):
        read_manifest(folder)


def test_a_component_without_weights_and_positions_of_a_third_kind_are_refused(folder):
    edit(folder, lambda data: data.update(causal_positions="yes"))
    with pytest.raises(LtxError, match="causal_positions is 'yes', not true or false"):
        read_manifest(folder)
    edit(folder, lambda data: data.update(causal_positions=True))
    edit(folder, lambda data: data["components"]["transformer"].update(weights=[]))
    with pytest.raises(LtxError, match=r"transformer\.weights is \[\], not a list"):
        read_manifest(folder)


@pytest.mark.parametrize("field", ["components", "files"])
@pytest.mark.parametrize("value", [None, [], {"x": None}, {"x": {"size": 3}}], ids=str)
def test_a_field_of_another_kind_is_incomplete_too(folder, field, value):
    edit(folder, lambda data: data.update({field: value}))
    with pytest.raises(LtxError, match="damaged"):
        read_manifest(folder)


def test_a_component_that_the_folder_lacks_is_refused_by_name(folder):
    edit(folder, lambda data: data["components"].pop("transformer"))
    engines = open_engines(folder)
    assert engines.component("text_encoder").signature == SIGNATURES[0]
    with pytest.raises(LtxError, match="has no transformer - run: ltx-export onnx demo"):
        engines.component("transformer")


def test_a_version_folder_is_found_by_its_own_path(folder):
    assert find_folder(folder, None) == folder
    assert find_folder(folder, "demo") == folder


def test_another_version_than_the_folder_holds_is_refused(folder):
    with pytest.raises(LtxError, match=r"holds version demo, not 0\.9\.5"):
        find_folder(folder, "0.9.5")


def test_the_only_version_needs_no_name(folder):
    (folder.parent / ".hidden").mkdir()
    (folder.parent / ".hidden" / MANIFEST).touch()
    (folder.parent / "unfinished").mkdir()
    assert find_folder(folder.parent, None) == folder


def test_of_several_versions_one_must_be_named(folder):
    write_folder(folder.parent / "0.9.5", "0.9.5")
    with pytest.raises(LtxError, match=r"several versions - choose one with --version: 0\.9\.5, demo"):
        find_folder(folder.parent, None)
    assert find_folder(folder.parent, "0.9.5") == folder.parent / "0.9.5"


def test_a_version_that_was_not_made_is_refused_with_those_that_were(folder):
    with pytest.raises(
        LtxError,
        match=r"no engines for 0\.9\.1 .*found: demo.*ltx-export download 0\.9\.1.*--fetch .* downloads 10\.8 GB",
    ):
        find_folder(folder.parent, "0.9.1")


@pytest.mark.parametrize("name", ["missing", "."])
@pytest.mark.parametrize(("torch", "way"), [(object(), "ltx-export onnx demo"), (None, "ltx-run --fetch OWNER/NAME")])
def test_a_place_without_versions_is_refused_with_the_way_to_one_on_this_machine(
    tmp_path, monkeypatch, name, torch, way
):
    monkeypatch.setattr("ltx_runtime.folder.commands.find_spec", lambda name: torch)
    with pytest.raises(LtxError, match=way):
        find_folder(tmp_path / name, None)
    with pytest.raises(LtxError, match=r"found: none"):
        find_folder(tmp_path / name, "0.9.1")


def test_the_command_that_makes_a_folder_needs_nothing_but_the_exporter():
    assert export_command("demo") == "ltx-export onnx demo"
    assert export_command("demo", Path("engines").absolute()) == export_command("demo")
    assert export_command("demo", Path("my engines")) == f"{export_command('demo')} --engines 'my engines'"
    assert export_command("0.9.5") == "ltx-export download 0.9.5 --missing && ltx-export onnx 0.9.5"
