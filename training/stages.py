"""The stages of the training, in order: each one reads what those before it have put down, and puts down its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import nn

from ltx_export.models.dit import Transformer
from ltx_export.models.t5 import TextEncoder
from ltx_export.models.upsampler import LatentUpsampler, Statistics
from ltx_export.models.vae import VaeDecoder
from ltx_export.models.vae_encoder import Encoder, VaeEncoder
from ltx_export.networks.header import header_config, transformer_config, vae_config
from ltx_export.networks.upsampler import upsampler_config, upsampler_header
from ltx_export.networks.vae_encoder import encoder_config
from ltx_export.official_files import t5_config
from ltx_runtime.spec.versions import VERSIONS
from training.assembly import write_trained
from training.clips import FRAMES, Batches, Clips, Size, drawn_clips, windows
from training.optimizing import Losses, Plan, optimize
from training.run import Run
from training.transformer.differentiable import differentiable, fused
from training.transformer.latents import Latents, latents_of_clips
from training.transformer.prompts import vocabulary_of_captions
from training.transformer.velocity import Denoiser, Lesson, deviation_of, is_inner_matrix, start_of, velocity_losses
from training.upsampling import start_upsampler, upsampler_losses
from training.vae.decoder import decoder_losses, start_as_inverse
from training.vae.encoder import encoder_losses, start_from_components
from training.vae.linear_code import LinearCode, fit_code

# Clips for the VAE: of the sizes of both passes of the demo, and how many windows are from each.
SIZES, COUNTS, SHARES = (Size(160, 224), Size(320, 448)), (1600, 160), (0.8, 0.2)
SIDE, WINDOW_FRAMES, BATCH = 96, 17, 4

# Numbers of components from patches of 4x4 pixels to cells, for which the encoder's widths, 12, 48, 48, 192 and 192,
# have room; the decoder's levels have as many channels, and one more in the first for a constant.
COMPONENTS = (11, 24, 48, 96)
FITTED, WEIGHT_OF_THINGS = 160, 4.0

ENCODER = Plan(steps=3500, rate=0.001, other_rate=5e-4)
DECODER = Plan(steps=5500, rate=0.003, other_rate=1e-3)

# What text encoder and transformer learn from: first frames, clips at the sizes of both passes, and clips at the size
# of a video that is made in one pass.
STILL_COUNT, CLIP_COUNTS = 24_000, (18_000, 2_100)
ONE_PASS, ONE_PASS_COUNT = Size(256, 384), 300
STILLS = Plan(steps=5000, rate=0.04, other_rate=6e-3)
MOTION = Plan(steps=8000, rate=0.03, other_rate=4e-3, constant=0.2, least=0.4)
REST = Plan(steps=8600, rate=0.02, other_rate=2.7e-3, constant=0.2)

UPSAMPLER, UPSAMPLER_BATCH = Plan(steps=5000, rate=0.01, other_rate=1e-3), 4
# Latent channels that are not used are noise to the transformer, and this much of it reaches the decoder.
DEVIATION_OF_UNUSED = 0.01


def train_code(run: Run) -> None:
    """Finds the linear code that latents are."""
    run.save("code", fit_code(_clips(run)[0], run.count(FITTED), COMPONENTS, WEIGHT_OF_THINGS).tensors(), [])


def train_encoder(run: Run) -> None:
    """Teaches the VAE's encoder the linear code."""
    run.start("encoder")
    clips, code = _clips(run), LinearCode.of(run.load("code"))
    encoder = demo_vae()[0].encoder
    start_from_components(encoder, code, clips[0])
    _optimize(run, "encoder", encoder, ENCODER, encoder_losses(encoder, code, _windows(clips, run, "encoder")))


def train_decoder(run: Run) -> None:
    """Teaches the VAE's decoder to draw from what the encoder says."""
    run.start("decoder")
    clips, encoder, decoder = _clips(run), trained_encoder(run), demo_vae()[1].decoder
    start_as_inverse(decoder, encoder, LinearCode.of(run.load("code")), clips[0])
    losses = decoder_losses(decoder, encoder, _windows(clips, run, "decoder"), run.seed_of("noise of the decoder"))
    _optimize(run, "decoder", decoder, DECODER, losses)


def train_vocabulary(run: Run) -> None:
    """Finds the pieces of words of which captions are made."""
    model = vocabulary_of_captions(VERSIONS["demo"].text_encoder.vocabulary, run.seed_of("captions"))
    run.save("vocabulary", {"model": torch.frombuffer(bytearray(model), dtype=torch.uint8)}, [])


def train_stills(run: Run) -> None:
    """Teaches text encoder and transformer what first frames look like."""
    stills = _encoded(run, SIZES[0], 1, STILL_COUNT, "stills of the transformer")
    _teach(run, "stills", None, STILLS, [Lesson(stills, 64, frames=1)])


def train_motion(run: Run) -> None:
    """Teaches text encoder and transformer clips of the first pass, with and without frames that are given."""
    _teach(run, "motion", "stills", MOTION, [Lesson(_latents(run, 0), 16, given=(0.2, 0.1))])


def train_rest(run: Run) -> None:
    """Teaches text encoder and transformer the second pass, keyframes, shorter clips and a single pass."""
    small, large = (_latents(run, of_pass) for of_pass in (0, 1))
    middle = _encoded(run, ONE_PASS, FRAMES, ONE_PASS_COUNT, "clips of one pass")
    lessons = [
        Lesson(small, 16, share=0.45, given=(0.15, 0.1)),
        Lesson(small, 16, share=0.1, given=(0.5, 0.0), keyframe=True),
        Lesson(middle, 6, share=0.1, given=(0.2, 0.1)),
        Lesson(large, 4, share=0.25, most_noise=0.92, given=(0.2, 0.1)),
        Lesson(large, 4, share=0.05, most_noise=0.92, given=(0.4, 0.0), keyframe=True),
        Lesson(small, 20, share=0.05, frames=3, given=(0.3, 0.0)),
    ]
    _teach(run, "rest", "motion", REST, lessons)


def train_upsampler(run: Run) -> None:
    """Teaches the upsampler what latents of the first pass are at the size of the second."""
    run.start("upsampler")
    small, large = (_latents(run, of_pass) for of_pass in (0, 1))
    upsampler = demo_upsampler()
    start_upsampler(upsampler, COMPONENTS[-1])
    seed = run.seed_of("clips of the upsampler")
    losses = upsampler_losses(upsampler, small, large, deviation_of(small), UPSAMPLER_BATCH, seed)
    _optimize(run, "upsampler", upsampler, UPSAMPLER, losses)


def assemble(run: Run) -> None:
    """Writes the demo's files from what all stages have put down."""
    version = VERSIONS["demo"]
    deviations = torch.full((version.vae_size.latent_channels,), deviation_of(_latents(run, 0)))
    deviations[COMPONENTS[-1] :] = DEVIATION_OF_UNUSED
    parts = {"denoiser": run.load("rest"), **{name: run.load(name) for name in ("encoder", "decoder", "upsampler")}}
    write_trained(version, run.folder / "weights", parts, deviations, _vocabulary(run))


STAGES: dict[str, Callable[[Run], None]] = {
    "code": train_code,
    "encoder": train_encoder,
    "decoder": train_decoder,
    "vocabulary": train_vocabulary,
    "stills": train_stills,
    "motion": train_motion,
    "rest": train_rest,
    "upsampler": train_upsampler,
    "weights": assemble,
}


def _clips(run: Run) -> tuple[Clips, ...]:
    """Returns the clips of the VAE's stages, which are drawn when they are needed first."""
    drawn = zip(SIZES, COUNTS, strict=True)
    return tuple(
        drawn_clips(run.folder / "clips", size, run.count(count), run.seed_of("clips")) for size, count in drawn
    )


def _windows(clips: tuple[Clips, ...], run: Run, stage: str) -> Batches:
    """Returns the function that takes the windows from which a stage of the VAE learns at a step."""
    seed = run.seed_of(f"windows of the {stage}")
    return lambda step: windows(clips, SHARES, BATCH, SIDE, WINDOW_FRAMES, (seed, step))


def trained_encoder(run: Run) -> Encoder:
    """Returns the VAE's encoder as its stage has put it down."""
    encoder = demo_vae()[0].encoder
    encoder.load_state_dict(run.load("encoder"))
    return encoder


def demo_vae() -> tuple[VaeEncoder, VaeDecoder]:
    """Returns the demo's VAE with weights that are not set yet."""
    header = header_config(VERSIONS["demo"])["vae"]
    return VaeEncoder(encoder_config(header)), VaeDecoder(vae_config(header))


def _latents(run: Run, of_pass: int) -> Latents:
    """Returns the latents of clips at the size of a pass, 0 or 1: the same clips, but fewer for the second one."""
    return _encoded(run, SIZES[of_pass], FRAMES, CLIP_COUNTS[of_pass], "clips of the transformer")


def _encoded(run: Run, size: Size, frames: int, count: int, purpose: str) -> Latents:
    """Returns latents of the run's share of clips, which are computed when they are needed first."""
    folder, encoder, seed = run.folder / "clips", trained_encoder(run), run.seed_of(purpose)
    return latents_of_clips(folder, encoder, size, frames, run.count(count), COMPONENTS[-1], seed)


def _vocabulary(run: Run) -> bytes:
    """Returns the file of the tokenizer."""
    file: bytes = run.load("vocabulary")["model"].numpy().tobytes()
    return file


def demo_upsampler() -> LatentUpsampler:
    """Returns the demo's upsampler with weights that are not set yet, for latents that are not normalized."""
    config = upsampler_config(upsampler_header(VERSIONS["demo"]))
    same = Statistics(np.zeros(config.channels, np.float32), np.ones(config.channels, np.float32))
    return LatentUpsampler(config, same)


def demo_denoiser() -> Denoiser:
    """Returns the demo's text encoder and transformer with weights that are not set yet."""
    version = VERSIONS["demo"]
    transformer = Transformer(transformer_config(header_config(version)["transformer"]))
    return Denoiser(TextEncoder(t5_config(version.text_encoder)), transformer)


def _teach(run: Run, name: str, before: str | None, plan: Plan, lessons: list[Lesson]) -> None:
    """Trains text encoder and transformer from what another stage has put down, or from random weights."""
    run.start(name)
    denoiser = demo_denoiser()
    if before is None:
        start_of(denoiser, COMPONENTS[-1])
    else:
        denoiser.load_state_dict(run.load(before))
    tokenizer = SentencePieceProcessor(model_proto=_vocabulary(run))
    scale = deviation_of(lessons[0].latents)
    config = transformer_config(header_config(VERSIONS["demo"])["transformer"])
    with differentiable():
        losses = velocity_losses(fused(denoiser), config, lessons, tokenizer, scale, run.seed_of(f"lessons of {name}"))
        _optimize(run, name, denoiser, plan, losses, is_inner_matrix)


def _is_kernel(name: str, parameter: nn.Parameter) -> bool:
    """Tells which weights of the VAE are for Muon: the kernels of convolutions."""
    return parameter.ndim >= 4


def _optimize(
    run: Run,
    name: str,
    network: nn.Module,
    plan: Plan,
    losses_at: Callable[[int], Losses],
    is_matrix: Callable[[str, nn.Parameter], bool] = _is_kernel,
) -> None:
    """Trains a network and puts the result down."""
    parameters = dict(network.named_parameters())
    run.report(f"{name}: {sum(parameter.numel() for parameter in parameters.values()):,} weights")
    averages, curve = optimize(parameters, is_matrix, run.plan(plan), losses_at, run.report, run.unfinished(name))
    run.save(name, averages, curve)
