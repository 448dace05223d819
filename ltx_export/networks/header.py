"""Converts between a checkpoint's header and the models' configurations, without torch tensors or files.

`header_config` writes a version's sizes in the form of an official header, so that one parser serves checkpoints with
and without a header.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from itertools import chain
from typing import Any, cast, get_args

from ltx_export.checkpoints.shapes import UNFOLDED, transformer_part, vae_part
from ltx_export.models.dit import DitConfig
from ltx_export.models.rope import MAX_POSITION, THETA
from ltx_export.models.vae import BlockKind, VaeBlock, VaeConfig
from ltx_export.models.vae_blocks import PADDING_MODES
from ltx_export.networks.header_fields import LARGEST, block_count, flag, one_of, positive, refuse_others, required
from ltx_export.sources.find import Opened
from ltx_runtime.errors import LtxError
from ltx_runtime.sampling.schedule import GRIDS, SHIFTS
from ltx_runtime.spec.encodings import TIMESTEP_SCALE
from ltx_runtime.spec.presets import Schedule
from ltx_runtime.spec.versions import VERSIONS, Version

Json = dict[str, Any]

# Values that the models assume; a header with any other value is refused.
_TRANSFORMER_ASSUMED: Json = {
    "_class_name": "Transformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "adaptive_norm": "single_scale_shift",
    "attention_type": "default",
    "double_self_attention": False,
    "only_cross_attention": False,
    "positional_embedding_type": "rope",
    "timestep_scale_multiplier": TIMESTEP_SCALE,
}
_VAE_ASSUMED: Json = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "causal_decoder": False,
    "scaling_factor": 1.0,
    "normalize_latent_channels": False,
}
_A_LAYERS = (4, 3, 3, 3, 4)
_DECODER_LAYERS = {"B": (5, 6, 7, 8), "C": (5, 5, 5, 5)}
_C_ENCODER = ((4, "space"), (6, "time"), (6, "all"), (2, "all"))
_SMALLEST_WIDTH = 6  # a pair of channels for time, rows and columns
_SCHEDULE_FIELDS = {field.name for field in fields(Schedule)}


def header_config(version: Version) -> Json:
    """Returns a version's architecture in the form that official single-file checkpoints have in their header."""
    size = version.transformer
    return {
        "transformer": {
            **_TRANSFORMER_ASSUMED,
            "num_layers": size.layers,
            "num_attention_heads": size.heads,
            "attention_head_dim": size.head_dim,
            "cross_attention_dim": size.width,
            "caption_channels": size.text_channels,
            "in_channels": size.channels,
            "out_channels": size.channels,
            "positional_embedding_theta": THETA,
            "positional_embedding_max_pos": list(MAX_POSITION),
            "causal_temporal_positioning": version.causal_positions,
        },
        "vae": {
            **_VAE_ASSUMED,
            **_vae_blocks(version),
            "latent_channels": version.vae_size.latent_channels,
            "encoder_base_channels": version.vae_size.base_channels,
            "decoder_base_channels": version.vae_size.base_channels,
            "timestep_conditioning": version.vae != "A",
        },
        "scheduler": _scheduler(version),
    }


def _scheduler(version: Version) -> Json:
    return {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000, **asdict(version.schedule)}


def _vae_blocks(version: Version) -> Json:
    """Returns the block lists in a header's form: both in the encoder's order, i.e. the decoder's is reversed."""

    def layers(count: int) -> int:
        return version.vae_size.layers_per_block or count

    counts = [layers(count) for count in _A_LAYERS]
    plain: list[Any] = []
    for i, count in enumerate(counts[:3]):
        plain += [["res_x", count], ["compress_all", 1], *([["res_x_y", 1]] if i < 2 else [])]
    plain += [["res_x", count] for count in counts[3:]]
    if version.vae == "A":
        return {"blocks": plain}
    decoder: list[Any] = []
    for i, count in enumerate(_DECODER_LAYERS[version.vae]):
        noise = version.vae == "B" and i < 3
        decoder += [["compress_all", {"residual": True, "multiplier": 2}]] if decoder else []
        decoder += [["res_x", {"num_layers": layers(count), "inject_noise": noise}]]
    if version.vae == "B":
        return {"encoder_blocks": plain, "decoder_blocks": decoder}
    blocks = version.vae_size.encoder_blocks
    if blocks is None:
        pairs = [(("res_x", layers(count)), (f"compress_{kind}_res", 2)) for count, kind in _C_ENCODER]
        blocks = (*chain.from_iterable(pairs), ("res_x", layers(2)))
    encoder = [[name, {"num_layers" if name == "res_x" else "multiplier": number}] for name, number in blocks]
    return {"encoder_blocks": encoder, "decoder_blocks": decoder}


def checked_header(version: Version, opened: Opened) -> Json:
    """Returns the effective header of files that can be exported as this version.

    Raises:
        LtxError: a network is another release's, its number of heads is unknown, or a file lacks a tensor from which a
            size is read.
    """
    header = effective_header(version, opened)
    refuse_another_version(version, header)
    refuse_unknown_heads(version, opened)
    return header


def effective_header(version: Version, opened: Opened) -> Json:
    """Returns the files' header; where it lacks a part, tensor shapes and the version's table complete it.

    Raises:
        LtxError: a file without configuration lacks a tensor from which a size is read.
    """
    table, config = header_config(version), opened.config
    header = {**table, **config}
    if "transformer" not in config:
        heads = opened.heads or version.transformer.heads
        header["transformer"] = {**table["transformer"], **transformer_part(opened.transformer, heads)}
    if "vae" not in config:
        header["vae"] = {**table["vae"], **vae_part(opened.vae)}
    return header


def refuse_another_version(version: Version, header: Mapping[str, Any]) -> None:
    """Refuses a checkpoint with a network of another release; a fine-tune's, which no release has, is accepted.

    Raises:
        LtxError: the transformer or the VAE is another release's; the message names a field, both values and what to
            do.
    """
    for part, differences in _differences(version, header).items():
        facts = _facts(part, header)
        others = [other.name for other in VERSIONS.values() if _facts(part, header_config(other)) == facts]
        if differences and others:
            field, actual, wanted = differences[0]
            raise LtxError(
                f"the checkpoint's {field} is {actual!r}, but {version.name} has {wanted!r}",
                f"use the checkpoint's own version name, such as {others[0]}",
            )


def refuse_unknown_heads(version: Version, opened: Opened) -> None:
    """Refuses a transformer without configuration whose width is not the version's: weights do not show its heads.

    Raises:
        LtxError: the number of heads is unknown.
    """
    if "transformer" in opened.config or opened.heads is not None:
        return
    width = transformer_part(opened.transformer, 1)["cross_attention_dim"]
    if width != version.transformer.width:
        raise LtxError(
            f"the checkpoint has no configuration, and its width is {width}, not the {version.transformer.width} of "
            f"{version.name}, so its number of attention heads is unknown",
            "give a file with its configuration in the header, or a diffusers folder with its config.json",
        )


def fine_tune_notes(version: Version, header: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each fact in which the networks are not the version's, and one if its presets do not fit."""
    for differences in _differences(version, header).values():
        for field, actual, wanted in differences:
            yield f"a fine-tune: {field} is {actual!r}, where {version.name} has {wanted!r}"
    layers = header["transformer"]["num_layers"]
    skipped = {block for one in version.passes for entry in one.guidance for block in entry.skip_blocks}
    if skipped and max(skipped) >= layers:
        yield (
            f"the presets of {version.name} skip block {max(skipped)} of {layers}: ltx-run will need --skip-blocks, or "
            "--stg-scale 0"
        )


def _differences(version: Version, header: Mapping[str, Any]) -> dict[str, list[tuple[str, Any, Any]]]:
    """Returns, for transformer and VAE, the facts that are not the version's: field, value and the version's value."""
    expected = header_config(version)
    return {
        part: [
            (field, actual, wanted)
            for (field, actual), wanted in zip(
                _facts(part, header).items(), _facts(part, expected).values(), strict=True
            )
            if actual != wanted
        ]
        for part in ("transformer", "vae")
    }


def _facts(part: str, header: Mapping[str, Any]) -> Json:
    """Returns the fields that tell the networks of releases apart, for one part of a header."""
    config = header[part]
    if part == "transformer":
        fields = ("num_layers", "num_attention_heads", "attention_head_dim")
        return {f"transformer.{field}": config.get(field) for field in fields}
    vae = vae_config(config)
    blocks = [(block.kind, block.inject_noise) for block in vae.blocks]
    return {"vae.timestep_conditioning": vae.timestep, "vae.decoder_blocks": blocks}


def schedule_of(version: Version, header: Mapping[str, Any]) -> Schedule:
    """Returns the schedule of a header's `scheduler` part, or the version's if that part has none of its fields.

    Raises:
        LtxError: a field has a value that is not implemented; the message names the field.
    """
    config = header.get("scheduler", {})
    if not config.keys() & _SCHEDULE_FIELDS:
        return version.schedule
    schedule = Schedule(config.get("sampler", "Uniform"), config.get("shifting"), config.get("target_shift_terminal"))
    terminal = schedule.target_shift_terminal
    for name, is_supported in (
        ("sampler", schedule.sampler in [*GRIDS]),
        ("shifting", schedule.shifting in [None, *SHIFTS]),
        ("target_shift_terminal", terminal is None or (type(terminal) is float and 0 < terminal < 1)),
    ):
        if not is_supported:
            raise LtxError(
                f"the checkpoint's scheduler.{name} is {getattr(schedule, name)!r}, which is not supported",
                "use an official file",
            )
    return schedule


def transformer_config(config: Mapping[str, Any]) -> DitConfig:
    """Returns the DiT's configuration from a header's `transformer` part.

    Raises:
        LtxError: a size is missing, or the model does not implement a field's value; the message names the field.
    """
    refuse_others("transformer", config, _TRANSFORMER_ASSUMED)
    dit = DitConfig(
        layers=required("transformer", config, "num_layers"),
        heads=required("transformer", config, "num_attention_heads"),
        head_dim=required("transformer", config, "attention_head_dim"),
        channels=required("transformer", config, "in_channels"),
        text_channels=required("transformer", config, "caption_channels"),
        theta=positive("positional_embedding_theta", config.get("positional_embedding_theta", THETA)),
        max_position=_max_position(config.get("positional_embedding_max_pos", MAX_POSITION)),
    )
    refuse_others("transformer", config, {"out_channels": dit.channels, "cross_attention_dim": dit.width})
    if dit.width % 2 or dit.width < _SMALLEST_WIDTH:
        raise LtxError(
            f"the checkpoint's transformer has {dit.heads} heads of {dit.head_dim} channels, but its positions rotate "
            f"pairs of channels, so that its width must be even and at least {_SMALLEST_WIDTH}",
            "use an official file",
        )
    return dit


def _max_position(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise LtxError(
            f"the checkpoint's transformer.positional_embedding_max_pos is {values!r}, not three numbers",
            "use an official file",
        )
    seconds, row, column = (positive("positional_embedding_max_pos", value) for value in values)
    return seconds, row, column


def vae_config(config: Mapping[str, Any]) -> VaeConfig:
    """Returns the decoder's configuration from a header's `vae` part.

    Raises:
        LtxError: the blocks are missing, or the model does not implement a block or a field's value; the message names
            it.
    """
    refuse_others("vae", config, _VAE_ASSUMED)
    blocks = config.get("decoder_blocks", config.get("blocks"))
    if not blocks:
        raise LtxError("the checkpoint's vae configuration has no decoder_blocks", "use an official file")
    vae = VaeConfig(
        blocks=_vae_block_list(blocks),
        latent_channels=required("vae", config, "latent_channels"),
        base_channels=required("vae", {"decoder_base_channels": 128, **config}, "decoder_base_channels"),
        timestep=flag("vae", config, "timestep_conditioning", False),
        padding_mode=one_of("vae", config, "spatial_padding_mode", PADDING_MODES),
    )
    _refuse_widths(vae)
    return vae


def _refuse_widths(vae: VaeConfig) -> None:
    """Raises LtxError if there are too many channels, or if a residual block's cannot be unfolded by 2x2x2."""
    channels = vae.first_channels
    if channels > LARGEST:
        raise LtxError(
            f"the checkpoint's vae.decoder_blocks need {channels} channels, more than {LARGEST}", "use an official file"
        )
    for block in vae.blocks:
        if block.residual and channels % UNFOLDED:
            raise LtxError(
                f"the checkpoint's vae.decoder_base_channels is {vae.base_channels}, so an upsampling block has "
                f"{channels} channels, not a multiple of {UNFOLDED}",
                "use an official file",
            )
        channels //= block.multiplier


def _vae_block_list(blocks: Any) -> tuple[VaeBlock, ...]:
    try:
        return tuple(_vae_block(name, sizes) for name, sizes in reversed(blocks))
    except (TypeError, ValueError):
        raise LtxError(
            "the checkpoint's VAE blocks are not a list of [name, sizes] pairs", "use an official file"
        ) from None


def _vae_block(name: str, sizes: int | Json) -> VaeBlock:
    fields: Json = {"num_layers": sizes} if isinstance(sizes, int) else dict(sizes)
    layers = block_count(name, "num_layers", fields.pop("num_layers", 1))
    inject_noise, residual = (flag(f"vae {name}", fields, field, False) for field in ("inject_noise", "residual"))
    multiplier = block_count(name, "multiplier", fields.pop("multiplier", 2 if name == "res_x_y" else 1))
    others = fields.keys() - {"inject_noise", "residual"}
    if name not in get_args(BlockKind) or others:
        unknown = f"{name} with {', '.join(sorted(others))}" if others else name
        raise LtxError(
            f"the checkpoint's VAE decoder has a block {unknown!r} that is not supported", "use an official file"
        )
    return VaeBlock(cast(BlockKind, name), layers, multiplier, residual, inject_noise)
