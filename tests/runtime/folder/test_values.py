"""Laws of a manifest's values: whatever becomes of one, the manifest is refused in one sentence, or can be used."""

import json
import math
from dataclasses import asdict
from itertools import cycle, islice

import pytest
from fakes.stages import engines_of
from samples.changed_values import VALUES, changed, places_in

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import FORMAT, MANIFEST, FileEntry
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.folder.release import release_of
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Request
from ltx_runtime.spec.versions import VERSIONS


@pytest.fixture(scope="module")
def written(spiece):
    """Returns the manifests of a release of each kind of VAE as JSON has them."""
    manifests = []
    for name in ("0.9.1", "0.9.8-13b-dev"):
        manifest = engines_of(VERSIONS[name], spiece).manifest
        names = {manifest.tokenizer, *(file for entry in manifest.components.values() for file in entry.files())}
        data = {"format": FORMAT, **asdict(manifest), "files": {file: asdict(FileEntry(1, "0")) for file in names}}
        manifests.append(json.loads(json.dumps(data)))
    return manifests


def read(folder, data):
    """Reads a manifest, and plans a video with it."""
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(data))
    manifest = read_manifest(folder)
    plan(Request("a fox"), release_of(manifest), manifest.schedule, manifest.allowed_sigmas)
    return manifest


def test_whatever_one_value_becomes_the_manifest_is_refused_in_one_sentence_or_can_be_used(tmp_path, written):
    refused = 0
    for data in written:
        read(tmp_path / "folder", data)
        values = cycle(VALUES)  # six for each place; the fuzzer tries all
        for place in places_in(data):
            for value in islice(values, 6):
                try:
                    read(tmp_path / "folder", changed(data, place, value))
                except LtxError as error:
                    refused += 1
                    assert "\n" not in str(error) and len(str(error)) < 700, (place, value)
    assert refused > 500


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("schedule.sampler", "Magic", "schedule.sampler is 'Magic', not one of LinearQuadratic, Uniform"),
        ("schedule.target_shift_terminal", math.nan, "target_shift_terminal is nan, not a number"),
        ("rope.frequencies", [math.inf], r"rope.frequencies\[0\] is inf"),
        ("version", ["demo"], r"version is \['demo'\], not a text of up to 1000 characters"),
        ("allowed_sigmas", [2.0], r"allowed_sigmas\[0\] is 2.0, not a number above 0 and up to 1"),
        ("components.upsampler.signature.inputs", [], r"upsampler.signature.inputs is \[\], not a list of 1 to 100"),
        ("components.upsampler.signature.name", "transformer", "signature.name is 'transformer', not upsampler"),
        ("components.transformer.parameters", 10**400, "parameters is 1000.*, not a whole number"),
        ("components.transformer.graphs", {"fp4": "x"}, "graphs has 'fp4', which is none of fp32"),
        ("files", {"a\nb": {"size_bytes": 1, "checksum": "0"}}, r"a name in files is 'a\\nb', not a text of"),
        ("linked", {"x": 1}, "linked.x is 1, not a text of up to 32767 characters"),
    ],
    ids=str,
)
def test_a_value_that_no_export_writes_is_named_with_its_place(tmp_path, written, place, value, reason):
    with pytest.raises(LtxError, match=rf"manifest\.json is damaged \(.*{reason}"):
        read(tmp_path / "folder", changed(written[1], tuple(place.split(".")), value))


@pytest.mark.parametrize("columns", [0, 1, 3, 5])
def test_a_preview_has_a_number_for_each_channel(tmp_path, written, columns):
    channels = written[0]["components"]["vae_encoder"]["signature"]["outputs"][0]["axes"][1] // 2
    place = ("components", "vae_encoder", "preview")
    colours = {"weights": [[0.5] * channels] * 3, "bias": [0.0] * 3}
    assert read(tmp_path / "folder", changed(written[0], place, colours)).components["vae_encoder"].preview is not None
    colours["weights"] = [[0.5] * columns] * 3
    with pytest.raises(LtxError, match=f"preview has {columns} columns for latents of {channels} channels"):
        read(tmp_path / "folder", changed(written[0], place, colours))


def test_a_graph_of_integers_that_is_not_there_is_refused(tmp_path, written):
    quantized = {"q8": {"weights": ["x"], "error": 0.0}}
    with pytest.raises(LtxError, match="quantized has q8, of which there is no graph"):
        read(tmp_path / "folder", changed(written[0], ("components", "transformer", "quantized"), quantized))
