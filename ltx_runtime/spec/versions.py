"""Every LTX-Video release as frozen data: sizes, VAE generation, positions, schedule, guidance, passes, files.

A difference between releases is a field here, never an `if version.name == ...` elsewhere. The numbers are those
of the official inference presets and checkpoint headers (Lightricks/LTX-Video, `configs/*.yaml`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.presets import (
    BASE,
    DEV_13B,
    DISTILLED_SIGMAS,
    DISTILLED_SINGLE,
    LINEAR_QUADRATIC,
    SD3,
    Guidance,
    Pass,
    Schedule,
    distilled,
)

VaeGeneration = Literal["A", "B", "C"]

NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"


@dataclass(frozen=True)
class TransformerSize:
    """Width and depth of a DiT; the width is `heads * head_dim`."""

    layers: int
    heads: int
    head_dim: int
    text_channels: int = 4096
    channels: int = 128

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class VaeSize:
    """Widths and depths of a VAE; `None` means the released sizes of its generation.

    `encoder_blocks` of generation C are names, each with a number of layers or the factor of its channels.
    """

    base_channels: int = 128
    latent_channels: int = 128
    layers_per_block: int | None = None
    encoder_blocks: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True)
class UpsamplerSize:
    """Size of a latent upsampler.

    Attributes:
        mid_channels: number of channels inside.
        blocks_per_stage: number of residual blocks before the upsampling, and again after it.
        dims: dimensions of the convolutions; with 2, every frame is upsampled alone.
    """

    mid_channels: int = 512
    blocks_per_stage: int = 4
    dims: int = 3


@dataclass(frozen=True)
class TextEncoderSize:
    """Size of a T5 encoder. The released versions all use T5-v1.1-XXL."""

    layers: int = 24
    width: int = 4096
    heads: int = 64
    head_dim: int = 64
    hidden: int = 10240
    vocabulary: int = 32128


@dataclass(frozen=True)
class Version:
    """One release. `passes` has one entry, or two if the second pass refines upsampled latents.

    The first of two passes works at `first_pass_scale` of the requested size. `allowed_sigmas` are those that a
    distilled transformer was trained on; empty if every sigma is allowed. `checkpoint_bytes` is computed from the
    number of weights and their type in the checkpoint. Defaults are those of 0.9.5 and later.
    """

    name: str
    transformer: TransformerSize
    passes: tuple[Pass, ...]
    checkpoint: str
    checkpoint_bytes: int = 0
    vae: VaeGeneration = "C"
    causal_positions: bool = True
    schedule: Schedule = LINEAR_QUADRATIC
    repository: str | None = "Lightricks/LTX-Video"
    diffusers_repository: str | None = None
    upscaler: str | None = None
    upsampler_size: UpsamplerSize = UpsamplerSize()
    first_pass_scale: float = 0.6666666
    allowed_sigmas: tuple[float, ...] = ()
    aliases: tuple[str, ...] = ()
    vae_size: VaeSize = VaeSize()
    text_encoder: TextEncoderSize = TextEncoderSize()
    text_repository: str = "PixArt-alpha/PixArt-XL-2-1024-MS"
    text_tokens: int = 256
    decode_timestep: float = 0.05
    decode_noise_scale: float = 0.025
    negative_prompt: str = NEGATIVE_PROMPT
    height: int = 704
    width: int = 1216
    num_frames: int = 121
    fps: float = 30.0

    @property
    def uses_stg(self) -> bool:
        return any(pass_.uses_stg for pass_ in self.passes)

    @property
    def download_bytes(self) -> int:
        """Size of what `ltx-export download` fetches for the release: checkpoint, spatial upscaler, T5 in Q8_0."""
        return self.checkpoint_bytes + _T5_BYTES + (_UPSCALER_BYTES if self.upscaler else 0)


SIZE_2B = TransformerSize(layers=28, heads=32, head_dim=64)
SIZE_13B = TransformerSize(layers=48, heads=32, head_dim=128)

_2B_BYTES, _13B_BYTES = 6_340_000_000, 28_600_000_000  # of 0.9.5 and later, in bf16
_UPSCALER_BYTES, _T5_BYTES = 505_000_000, 5_060_000_000

# An encoder that is wide at once, so that its few layers leave room for what the latents say.
_DEMO_VAE = VaeSize(
    base_channels=12,
    layers_per_block=1,
    encoder_blocks=(
        ("compress_space_res", 4),
        ("compress_time_res", 1),
        ("res_x", 1),
        ("compress_all_res", 4),
        ("compress_all_res", 1),
    ),
)

_ALL = (
    Version(
        name="0.9.0",
        aliases=("0.9", "0.9.0-2b"),
        transformer=SIZE_2B,
        vae="A",
        causal_positions=False,
        schedule=SD3,
        passes=(BASE,),
        checkpoint="ltx-video-2b-v0.9.safetensors",
        checkpoint_bytes=9_370_000_000,
        diffusers_repository="diffusers/LTX-Video-0.9.0",
    ),
    Version(
        name="0.9.1",
        aliases=("0.9.1-2b",),
        transformer=SIZE_2B,
        vae="B",
        causal_positions=False,
        schedule=SD3,
        passes=(BASE,),
        checkpoint="ltx-video-2b-v0.9.1.safetensors",
        checkpoint_bytes=5_720_000_000,
        diffusers_repository="Lightricks/LTX-Video-0.9.1",
    ),
    Version(
        name="0.9.5",
        aliases=("0.9.5-2b",),
        transformer=SIZE_2B,
        passes=(BASE,),
        checkpoint="ltx-video-2b-v0.9.5.safetensors",
        checkpoint_bytes=_2B_BYTES,
        diffusers_repository="Lightricks/LTX-Video-0.9.5",
    ),
    Version(
        name="0.9.6-dev",
        aliases=("0.9.6-2b-dev",),
        transformer=SIZE_2B,
        passes=(BASE,),
        checkpoint="ltxv-2b-0.9.6-dev-04-25.safetensors",
        checkpoint_bytes=_2B_BYTES,
    ),
    Version(
        name="0.9.6-distilled",
        aliases=("0.9.6-2b-distilled",),
        transformer=SIZE_2B,
        passes=(DISTILLED_SINGLE,),
        allowed_sigmas=DISTILLED_SIGMAS,
        checkpoint="ltxv-2b-0.9.6-distilled-04-25.safetensors",
        checkpoint_bytes=_2B_BYTES,
    ),
    Version(
        name="0.9.7-dev",
        aliases=("0.9.7-13b-dev",),
        transformer=SIZE_13B,
        passes=DEV_13B,
        checkpoint="ltxv-13b-0.9.7-dev.safetensors",
        checkpoint_bytes=_13B_BYTES,
        diffusers_repository="Lightricks/LTX-Video-0.9.7-dev",
        upscaler="ltxv-spatial-upscaler-0.9.7.safetensors",
    ),
    Version(
        name="0.9.7-distilled",
        aliases=("0.9.7-13b-distilled",),
        transformer=SIZE_13B,
        passes=distilled(),
        allowed_sigmas=DISTILLED_SIGMAS,
        checkpoint="ltxv-13b-0.9.7-distilled.safetensors",
        checkpoint_bytes=_13B_BYTES,
        diffusers_repository="Lightricks/LTX-Video-0.9.7-distilled",
        upscaler="ltxv-spatial-upscaler-0.9.7.safetensors",
    ),
    Version(
        name="0.9.8-2b-distilled",
        aliases=("0.9.8-distilled",),
        transformer=SIZE_2B,
        passes=distilled(),
        allowed_sigmas=DISTILLED_SIGMAS,
        checkpoint="ltxv-2b-0.9.8-distilled.safetensors",
        checkpoint_bytes=_2B_BYTES,
        upscaler="ltxv-spatial-upscaler-0.9.8.safetensors",
    ),
    Version(
        name="0.9.8-13b-dev",
        aliases=("0.9.8-dev",),
        transformer=SIZE_13B,
        passes=DEV_13B,
        checkpoint="ltxv-13b-0.9.8-dev.safetensors",
        checkpoint_bytes=_13B_BYTES,
        upscaler="ltxv-spatial-upscaler-0.9.8.safetensors",
    ),
    Version(
        name="0.9.8-13b-distilled",
        aliases=("0.9.8-13b",),
        transformer=SIZE_13B,
        passes=distilled(tone_map=0.6),
        allowed_sigmas=DISTILLED_SIGMAS,
        checkpoint="ltxv-13b-0.9.8-distilled.safetensors",
        checkpoint_bytes=_13B_BYTES,
        diffusers_repository="Lightricks/LTX-Video-0.9.8-13B-distilled",
        upscaler="ltxv-spatial-upscaler-0.9.8.safetensors",
    ),
    Version(
        name="demo",
        transformer=TransformerSize(layers=6, heads=4, head_dim=32, text_channels=64),
        vae_size=_DEMO_VAE,
        text_encoder=TextEncoderSize(layers=2, width=64, heads=4, head_dim=16, hidden=160, vocabulary=512),
        passes=(
            Pass(
                steps=8,
                # More guidance where it is decided how many things there are makes several of one that was asked for.
                guidance=(Guidance(1.5, from_sigma=0.95), Guidance(2.0, 1.0, 0.7, (2,))),
            ),
            Pass(steps=8, skip_initial_steps=6, guidance=(Guidance(),)),
        ),
        checkpoint="demo.safetensors",
        upscaler="demo-spatial-upscaler.safetensors",
        upsampler_size=UpsamplerSize(mid_channels=32, blocks_per_stage=1, dims=2),
        repository=None,
        height=256,
        width=384,
        num_frames=25,
        fps=24.0,
    ),
)

VERSIONS: dict[str, Version] = {version.name: version for version in _ALL}
_BY_ALIAS = {alias: version for version in _ALL for alias in version.aliases}


def find_version(name: str) -> Version:
    """Returns the release with this name or alias.

    Raises:
        LtxError: no release has this name; the message lists the known ones.
    """
    version = VERSIONS.get(name) or _BY_ALIAS.get(name)
    if version is None:
        raise LtxError(f"unknown version {name!r}", f"use one of {', '.join(VERSIONS)}")
    return version
