"""Where weights end up: linked, left in place, or rewritten; and that a folder needs no file that it does not name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.networks import distance
from safetensors.torch import load_file, save_file
from samples.tiny import Exported, export

from ltx_export.build import ExportOptions
from ltx_export.recorded import SIZES, random_feeds
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import MANIFEST, Engines
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session
from ltx_runtime.weights.lora import LoraFile

FP8 = torch.float8_e4m3fn


def outputs(engines: Engines) -> dict[str, np.ndarray]:
    """Returns the outputs of every component for the recorded request."""
    made = {}
    for name in engines.manifest.components:
        with open_session(find(engines, name, "cpu")) as session:
            (made[name],) = session.run(random_feeds(session.component, SIZES[0])).values()
    return made


def assert_equal(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        assert np.array_equal(actual[name], expected[name]), name


@pytest.fixture(scope="module")
def release(exported) -> Exported:
    return exported("0.9.5")


@pytest.fixture(scope="module")
def expected(release) -> dict[str, np.ndarray]:
    return outputs(open_engines(release.folder))


@pytest.fixture
def own_weights(release, tmp_path) -> Exported:
    """Returns the release with its own copy of the weights, which a test may remove."""
    return replace(release, weights=Path(shutil.copytree(release.weights, tmp_path / "weights")))


def test_a_folder_runs_elsewhere_when_the_weights_it_came_from_are_gone(own_weights, expected, tmp_path):
    export(own_weights.version, own_weights.sources, tmp_path / "made" / "0.9.5")
    moved = Path(shutil.copytree(tmp_path / "made" / "0.9.5", tmp_path / "moved"))
    shutil.rmtree(own_weights.weights)
    shutil.rmtree(tmp_path / "made")
    assert_equal(outputs(open_engines(moved)), expected)


def test_networks_that_share_some_of_their_shards_get_every_shard_under_a_name_of_its_own(
    own_weights, expected, tmp_path
):
    state = load_file(own_weights.sources.checkpoint)
    places = {
        name: f"ltx-{1 + name.startswith('vae.') + (i % 2):05d}-of-00003.safetensors" for i, name in enumerate(state)
    }
    for file in set(places.values()):
        save_file({name: state[name] for name in state if places[name] == file}, own_weights.weights / file)
    index = own_weights.weights / "ltx.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    before = {file: (own_weights.weights / file).read_bytes() for file in places.values()}
    export(own_weights.version, replace(own_weights.sources, checkpoint=index), tmp_path / "0.9.5")
    assert {file: (own_weights.weights / file).read_bytes() for file in before} == before
    assert_equal(outputs(open_engines(tmp_path / "0.9.5")), expected)


@pytest.mark.parametrize(
    "options", [ExportOptions(["fp32"], link=True), ExportOptions(["fp32"], store="F32")], ids=["link", "store"]
)
def test_weights_in_the_folder_that_is_replaced_are_not_lost(release, expected, tmp_path, options):
    folder = tmp_path / "0.9.5"
    export(release.version, release.sources, folder)
    own = replace(
        release.sources, checkpoint=folder / "checkpoint.safetensors", text_encoder=folder / "text_encoder.safetensors"
    )
    with pytest.raises(
        LtxError, match=r"is in the folder that this export replaces - move it out of .*, or leave --link"
    ):
        export(release.version, own, folder, options=options)
    export(release.version, own, folder)
    assert_equal(outputs(open_engines(folder)), expected)


def test_links_leave_the_weights_where_they_are_and_the_manifest_says_so(own_weights, expected, tmp_path):
    manifest = export(
        own_weights.version, own_weights.sources, tmp_path / "0.9.5", options=ExportOptions(["fp32"], link=True)
    )
    engines = open_engines(tmp_path / "0.9.5")
    assert engines.manifest == manifest
    checkpoint = f"weights/{own_weights.version.checkpoint}"
    assert manifest.linked == {name: str(tmp_path) for name in (checkpoint, "weights/text_encoder.safetensors")}
    assert not list((tmp_path / "0.9.5").rglob("*.safetensors"))
    assert_equal(outputs(engines), expected)


def test_a_linked_folder_may_move_as_long_as_the_weights_stay(own_weights, expected, tmp_path):
    export(own_weights.version, own_weights.sources, tmp_path / "0.9.5", options=ExportOptions(["fp32"], link=True))
    (tmp_path / "0.9.5").rename(tmp_path / "moved")
    assert_equal(outputs(open_engines(tmp_path / "moved")), expected)


@pytest.mark.parametrize("gone", ["0.9.5", "text_encoder"])
def test_a_link_whose_weights_are_gone_is_refused_with_their_name(own_weights, tmp_path, gone):
    export(own_weights.version, own_weights.sources, tmp_path / "0.9.5", options=ExportOptions(["fp32"], link=True))
    sources = own_weights.sources
    path = sources.checkpoint if gone == "0.9.5" else sources.text_encoder
    path.unlink()
    with pytest.raises(LtxError) as refused:
        open_engines(tmp_path / "0.9.5")
    assert str(path) in str(refused.value)
    assert "only links to it" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_link_whose_weights_have_changed_is_refused(own_weights, tmp_path):
    export(own_weights.version, own_weights.sources, tmp_path / "0.9.5", options=ExportOptions(["fp32"], link=True))
    raw = bytearray(own_weights.sources.checkpoint.read_bytes())
    raw[-1] ^= 1
    own_weights.sources.checkpoint.write_bytes(raw)
    with pytest.raises(LtxError, match="has changed since the export"):
        open_engines(tmp_path / "0.9.5")


def test_weights_named_by_symlinks_are_linked_as_the_files_themselves(own_weights, expected, tmp_path):
    (tmp_path / "cache").mkdir()
    for name in ("checkpoint", "text_encoder"):
        (tmp_path / "cache" / name).with_suffix(".safetensors").symlink_to(getattr(own_weights.sources, name))
    sources = replace(
        own_weights.sources,
        checkpoint=tmp_path / "cache" / "checkpoint.safetensors",
        text_encoder=tmp_path / "cache" / "text_encoder.safetensors",
    )
    export(own_weights.version, sources, tmp_path / "0.9.5", options=ExportOptions(["fp32"], link=True))
    shutil.rmtree(tmp_path / "cache")
    assert_equal(outputs(open_engines(tmp_path / "0.9.5")), expected)


def fp8_checkpoint(release: Exported, path: Path) -> dict[str, torch.Tensor]:
    """Writes the blocks' matrices in fp8 and all else unchanged, like the published fp8 files; returns the tensors."""
    tensors = load_file(release.sources.checkpoint)
    for name, values in tensors.items():
        if ".transformer_blocks." in name and name.endswith(".weight") and values.ndim == 2:
            tensors[name] = values.to(FP8)
    save_file(tensors, path)
    return tensors


def test_fp8_is_cast_into_files_of_their_own_without_the_fp8_file(release, tmp_path):
    stored = fp8_checkpoint(release, tmp_path / "fp8.safetensors")
    assert sum(values.dtype == FP8 for values in stored.values()) == 10 * release.version.transformer.layers
    widened = {name: values.to(torch.bfloat16) for name, values in stored.items()}
    save_file(widened, tmp_path / "widened.safetensors")
    made = {}
    for name in ("fp8", "widened"):
        sources = replace(release.sources, checkpoint=tmp_path / f"{name}.safetensors")
        export(release.version, sources, tmp_path / name)
        made[name] = outputs(open_engines(tmp_path / name))
    assert_equal(made["fp8"], made["widened"])
    assert {path.name for path in (tmp_path / "fp8").glob("*.safetensors")} == {
        "transformer.safetensors",
        "vae.safetensors",
        "text_encoder.safetensors",
    }
    assert {values.dtype for values in load_file(tmp_path / "fp8" / "transformer.safetensors").values()} == {
        torch.bfloat16
    }


def test_weights_can_be_stored_narrower_and_what_is_so_already_stays(release, expected, tmp_path):
    wide = {name: values.float() for name, values in load_file(release.sources.checkpoint).items()}
    save_file(wide, tmp_path / "wide.safetensors")
    sources = replace(release.sources, checkpoint=tmp_path / "wide.safetensors")
    export(release.version, sources, tmp_path / "0.9.5", options=ExportOptions(["fp32"], store="BF16"))
    assert_equal(outputs(open_engines(tmp_path / "0.9.5")), expected)  # the weights were bf16 originally
    for name in ("transformer", "vae"):
        stored = load_file(tmp_path / "0.9.5" / f"{name}.safetensors")
        assert {values.dtype for values in stored.values()} == {torch.bfloat16}
    assert (tmp_path / "0.9.5" / "text_encoder.safetensors").samefile(release.sources.text_encoder)


def test_a_lora_is_merged_into_the_transformer_alone_and_named_in_the_manifest(release, expected, tmp_path):
    name = "transformer_blocks.0.attn1.to_q"  # the request skips the attention of the other block
    weight = load_file(release.sources.checkpoint)[f"model.diffusion_model.{name}.weight"].float()
    out_features, in_features = weight.shape
    generator = torch.Generator().manual_seed(5)
    down = torch.randn(4, in_features, generator=generator)
    up = torch.randn(out_features, 4, generator=generator)
    key = f"diffusion_model.{name}"
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, tmp_path / "fox.safetensors")
    options = ExportOptions(["fp32"], loras=[LoraFile(tmp_path / "fox.safetensors", 0.5)], store="F32")
    manifest = export(release.version, release.sources, tmp_path / "0.9.5", options=options)
    assert manifest.loras == ("fox.safetensors:0.5",)
    merged = load_file(tmp_path / "0.9.5" / "transformer.safetensors")
    reference = weight.double() + 0.5 * up.double() @ down.double()
    assert torch.linalg.norm(merged[f"{name}.weight"].double() - reference) <= 1e-6 * torch.linalg.norm(reference)
    assert distance(outputs(open_engines(tmp_path / "0.9.5"))["transformer"], expected["transformer"]) > 1e-3
    others = load_file(release.sources.checkpoint)
    for other, values in merged.items():
        if other != f"{name}.weight":
            assert torch.equal(values, others[f"model.diffusion_model.{other}"].float())


def test_no_precision_but_those_asked_for_is_kept_per_component(release, tmp_path):
    options = ExportOptions(["fp32"], {"vae_decoder": ["fp16"], "text_encoder": ["bf16", "fp32"]})
    manifest = export(release.version, release.sources, tmp_path / "0.9.5", options=options)
    kept = {name: sorted(entry.graphs) for name, entry in manifest.components.items()}
    kept_alike = {name: kept.pop(name) for name in ("vae_encoder", "transformer")}
    assert set(map(tuple, kept_alike.values())) == {("fp32",)}
    assert kept == {"text_encoder": ["bf16", "fp32"], "vae_decoder": ["fp16"]}
    assert all(entry.recorded for entry in manifest.components.values())
    present = {path.name for path in (tmp_path / "0.9.5").iterdir()}
    assert present == {*manifest.files, MANIFEST}


def test_weights_that_make_nothing_finite_are_refused(release, tmp_path):
    tensors = load_file(release.sources.checkpoint)
    tensors["model.diffusion_model.transformer_blocks.1.ff.net.2.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(
        LtxError, match="transformer computes values that are not finite from its weights - use another"
    ):
        export(
            release.version, replace(release.sources, checkpoint=tmp_path / "broken.safetensors"), tmp_path / "0.9.5"
        )
    assert not (tmp_path / "0.9.5").exists()
