"""Folders that other programs arrange, as `--weights`: the hub's cache, ComfyUI's models, clones without Git LFS."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples.layouts import OFFICIAL, assert_same_outputs, bare, bits_of, diffusers_models, write_diffusers
from samples.tiny import Exported, export

from ltx_export.build import ExportOptions
from ltx_export.checkpoints.readers import open_weights
from ltx_export.inspection.inspect import inspect
from ltx_export.sources.find import Sources, find_sources, open_sources
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.folder.reading import open_engines, read_manifest
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import read_tensors
from ltx_runtime.text.tokenizer import Tokenizer
from ltx_runtime.weights.lora import open_lora

RELEASE = "0.9.5"
COMMIT = "8984fa25007f376c1a299016d0957a37a2f797bb"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 9999999\n"


def refusal(call, *args: object, **options: object) -> str:
    with pytest.raises(LtxError) as refused:
        call(*args, **options)
    assert "\n" not in str(refused.value) and " - " in str(refused.value)
    return str(refused.value)


def cached(hub: Path, repository: str, files: dict[str, Path], commit: str = COMMIT, main: bool = True) -> Path:
    """Puts files into a cache of the hub as huggingface_hub does: blobs named by checksums, and links to them."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for number, (name, file) in enumerate(files.items()):
        blob, link = folder / "blobs" / f"{number:064x}", folder / "snapshots" / commit / name
        blob.write_bytes(file.read_bytes())
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * len(link.relative_to(folder).parent.parts)) / "blobs" / blob.name)
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return folder


def official_in_cache(release: Exported, hub: Path, **options) -> Path:
    sources = release.sources
    files = {release.version.checkpoint: sources.checkpoint, "text_encoder.safetensors": sources.text_encoder}
    return cached(hub, "Lightricks/LTX-Video", files | {"tokenizer/spiece.model": sources.tokenizer}, **options)


def all_files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("given", ["repository", "snapshot", "hub", "home"])
def test_a_repository_in_the_cache_of_the_hub_is_found_from_every_folder_above_it(exported, tmp_path, given):
    release = exported(RELEASE)
    repository = official_in_cache(release, tmp_path / "hub")
    folders = {"repository": repository, "snapshot": repository / "snapshots" / COMMIT}
    folders |= {"hub": tmp_path / "hub", "home": tmp_path}
    sources = find_sources(release.version, folders[given])
    assert sources.checkpoint == repository / "snapshots" / COMMIT / release.version.checkpoint
    assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


def test_a_repository_in_the_cache_of_the_hub_is_inspected_as_its_snapshot(exported, tmp_path):
    repository = official_in_cache(exported(RELEASE), tmp_path)
    assert inspect(repository) == inspect(repository / "snapshots" / COMMIT)


@pytest.mark.parametrize("link", [False, True])
def test_a_cached_repository_is_exported_with_the_same_bits(exported, tmp_path, link):
    release = exported(RELEASE)
    sources = find_sources(release.version, official_in_cache(release, tmp_path / "hub"))
    export(release.version, sources, tmp_path / "out", options=ExportOptions(("fp32",), link=link))
    assert_same_outputs(tmp_path / "out", release.folder)


def test_a_cached_diffusers_repository_is_a_layout_and_t5_may_be_in_the_repository_it_is_downloaded_from(
    exported, tmp_path
):
    release = exported(RELEASE)
    layout = write_diffusers(release.version, release.weights, tmp_path / "layout", shard_size="20KB")
    files = all_files(layout)
    text = {name: path for name, path in files.items() if name.startswith(("text_encoder/", "tokenizer/"))}
    rest = {name: path for name, path in files.items() if name not in text}
    hub = tmp_path / "hub"
    cached(hub, release.version.diffusers_repository, rest)
    cached(hub, release.version.text_repository, text)
    sources = find_sources(release.version, hub)
    assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


def test_networks_of_their_own_may_be_repositories_in_the_cache_or_layouts(exported, tmp_path):
    release = exported(RELEASE)
    layout = write_diffusers(release.version, release.weights, tmp_path / "layout")
    repository = cached(tmp_path / "hub", "someone/t5", all_files(layout))
    save_file(bare(load_file(release.sources.checkpoint), OFFICIAL), tmp_path / "transformer.safetensors")
    for folder in (layout, repository):
        named = {"t5": folder, "vae": folder, "tokenizer": release.sources.tokenizer}
        sources = find_sources(release.version, tmp_path / "transformer.safetensors", **named)
        assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


def test_of_several_snapshots_the_main_branchs_is_taken_or_one_is_to_be_chosen(exported, tmp_path):
    release, other = exported(RELEASE), COMMIT[::-1]
    hub = tmp_path / "hub"
    folder = official_in_cache(release, hub, main=False)
    cached(hub, "Lightricks/LTX-Video", {"README.md": release.sources.tokenizer}, commit=other, main=False)
    told = refusal(find_sources, release.version, folder)
    assert f"{folder / 'snapshots'} holds {', '.join(sorted((COMMIT, other)))} - give --weights one of them" in told
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT + "\n")
    assert find_sources(release.version, folder).checkpoint.parent.name == COMMIT


def test_a_cache_without_the_version_or_without_a_snapshot_is_told(tmp_path):
    (tmp_path / "models--google--t5" / "snapshots" / COMMIT).mkdir(parents=True)
    told = refusal(find_sources, VERSIONS[RELEASE], tmp_path)
    assert f"{tmp_path} is a cache of the hub without 0.9.5 in Lightricks/LTX-Video or " in told
    empty = tmp_path / "models--Lightricks--LTX-Video"
    (empty / "snapshots").mkdir(parents=True)
    assert f"{empty} is a cache of the hub without a snapshot - " in refusal(find_sources, VERSIONS[RELEASE], empty)


def comfy(release: Exported, models: Path, *, alone: bool = False, folders=("checkpoints", "text_encoders")) -> Path:
    """Fills the folder of ComfyUI's models: a single file, or the transformer and the VAE in files of their own."""
    for name in ("checkpoints", "diffusion_models", "unet", "text_encoders", "clip", "vae", "loras", "upscale_models"):
        (models / name).mkdir(parents=True)
    checkpoints, texts = folders
    state = load_file(release.sources.checkpoint)
    if alone:
        (models / checkpoints / "video").mkdir()
        save_file(bare(state, OFFICIAL), models / checkpoints / "video" / "my_LTXV_finetune.safetensors")
        save_file(bare(state, "vae."), models / "vae" / "ltx_vae.safetensors")
        (models / "vae" / "sdxl_vae.safetensors").touch()
    else:
        (models / checkpoints / release.version.checkpoint).symlink_to(release.sources.checkpoint)
    for file in ("sd_xl_base_1.0.safetensors", VERSIONS["0.9.7-dev"].checkpoint):
        (models / checkpoints / file).touch()
    (models / texts / "t5xxl_fp16.safetensors").symlink_to(release.sources.text_encoder)
    (models / texts / "clip_l.safetensors").touch()
    (models / texts / "spiece.model").symlink_to(release.sources.tokenizer)
    if release.version.upscaler:
        (models / "upscale_models" / release.version.upscaler).symlink_to(release.sources.upscaler)
    return models


@pytest.mark.parametrize("alone", [False, True], ids=["single file", "files of their own"])
@pytest.mark.parametrize(
    "folders", [("checkpoints", "text_encoders"), ("diffusion_models", "clip"), ("unet", "text_encoders")]
)
@pytest.mark.parametrize("name", ["0.9.5", "0.9.8-2b-distilled"])
def test_the_files_of_a_version_are_found_in_the_models_of_comfyui(exported, tmp_path, name, alone, folders):
    release = exported(name)
    models = comfy(release, tmp_path / "ComfyUI" / "models", alone=alone, folders=folders)
    whole = bits_of(open_sources(release.sources))
    checkpoint = find_sources(release.version, models).checkpoint
    for given in (models, models.parent, checkpoint):
        sources = find_sources(release.version, given)
        assert sources.text_encoder == models / folders[1] / "t5xxl_fp16.safetensors"
        assert (sources.upscaler is None) == (release.version.upscaler is None)
        assert bits_of(open_sources(sources)) == whole


def test_of_two_transformers_in_the_models_of_comfyui_one_is_to_be_chosen(exported, tmp_path):
    release = exported(RELEASE)
    models = comfy(release, tmp_path, alone=True)
    (models / "unet" / "ltx-other.gguf").touch()
    told = refusal(find_sources, release.version, models)
    assert "my_LTXV_finetune.safetensors" in told and "ltx-other.gguf" in told
    assert told.endswith(" - choose one with --weights")


def test_models_of_comfyui_without_the_version_or_a_t5_are_told(exported, tmp_path):
    release = exported(RELEASE)
    models = comfy(release, tmp_path)
    (models / "text_encoders" / "t5xxl_fp16.safetensors").unlink()
    assert f"no T5 encoder in {models / 'text_encoders'} - " in refusal(find_sources, release.version, models)
    (models / "checkpoints" / release.version.checkpoint).unlink()
    told = refusal(find_sources, release.version, models)
    assert f"{release.version.checkpoint} is not in {models / 'checkpoints'}, {models / 'diffusion_models'}" in told


def test_a_variant_that_nothing_could_have_is_told(exported, tmp_path):
    release = exported(RELEASE)
    told = refusal(open_sources, replace(release.sources, variant="zzz"))
    assert "--variant zzz chooses among the files of a folder, but all weights are single files - leave it out" in told
    diffusers_models(release.version, release.weights)["vae"].save_pretrained(tmp_path / "vae")
    with_folder = replace(release.sources, variant="zzz", vae=tmp_path / "vae")
    assert "vae has no weights of variant 'zzz'" in refusal(open_sources, with_folder)


def pointer(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(POINTER)
    return path


@pytest.mark.parametrize(
    "name", ["x.safetensors", "x.gguf", "x.safetensors.index.json", "blob", "folder/model.safetensors"]
)
def test_a_pointer_of_git_lfs_in_place_of_weights_is_told_as_such(tmp_path, name):
    path = pointer(tmp_path / name)
    said = f"{path} is a Git LFS pointer, not the file - run: git lfs pull"
    assert refusal(open_weights, path.parent if "/" in name else path) == said


def test_a_pointer_of_git_lfs_in_place_of_any_other_file_is_told_as_such(exported, tmp_path):
    release = exported(RELEASE)
    told = f"{pointer(tmp_path / 'spiece.model')} is a Git LFS pointer, not the file - run: git lfs pull"
    assert refusal(Tokenizer, tmp_path / "spiece.model", 1) == told
    sources = replace(release.sources, tokenizer=tmp_path / "spiece.model")
    assert refusal(export, release.version, sources, tmp_path / "out") == told
    layout = write_diffusers(release.version, release.weights, tmp_path / "layout")
    config = pointer(layout / "transformer" / "config.json")
    assert f"{config} is a Git LFS pointer" in refusal(open_sources, find_sources(release.version, layout))
    lone = pointer(tmp_path / "lora.safetensors")
    assert f"{lone} is a Git LFS pointer" in refusal(open_lora, lone, 1.0, {})
    assert f"{lone} is a Git LFS pointer" in refusal(read_tensors, lone, ("x",))


def test_a_pointer_of_git_lfs_in_place_of_the_configuration_of_a_lora_is_told_as_such(tmp_path):
    config = pointer(tmp_path / "adapter_config.json")
    factors = {"A": torch.zeros(2, 3), "B": torch.zeros(4, 2)}
    state = {f"base_model.model.x.lora_{name}.weight": values for name, values in factors.items()}
    save_file(state, tmp_path / "adapter_model.safetensors")
    assert f"{config} is a Git LFS pointer" in refusal(open_lora, tmp_path, 1.0, {"x.weight": (4, 3)})


def test_a_version_folder_that_was_cloned_without_git_lfs_is_told_as_such(exported, tmp_path):
    release = exported(RELEASE)
    for name in (MANIFEST, next(iter(release.manifest.files))):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        for file in release.folder.iterdir():
            os.link(file, folder / file.name)
        (folder / name).unlink()
        pointer(folder / name)
        read = read_manifest if name == MANIFEST else open_engines
        assert f"{folder / name} is a Git LFS pointer" in refusal(read, folder)


def test_a_large_file_that_begins_like_a_pointer_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text(POINTER * 20)
    assert "is not a complete safetensors file" in refusal(open_weights, path)


def sources_are_complete(sources: Sources) -> bool:
    return all(path.exists() for path in (sources.checkpoint, sources.text_encoder, sources.tokenizer))


@pytest.mark.parametrize("config", [None, "null", {}, {"num_attention_heads": None}])
def test_a_diffusers_configuration_that_says_nothing_leaves_the_heads_to_the_release(exported, tmp_path, config):
    release = exported(RELEASE)
    layout = write_diffusers(release.version, release.weights, tmp_path / "layout")
    text = config if isinstance(config, str) else json.dumps(config)
    (layout / "transformer" / "config.json").write_text(text)
    sources = find_sources(release.version, layout)
    assert sources_are_complete(sources)
    assert open_sources(sources).heads is None
