"""The stages of the training, in order: each one reads what those before it have put down, and puts down its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ltx_export.models.vae import VaeDecoder
from ltx_export.models.vae_encoder import VaeEncoder
from ltx_export.networks.header import header_config, vae_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_runtime.spec.versions import VERSIONS, VaeSize
from training.clips import Batches, Clips, Size, drawn_clips, windows
from training.optimizing import Losses, Plan, optimize
from training.run import Run
from training.vae.both import vae_losses
from training.vae.decoder import decoder_losses, start_as_inverse
from training.vae.encoder import encoder_losses, start_from_components
from training.vae.linear_code import LinearCode, fit_code

# The encoder's widths, 12, 48, 48, 192 and 192, leave room for more components than the code has at each level.
VAE_SIZE = VaeSize(
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

# Clips for the VAE: of the sizes of both passes of the demo, and how many windows are from each.
SIZES, COUNTS, SHARES = (Size(160, 224), Size(320, 448)), (1600, 160), (0.8, 0.2)
SIDE, WINDOW_FRAMES, BATCH = 96, 17, 4

# Numbers of components from patches of 4x4 pixels to cells; the decoder's levels have as many channels, and one more
# in the first for a constant.
COMPONENTS = (11, 24, 48, 96)
FITTED, WEIGHT_OF_THINGS = 160, 4.0

ENCODER = Plan(steps=2500, rate=0.001, other_rate=5e-4)
DECODER = Plan(steps=2500, rate=0.003, other_rate=1e-3)
VAE = Plan(steps=3000, rate=0.0008, other_rate=3e-4)


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
    """Teaches the VAE's decoder to draw from the linear code."""
    run.start("decoder")
    clips, code = _clips(run), LinearCode.of(run.load("code"))
    decoder = demo_vae()[1].decoder
    start_as_inverse(decoder, code, clips[0])
    losses = decoder_losses(decoder, code, _windows(clips, run, "decoder"), run.seed_of("noise of the decoder"))
    _optimize(run, "decoder", decoder, DECODER, losses)


def train_vae(run: Run) -> None:
    """Teaches the encoder to say what the decoder needs."""
    run.start("vae")
    code, vae = LinearCode.of(run.load("code")), demo_vae()
    network = nn.ModuleDict({"encoder": vae[0].encoder, "decoder": vae[1].decoder})
    for name, part in network.items():
        part.load_state_dict(run.load(name))
    losses = vae_losses(
        vae[0].encoder, vae[1].decoder, code, _windows(_clips(run), run, "vae"), run.seed_of("noise of the vae")
    )
    _optimize(run, "vae", network, VAE, losses)


STAGES: dict[str, Callable[[Run], None]] = {
    "code": train_code,
    "encoder": train_encoder,
    "decoder": train_decoder,
    "vae": train_vae,
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


def demo_vae() -> tuple[VaeEncoder, VaeDecoder]:
    """Returns the demo's VAE with weights that are not set yet."""
    header = header_config(replace(VERSIONS["demo"], vae_size=VAE_SIZE))["vae"]
    return VaeEncoder(encoder_config(header)), VaeDecoder(vae_config(header))


def _optimize(run: Run, name: str, network: nn.Module, plan: Plan, losses_at: Callable[[int], Losses]) -> None:
    """Trains a network of the VAE, of whose weights Muon gets the kernels, and puts the result down."""
    parameters = dict(network.named_parameters())
    run.report(f"{name}: {sum(parameter.numel() for parameter in parameters.values()):,} weights")
    averages, curve = optimize(
        parameters, lambda _, p: p.ndim >= 4, run.plan(plan), losses_at, run.report, run.unfinished(name)
    )
    run.save(name, averages, curve)
