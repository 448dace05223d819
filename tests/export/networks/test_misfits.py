"""A missing, extra or misshapen tensor, in any network and any layout, is refused by its name."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples.layouts import OFFICIAL, bare, gguf_t5_state, write_diffusers, write_gguf
from samples.tiny import Exported, export

from ltx_export.models.vae import TIMESTEP_SCALE_KEY
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import Sources, find_sources
from ltx_runtime.errors import LtxError

RELEASE = "0.9.5"
# Network -> (our name of a tensor, its name in diffusers or, for the text encoder, in GGUF).
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
    """Writes a copy of a safetensors file in which one tensor is damaged."""
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
        expected = f"has 1 wrongly shaped tensor ({ours} {[rows + 1, *rest]} instead of {[rows, *rest]})"
    else:
        expected = f"lacks 1 tensor ({ours})" if damage == "missing" else f"has 1 unexpected tensor ({ours}.extra)"
    told = re.fullmatch(
        rf"{re.escape(f'{network} {expected}')} in (.+) - check that the file is for this version", message
    )
    assert told, message
    assert Path(told[1]).is_file()
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


@pytest.mark.parametrize("network", ["transformer", "vae_decoder", "text_encoder"])
def test_a_dtype_that_is_not_read_is_refused_before_anything_is_written(exported, tmp_path, network):
    release = exported(RELEASE)
    path, name = file_of(release, network), PREFIX[network] + TENSORS[network][0]
    state = load_file(path)
    save_file(state | {name: state[name].double()}, tmp_path / "double.safetensors")
    field = "text_encoder" if network == "text_encoder" else "checkpoint"
    sources = replace(release.sources, **{field: tmp_path / "double.safetensors"})
    with pytest.raises(LtxError, match=r"double\.safetensors stores weights as F64 - use one in F32, "):
        export(release.version, sources, tmp_path / "engines" / RELEASE)
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize("scale", [1.0, 999.0, float("nan"), [1000.0, 1000.0]], ids=str)
@pytest.mark.parametrize("name", ["0.9.1", "0.9.5"])
def test_a_vae_that_scales_timesteps_otherwise_is_refused_with_its_scale(exported, tmp_path, name, scale):
    """Noise levels reach a decoder as sinusoids that were made with the scale of all releases."""
    release = exported(name)
    with safe_open(release.sources.checkpoint, "pt") as file:
        state = load_file(release.sources.checkpoint) | {f"vae.{TIMESTEP_SCALE_KEY}": torch.tensor(scale)}
        save_file(state, tmp_path / "scaled.safetensors", file.metadata())
    stored = ", ".join(map(str, scale if isinstance(scale, list) else [scale]))
    said = f"the VAE's decoder.timestep_scale_multiplier is {stored}, not 1000 - use an official VAE"
    with pytest.raises(LtxError, match=f"^{re.escape(said)}$"):
        export(release.version, replace(release.sources, checkpoint=tmp_path / "scaled.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    assert message.count("encoder.down_blocks.") == 4 and f" and {len(gone) - 4} more) in " in message


def with_header(release: Exported, path: Path, part: str, change: object) -> Sources:
    """Returns the sources with a checkpoint whose header's `part` is `change`, or `change` applied to the part."""
    with safe_open(release.sources.checkpoint, "pt") as file:
        header = json.loads(file.metadata()["config"])
    header[part] = change(header[part]) if callable(change) else change
    save_file(load_file(release.sources.checkpoint), path, {"config": json.dumps(header)})
    return replace(release.sources, checkpoint=path)


def first_upsampling(**fields: object):
    """Returns a change of a header's VAE that sets fields of its upsampling blocks in the decoder."""

    def change(vae: dict) -> dict:
        blocks = [
            [kind, {**given, **fields} if kind == "compress_all" else given] for kind, given in vae["decoder_blocks"]
        ]
        return {**vae, "decoder_blocks": blocks}

    return change


def first_of_the_encoder(block: object):
    """Returns a change of a header's VAE that puts one more block in front of its encoder's."""
    return lambda vae: {**vae, "encoder_blocks": [block, *vae["encoder_blocks"]]}


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        *(("vae", first_upsampling(multiplier=value), f"multiplier {value!r}") for value in (0, "2", 2.0, None, True)),
        *(("vae", first_upsampling(num_layers=value), f"num_layers {value!r}") for value in ("1", 1.5)),
        ("vae", lambda vae: {**vae, "decoder_base_channels": 1 << 40}, f"decoder_base_channels is {1 << 40}"),
        ("transformer", lambda dit: {**dit, "in_channels": 1 << 40}, f"in_channels is {1 << 40}"),
        *(
            ("vae", first_upsampling(residual=value), f"residual is {value!r}, not true or false")
            for value in ("no", 1)
        ),
        ("vae", first_upsampling(multiplier=60_000), "channels, more than 65536"),
        ("vae", lambda vae: {**vae, "timestep_conditioning": "no"}, "timestep_conditioning is 'no', not true or false"),
        *(
            ("vae", first_of_the_encoder(bad), named)
            for bad, named in (
                (["res_x", 10**9], "num_layers 1000000000, not an integer"),
                (["res_x", {}], "num_layers None, not an integer"),
                ("x", "vae.encoder_blocks are not a list of [name, sizes] pairs"),
                (["compress_all_res", {"multiplier": "2"}], "multiplier '2', not an integer"),
                (["other", {}], "block 'other' that is not supported"),
                (["res_x", 60_000], "tensors for 600"),
            )
        ),
        ("vae", lambda vae: {**vae, "encoder_blocks": [["compress_all", {}]] * 100_000}, "100000] times, but only [3,"),
        ("vae", lambda vae: {**vae, "encoder_base_channels": 1 << 40}, f"encoder_base_channels is {1 << 40}"),
        ("vae", lambda vae: {**vae, "decoder_blocks": [["res_x", 9000]] * 9}, "for 81009 layers"),
        ("transformer", lambda dit: {**dit, "out_channels": 9}, "out_channels is 9, but only 8"),
        ("transformer", lambda dit: {**dit, "cross_attention_dim": 1}, "cross_attention_dim is 1, but only"),
        (
            "transformer",
            lambda dit: {**dit, "causal_temporal_positioning": "false"},
            "positioning is 'false', not true",
        ),
        (
            "transformer",
            lambda dit: {**dit, "positional_embedding_theta": 10**400},
            "positional_embedding_theta is 1000",
        ),
        ("scheduler", [], "not an object of objects"),
    ],
)
def test_a_broken_field_of_a_header_is_refused_by_its_name(exported, tmp_path, part, change, named):
    release = exported(RELEASE)
    sources = with_header(release, tmp_path / "changed.safetensors", part, change)
    with pytest.raises(LtxError) as refused:
        export(release.version, sources, tmp_path / "out")
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_positions_that_a_header_leaves_open_are_those_of_the_release(exported, tmp_path):
    release = exported(RELEASE)
    opened = with_header(
        release, tmp_path / "x.safetensors", "transformer", lambda dit: {**dit, "causal_temporal_positioning": None}
    )
    assert release.version.causal_positions
    assert export(release.version, opened, tmp_path / "out").causal_positions is True


def test_the_vae_of_another_transformer_is_refused_with_both_numbers_of_channels(exported, tmp_path):
    release = exported(RELEASE)
    wide = replace(release.version, vae_size=replace(release.version.vae_size, latent_channels=16))
    write_random_weights(wide, tmp_path / "wide")
    sources = replace(release.sources, vae=tmp_path / "wide" / wide.checkpoint)
    with pytest.raises(LtxError, match="the VAE has 16 latent channels, but the transformer takes 8 - give the VAE"):
        export(release.version, sources, tmp_path / "out")
