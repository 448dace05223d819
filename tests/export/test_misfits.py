"""A tensor too few, too many or of another shape, in any network and any layout, is refused by its name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import OFFICIAL, bare, gguf_t5_state, write_diffusers, write_gguf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import Exported, export

from ltx_export.sources import Sources, find_sources
from ltx_runtime.errors import LtxError

RELEASE = "0.9.5"
# Network -> a tensor as we call it, and as diffusers or, for the text encoder, GGUF does.
TENSORS = {
    "transformer": ("transformer_blocks.1.attn1.q_norm.weight", "transformer_blocks.1.attn1.norm_q.weight"),
    "vae_decoder": ("decoder.up_blocks.2.res_blocks.0.conv1.conv.bias",
                    "decoder.up_blocks.0.resnets.0.conv1.conv.bias"),
    "vae_encoder": ("encoder.down_blocks.8.res_blocks.0.conv2.conv.bias",
                    "encoder.mid_block.resnets.0.conv2.conv.bias"),
    "text_encoder": ("encoder.block.1.layer.0.SelfAttention.k.weight", "enc.blk.1.attn_k.weight"),
}  # fmt: skip
PREFIX = {"transformer": OFFICIAL, "vae_decoder": "vae.", "vae_encoder": "vae.", "text_encoder": ""}
FOLDER = {"transformer": "transformer", "vae_decoder": "vae", "vae_encoder": "vae", "text_encoder": "text_encoder"}
EVERY_NETWORK = pytest.mark.parametrize("network", TENSORS)
EVERY_DAMAGE = pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])


def damaged(state: dict[str, torch.Tensor], name: str, damage: str) -> dict[str, torch.Tensor]:
    changed, values = dict(state), state[name]
    if damage == "missing":
        del changed[name]
    elif damage == "unexpected":
        changed[f"{name}.extra"] = values.clone()
    else:
        changed[name] = torch.cat([values, values[:1]])
    return changed


def damage_file(path: Path, target: Path, name: str, damage: str, *, header: bool = True) -> None:
    """A copy of a safetensors file in which one tensor is damaged."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() if header else None
    save_file(damaged(load_file(path), name, damage), target, metadata)


def assert_refused(release: Exported, sources: Sources, folder: Path, network: str, damage: str) -> None:
    ours, _ = TENSORS[network]
    with pytest.raises(LtxError) as refused:
        export(release.version, sources, folder / "engines" / RELEASE)
    message = str(refused.value)
    if damage == "misshapen":
        rows, *rest = shape_of(release, network)
        expected = f"has 1 tensor ({ours} {[rows + 1, *rest]} instead of {[rows, *rest]})"
    else:
        expected = f"lacks 1 tensor ({ours})" if damage == "missing" else f"has unexpected 1 tensor ({ours}.extra)"
    assert message == f"{network} {expected} - is it the right version?"
    assert not (folder / "engines").exists()


def file_of(release: Exported, network: str) -> Path:
    return release.sources.text_encoder if network == "text_encoder" else release.sources.checkpoint


def shape_of(release: Exported, network: str) -> list[int]:
    with safe_open(file_of(release, network), "pt") as file:
        return file.get_slice(PREFIX[network] + TENSORS[network][0]).get_shape()


@EVERY_NETWORK
@EVERY_DAMAGE
@pytest.mark.parametrize("header", [True, False], ids=["header", "headerless"])
def test_a_misfit_in_the_official_files_is_refused_by_its_name(exported, tmp_path, network, damage, header):
    release = exported(RELEASE)
    target, name = tmp_path / "damaged.safetensors", PREFIX[network] + TENSORS[network][0]
    damage_file(file_of(release, network), target, name, damage, header=header)
    field = "text_encoder" if network == "text_encoder" else "checkpoint"
    assert_refused(release, replace(release.sources, **{field: target}), tmp_path, network, damage)


@EVERY_NETWORK
@EVERY_DAMAGE
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_a_misfit_in_a_folder_of_diffusers_is_refused_by_its_name(exported, tmp_path, network, damage, shard_size):
    release = exported(RELEASE)
    layout = write_diffusers(release.version, release.weights, tmp_path / "layout", shard_size)
    ours, theirs = TENSORS[network]
    name = ours if network == "text_encoder" else theirs
    for path in (layout / FOLDER[network]).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            holds = name in file.keys()  # noqa: SIM118 - it is no dict
        if holds:
            damage_file(path, path, name, damage)
    for index in (layout / FOLDER[network]).glob("*.index.json"):
        listed = json.loads(index.read_text())
        listed["weight_map"] = damaged_index(listed["weight_map"], name, damage)
        index.write_text(json.dumps(listed))
    assert_refused(release, find_sources(release.version, layout), tmp_path, network, damage)


def damaged_index(places: dict[str, str], name: str, damage: str) -> dict[str, str]:
    kept = {key: file for key, file in places.items() if damage != "missing" or key != name}
    return kept | ({f"{name}.extra": places[name]} if damage == "unexpected" else {})


@pytest.mark.parametrize("network", ["transformer", "text_encoder"])
@EVERY_DAMAGE
def test_a_misfit_in_gguf_is_refused_by_its_name(exported, tmp_path, network, damage):
    release = exported(RELEASE)
    states = {
        "transformer": bare(load_file(release.sources.checkpoint), OFFICIAL),
        "text_encoder": gguf_t5_state(load_file(release.sources.text_encoder), release.version.text_encoder.layers),
    }
    name = TENSORS[network][network == "text_encoder"]
    states[network] = damaged(states[network], name, damage)
    sources = replace(
        release.sources,
        checkpoint=write_gguf(tmp_path / "ltxv.gguf", "ltxv", states["transformer"], "F32"),
        text_encoder=write_gguf(tmp_path / "t5.gguf", "t5encoder", states["text_encoder"], "F32"),
        vae=release.sources.checkpoint,
    )
    assert_refused(release, sources, tmp_path, network, damage)


def test_of_many_misfits_the_first_few_are_named(exported, tmp_path):
    release = exported(RELEASE)
    state = load_file(release.sources.checkpoint)
    gone = [name for name in state if name.startswith("vae.encoder.down_blocks.")]
    with safe_open(release.sources.checkpoint, "pt") as file:
        save_file(
            {name: state[name] for name in state if name not in gone}, tmp_path / "cut.safetensors", file.metadata()
        )
    with pytest.raises(LtxError) as refused:
        export(release.version, replace(release.sources, checkpoint=tmp_path / "cut.safetensors"), tmp_path / "out")
    message = str(refused.value)
    assert message.startswith(f"vae_encoder lacks {len(gone)} tensors (encoder.down_blocks.0.res_blocks.0.")
    assert message.count("encoder.down_blocks.") == 4 and f" and {len(gone) - 4} more) - " in message
