"""Answers of `inspect` against the table of versions, published counts and the LoRA reader, and malformed files."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
from oracles.networks import diffusers_dit_key
from samples.gguf_files import write_t5
from samples.sparse_files import holes, shapes_in, upscaler

from ltx_export.inspection.facts import Inspection
from ltx_export.inspection.inspect import inspect
from ltx_export.inspection.lines import lines_of
from ltx_export.models.rope import rope_of
from ltx_export.models.t5 import T5Config
from ltx_export.random_weights import write_random_weights
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import ComponentEntry, Manifest, describe_files, write_manifest
from ltx_runtime.spec.components import text_encoder, transformer, vae_decoder
from ltx_runtime.spec.presets import Schedule
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.weights.checkpoint import StoredTensor, open_safetensors
from ltx_runtime.weights.lora import open_lora

ROOT, DIT, PEFT = Path(__file__).parents[3], "model.diffusion_model.", {"lora_adapter_metadata": '{"lora_alpha": 4}'}
# Published parameter counts: transformers by layers; VAEs by generation, without their 256 statistics.
TRANSFORMER = {28: 1_923_385_472, 48: 13_042_569_344}
VAE, T5_XXL = {"A": 419_193_649, "B": 934_976_434, "C": 1_246_913_522}, 4_762_310_656
UPSAMPLER = 126_250_624
LATE_2B = ["0.9.5", "0.9.6-dev", "0.9.6-distilled", "0.9.8-2b-distilled"]
EVERY_2B = ["0.9.0", "0.9.1", *LATE_2B]
EVERY_13B = ["0.9.7-dev", "0.9.7-distilled", "0.9.8-13b-dev", "0.9.8-13b-distilled"]
EVERY_C = sorted(LATE_2B + EVERY_13B)
BIG, WHOLE = "0.9.8-13b-dev", "official single file"
STYLES = {
    "diffusion_model.*.lora_A.weight": ("diffusion_model.", ".lora_A.weight", ".lora_B.weight"),
    "base_model.model.*.lora_A.fox.weight": ("base_model.model.", ".lora_A.fox.weight", ".lora_B.fox.weight"),
    "lora_unet_*.lora_down.weight": ("lora_unet_", ".lora_down.weight", ".lora_up.weight"),
}


def linear(path: Path) -> dict:
    return {name: shape for name, shape in shapes_in(path, DIT).items() if name.endswith("weight") and len(shape) == 2}


def lora_shapes(weights: dict, style: str = "diffusion_model.*.lora_A.weight") -> dict:
    prefix, down, up = STYLES[style]
    shapes = {}
    for name, (out, inner) in weights.items():
        module = prefix + name.removesuffix(".weight").replace(".", "_" if prefix.endswith("_") else ".")
        shapes |= {module + down: (4, inner), module + up: (out, 4)}
    return shapes


def refusal(path: Path) -> str:
    with pytest.raises(LtxError) as refused:
        inspect(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value) and " - " in str(refused.value)
    return str(refused.value)


def network(told: Inspection, name: str) -> dict:
    return next(one for file in told.files for one in file.networks if one["name"] == name)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def official(name: str) -> Path:
        write_random_weights(VERSIONS[name], folder / name, sparse=True)
        return folder / name / VERSIONS[name].checkpoint

    return official


@pytest.fixture
def layout(release, tmp_path) -> Path:
    root, whole = tmp_path / "LTX-Video-0.9.5", release("0.9.5")
    ours = {diffusers_dit_key(name): shape for name, shape in shapes_in(whole, DIT).items()}
    places = {name: f"diffusion_pytorch_model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(ours)}
    for file in set(places.values()):
        holes(root / "transformer" / file, {name: ours[name] for name in ours if places[name] == file}, "F32")
    index = json.dumps({"weight_map": places})
    (root / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    holes(root / "transformer" / "diffusion_pytorch_model.bf16.safetensors", ours)
    holes(root / "vae" / "diffusion_pytorch_model.safetensors", shapes_in(whole, "vae."))
    holes(root / "text_encoder" / "model.safetensors", shapes_in(whole.with_name("text_encoder.safetensors")))
    (root / "spiece.model").touch()
    return root


@pytest.fixture
def version_folder(release, tmp_path) -> Path:
    """Makes a version folder over the demo's weights; the text encoder's are only linked, and one is rewritten."""
    folder, linked, checkpoint = tmp_path, tmp_path / "elsewhere" / "t5.safetensors", release("demo")
    os.link(checkpoint, folder / checkpoint.name)
    scales = {"encoder.block.0.layer.0.SelfAttention.q.weight.scales": (2, 64)}
    holes(linked, shapes_in(checkpoint.with_name("text_encoder.safetensors")) | scales)
    signatures = (text_encoder(64), transformer(128, 64, 64), vae_decoder(128, timestep=True))
    entries = {one.name: ComponentEntry(one, (checkpoint.name,), {"fp32": checkpoint.name}) for one in signatures}
    entries["text_encoder"] = ComponentEntry(signatures[0], (linked.name,), {"bf16": checkpoint.name})
    tokenizer = folder / "spiece.model"
    tokenizer.write_bytes(b"tokens")
    files = describe_files({path.name: path for path in (folder / checkpoint.name, linked, tokenizer)})
    links, loras = {linked.name: str(linked.parent)}, ("fox.safetensors:0.8",)
    manifest = Manifest("demo", True, Schedule(), rope_of(64), tokenizer.name, entries, files, links, loras)
    write_manifest(folder, manifest)
    return folder


@pytest.mark.parametrize("name", VERSIONS)
def test_a_weights_folder_is_recognised_down_to_the_parameter(release, name):
    told, version = inspect(release(name).parent), VERSIONS[name]
    assert (told.kind, told.versions, told.missing) == ("weights folder", [name], [])
    kinds = {WHOLE, "T5 text encoder"} | ({"spatial upscaler"} if version.upscaler else set())
    assert {file.kind for file in told.files} == kinds and not any(file.unknown_names for file in told.files)
    size, header = version.transformer, next(file.header for file in told.files if file.kind == WHOLE)
    assert [header[field] for field in ("layers", "heads", "head_dim")] == [size.layers, size.heads, size.head_dim]
    found = (header["width"], header["causal_positions"], header["vae_generation"], header["sampler"])
    assert found == (size.width, version.causal_positions, version.vae, version.schedule.sampler)
    if version.repository:
        expected = [TRANSFORMER[size.layers], VAE[version.vae] + 256, T5_XXL]
        assert [network(told, part)["parameters"] for part in ("transformer", "vae", "text_encoder")] == expected
    if version.repository and version.upscaler:
        assert network(told, "upsampler")["parameters"] == UPSAMPLER


@pytest.mark.parametrize(
    ("name", "prefix", "file", "kind", "versions"),
    [
        *(("0.9.0", "", "x", WHOLE, ["0.9.0"]), ("0.9.1", "", "x", WHOLE, ["0.9.1"])),
        *(("0.9.5", "", "x", WHOLE, LATE_2B), (BIG, "", "x", WHOLE, EVERY_13B)),
        *(("0.9.5", DIT, "x", "transformer", EVERY_2B), ("0.9.5", "vae.", "x", "VAE", EVERY_C)),
        ("0.9.5", DIT, "ltx-video-2b-v0.9.5-Q8_0", "transformer", ["0.9.5"]),
        ("0.9.5", "", "ltxv-2b-0.9.8-distilled-fp8", WHOLE, ["0.9.8-2b-distilled"]),
        ("0.9.5", "", "ltxv-13b-0.9.8-dev", WHOLE, LATE_2B),
    ],
)
def test_without_header_all_that_shapes_and_name_allow_is_listed(release, tmp_path, name, prefix, file, kind, versions):
    told = inspect(holes(tmp_path / f"{file}.safetensors", shapes_in(release(name), prefix)))
    assert (told.kind, sorted(told.versions), told.files[0].header) == (kind, versions, {})
    assert ("nothing else distinguishes these" in told.reasons[-1]) == (len(versions) > 1)
    assert ("names: 0.9.8-13b-dev, which does not fit" in told.reasons) == (file == "ltxv-13b-0.9.8-dev")


@pytest.mark.parametrize(("field", "value"), [("allowed_inference_steps", [1.0]), ("transformer", {"num_layers": 48})])
def test_a_header_tells_distilled_from_dev_and_must_fit_the_shapes(release, tmp_path, field, value):
    config = {"config": json.dumps(open_safetensors(release("0.9.5")).config | {field: value})}
    told = inspect(holes(tmp_path / "x.safetensors", shapes_in(release("0.9.5")), metadata=config))
    assert told.versions == {"allowed_inference_steps": LATE_2B[2:], "transformer": []}[field]
    assert any(reason.endswith("this leaves no release") for reason in told.reasons) == (field == "transformer")


def test_a_diffusers_folder_is_told_whole_and_a_component_as_there_and_a_single_shard_is_refused(layout):
    told = inspect(layout)
    assert (told.kind, told.versions, told.missing) == ("diffusers folder", ["0.9.5"], [])
    assert [file.kind for file in told.files if not file.unknown_names] == ["transformer", "VAE", "T5 text encoder"]
    assert (told.files[0].variants, network(told, "transformer")["dtypes"]) == (["", "bf16"], {"F32": 715})
    folder, index = (inspect(path) for path in (layout / "transformer", next((layout / "transformer").glob("*.json"))))
    assert (folder.kind, index.kind) == ("component folder: transformer", "transformer")
    assert folder.files[0].networks == index.files[0].networks == told.files[0].networks
    assert refusal(next((layout / "transformer").glob("*-00001-*"))).endswith("give their index or folder")
    (layout / "transformer" / "vae").symlink_to(layout / "vae")
    assert ["a VAE" in one.missing for one in (index, inspect(Path(index.path)))] == [True, False]


def test_a_quantized_t5_tells_how_many_matrices_are_stored_as_what(tmp_path):
    size = T5Config(layers=3, width=256, heads=4, head_dim=64, hidden=256, vocabulary=32)
    told = inspect(write_t5(tmp_path / "t5.gguf", size, lambda name: "Q6_K" if "ffn_down" in name else "Q5_K"))
    assert (told.kind, told.missing) == ("GGUF T5 text encoder", ["a transformer", "a VAE"])
    facts = network(told, "text_encoder")
    assert (facts["quantization"], facts["sizes"]["blocks"]) == ("Q5_K 19 matrices, F32 8, Q6_K 3 matrices", 3)


def test_fp8_matrices_are_counted_and_names_of_nothing_are_listed(release, tmp_path):
    inner = {DIT + name for name in linear(release("0.9.5")) if "transformer_blocks" in name}
    odd = {f"{DIT}audio.weight": (2, 2), "ema.step": ()}
    scale = {f"{DIT}transformer_blocks.0.ff.net.2.weight_scale": (1,)}
    told = inspect(holes(tmp_path / "x.safetensors", shapes_in(release("0.9.5")) | scale | odd, fp8=inner))
    assert network(told, "transformer")["quantization"] == "BF16 436, F8_E4M3 280 matrices"
    assert (told.kind, told.files[0].unknown_names) == (WHOLE, [*odd])


@pytest.mark.parametrize(("unfolded", "kind"), [(2, "temporal"), (4, "spatial"), (8, "spatial and temporal")])
def test_an_upscaler_tells_what_it_scales(tmp_path, unfolded, kind):
    told = inspect(upscaler(tmp_path / "0.9.5" / "x.safetensors", unfolded))
    assert (told.kind, told.versions, told.reasons, told.missing) == (f"{kind} upscaler", [], [], [])
    assert network(told, "upsampler")["sizes"] == {"resamples": kind, "mid_channels": 64}


def test_of_several_checkpoints_in_a_folder_each_is_told(release, tmp_path):
    for name in ("0.9.1", BIG):
        (tmp_path / release(name).name).symlink_to(release(name))
    holes(tmp_path / "ltxv-13b-0.9.8-distilled-lora128.safetensors", lora_shapes(linear(release(BIG))))
    told = inspect(tmp_path)
    assert (sorted(told.versions), told.memory["gpu_bytes"]) == (["0.9.1", BIG], 2 * TRANSFORMER[48])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("name", "versions"), [("0.9.5", EVERY_2B), (BIG, EVERY_13B), ("demo", ["demo"])])
def test_a_lora_of_every_layer_fits_what_the_export_merges_it_into(release, tmp_path, style, name, versions):
    weights = linear(release(name))
    told = inspect(path := holes(tmp_path / "x.safetensors", lora_shapes(weights, style), "BF16", PEFT))
    assert (told.kind, told.versions, told.missing, told.memory) == ("LoRA", versions, [], {})
    facts, count = told.files[0].lora, len(weights)
    assert (facts["keys"], facts["modules"], facts["ranks"]) == ([style], count, {"4": count})
    assert open_lora(path, 1.0, weights).pairs.keys() == weights.keys()


def test_a_lora_tells_its_alphas_and_what_is_no_part_of_it(release, tmp_path):
    shapes = lora_shapes({name: shape for name, shape in linear(release("0.9.5")).items() if "blocks.0.ff" in name})
    alphas = {name.replace("lora_A.weight", "alpha"): () for name in shapes if "lora_A" in name}
    other = {"diffusion_model.transformer_blocks.0.ff.net.2.dora_scale": (2048, 1)}
    (file,) = inspect(holes(tmp_path / "a.safetensors", shapes | alphas | other)).files
    assert (file.lora["alphas"], file.unknown_names) == ({"0.0": 2}, [*other])
    peft = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 16})}
    assert inspect(holes(tmp_path / "b.safetensors", shapes, metadata=peft)).files[0].lora["alphas"] == {"16": 1}
    assert inspect(holes(tmp_path / "c.safetensors", lora_shapes({"proj_out.weight": (48, 48)}))).versions == []


def test_a_version_folder_tells_its_manifest_and_what_is_gone(version_folder):
    told, gone = inspect(version_folder, trust=True), version_folder / "elsewhere" / "t5.safetensors"
    assert (told.kind, told.versions, told.missing) == ("version folder", ["demo"], [])
    assert told.engines["precisions"] == {"text_encoder": ["bf16"], "transformer": ["fp32"], "vae_decoder": ["fp32"]}
    assert (told.engines["loras"], told.engines["linked"]) == (["fox.safetensors:0.8"], {gone.name: str(gone.parent)})
    assert told.engines["size_bytes"][gone.name] == gone.stat().st_size
    assert [(file.kind, file.unknown_names) for file in told.files] == [("T5 text encoder", []), (WHOLE, [])]
    assert inspect(version_folder / "manifest.json", trust=True) == told
    gone.unlink()
    assert inspect(version_folder, trust=True).missing == [str(gone)]


def test_28_gb_are_inspected_at_once_without_reading_a_weight(release, monkeypatch):
    monkeypatch.setattr(StoredTensor, "read", None)
    monkeypatch.setattr(StoredTensor, "mapped", None)
    path, stored = release(BIG).parent, 2 * (TRANSFORMER[48] + VAE["C"] + 256 + T5_XXL + UPSAMPLER)
    started = time.process_time()
    told = inspect(path)
    assert time.process_time() - started < 1 and told.versions == [BIG] and stored > 28e9
    convolution = 8 * 2048 * 2048 * 27  # only T5's table is larger, and it is not multiplied
    estimates = {"cpu_mapped_bytes": stored, "cpu_private_bytes": convolution, "gpu_bytes": 2 * TRANSFORMER[48]}
    assert estimates.items() <= told.memory.items() and told.memory["how"].startswith("estimates")


def test_an_inspection_survives_json_and_becomes_printable_lines(release, layout, version_folder, tmp_path):
    config = '{"vae": {"blocks": 3}, "transformer": {"num_layers": NaN}, "allowed_inference_steps": "\\ud800"}'
    hostile = shapes_in(release("demo")) | {"vae.\x1b[31m\n\u2028": (1,)}
    paths = [holes(tmp_path / "a.safetensors", hostile, metadata={"config": config}), layout, version_folder]
    lora = lora_shapes({"proj_out.weight": (128, 128)})
    paths += [holes(tmp_path / "b.safetensors", lora), upscaler(tmp_path / "c.safetensors")]
    for path in paths:
        told, lines = asdict(inspect(path, trust=True)), lines_of(inspect(path, trust=True))
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert [*told] == ["path", "kind", "versions", "reasons", "files", "engines", "missing", "memory"]
        assert lines[0] == f"{path}: {told['kind']}" and all(line.isprintable() for line in lines)
        assert all(version in lines[1] for version in told["versions"]) and len(lines) > 2


def test_what_is_damaged_or_unknown_is_refused_but_told_beside_a_checkpoint(release, tmp_path):
    path = tmp_path / "x.safetensors"
    assert "not found" in refusal(path) and "holds no known weights - " in refusal(tmp_path)
    path.write_bytes(release("demo").read_bytes()[:-1])
    assert refusal(path).startswith(f"{path} is truncated: ")
    assert "holds no known weights - " in refusal(holes(path, {}))
    assert "holds no known weights (clip.weight) - " in refusal(holes(path, {"clip.weight": (2,)}))
    (tmp_path / "demo.safetensors").symlink_to(release("demo"))
    assert [file.kind for file in inspect(tmp_path).files] == [WHOLE, "unknown"]


def test_inspecting_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import ltx_export.inspection.inspect"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
