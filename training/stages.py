"""The stages of the training, in order: each one reads what those before it have put down, and puts down its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ltx_export.models.vae import VaeDecoder
from ltx_export.models.vae_encoder import VaeEncoder
from ltx_export.networks.header import header_config, vae_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_runtime.spec.versions import VERSIONS
from training.clips import Clips, Size, drawn_clips, windows
from training.optimizing import Losses, Plan, optimize
from training.run import Run
from training.vae.decoder import decoder_losses, start_as_inverse, with_unused
from training.vae.encoder import encoder_losses, start_from_components
from training.vae.linear_code import LinearCode, fit_code

# Clips for the VAE: of the sizes of both passes of the demo, and how many windows are from each.
SIZES, COUNTS, SHARES = (Size(160, 224), Size(320, 448)), (1600, 160), (0.8, 0.2)
SIDE, WINDOW_FRAMES, BATCH = 96, 17, 4

# Numbers of components from patches of 4x4 pixels to cells; the decoder's levels have as many channels, and one more
# in the first for a constant.
COMPONENTS = (11, 24, 48, 96)
FITTED, WEIGHT_OF_THINGS = 160, 4.0

ENCODER = Plan(steps=4000, rate=0.002, other_rate=1e-3)
DECODER = Plan(steps=6000, rate=0.003, other_rate=1e-3)


def train_code(run: Run) -> None:
    """Finds the linear code that latents are."""
    run.save("code", fit_code(_clips(run)[0], run.count(FITTED), COMPONENTS, WEIGHT_OF_THINGS).tensors(), [])


def train_encoder(run: Run) -> None:
    """Teaches the VAE's encoder the linear code."""
    run.start("encoder")
    clips, code = _clips(run), LinearCode.of(run.load("code"))
    encoder = _vae()[0].encoder
    start_from_components(encoder, code, clips[0])
    batches = windows(clips, SHARES, BATCH, SIDE, WINDOW_FRAMES, run.seed_of("windows of the encoder"))
    _optimize(run, "encoder", encoder, ENCODER, encoder_losses(encoder, code, batches))


def train_decoder(run: Run) -> None:
    """Teaches the VAE's decoder to draw, from the linear code and from what the encoder makes of it."""
    run.start("decoder")
    clips, code = _clips(run), LinearCode.of(run.load("code"))
    vae_encoder, vae_decoder = _vae()
    encoder, decoder = vae_encoder.encoder, vae_decoder.decoder
    encoder.load_state_dict(run.load("encoder"))
    start_as_inverse(decoder, code, clips[0])

    @torch.no_grad()
    def latents_of(video: Tensor) -> Tensor:
        half = len(video) // 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            learned = encoder(video[:half])[:, :-1].float()
        return torch.cat([learned, with_unused(code.encode(video[half:]))])

    batches = windows(clips, SHARES, BATCH, SIDE, WINDOW_FRAMES, run.seed_of("windows of the decoder"))
    losses = decoder_losses(decoder, latents_of, batches, run.seed_of("noise of the decoder"))
    _optimize(run, "decoder", decoder, DECODER, losses)


STAGES: dict[str, Callable[[Run], None]] = {"code": train_code, "encoder": train_encoder, "decoder": train_decoder}


def _clips(run: Run) -> tuple[Clips, ...]:
    """Returns the clips of the VAE's stages, which are drawn when they are needed first."""
    drawn = zip(SIZES, COUNTS, strict=True)
    return tuple(
        drawn_clips(run.folder / "clips", size, run.count(count), run.seed_of("clips")) for size, count in drawn
    )


def _vae() -> tuple[VaeEncoder, VaeDecoder]:
    """Returns the demo's VAE with weights that are not set yet."""
    header = header_config(VERSIONS["demo"])["vae"]
    return VaeEncoder(encoder_config(header)), VaeDecoder(vae_config(header))


def _optimize(run: Run, name: str, network: nn.Module, plan: Plan, losses_at: Callable[[int], Losses]) -> None:
    """Trains a network of the VAE, of whose weights Muon gets the kernels, and puts the result down."""
    parameters = dict(network.named_parameters())
    run.report(f"{name}: {sum(parameter.numel() for parameter in parameters.values()):,} weights")
    averages, curve = optimize(parameters, lambda _, p: p.ndim >= 4, run.plan(plan), losses_at, run.report)
    run.save(name, averages, curve)
