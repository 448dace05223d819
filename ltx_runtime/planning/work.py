"""The stages of a run and an estimate of their work, from which the total progress of a run is shown.

The estimates are floating-point operations, and need only be right to a factor of two or so: on CPUs in fp32 and on an
H200 in bf16, a decoded pixel takes about as long as 1e6 operations of the 2B transformer.
"""

from __future__ import annotations

from collections.abc import Sequence

from ltx_runtime.planning.plan import Plan
from ltx_runtime.sampling.pass_plan import PassPlan
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.versions import TextEncoderSize, TransformerSize, Version

TEXT, MEDIA, UPSCALE, FRAME_RATE, DECODE = "text", "media", "upscale", "frame rate", "decode"
_DECODED_PIXEL, _ENCODED_PIXEL = 1e6, 5e5
_UPSAMPLED_CELL = 2.5e8  # sixteen 3x3x3 convolutions of 512 channels


def denoise_label(number: int, passes: int) -> str:
    """Returns the label of a denoising stage; `number` counts passes from 1."""
    return "denoise" if passes == 1 else f"denoise {number}"


def work_of(planned: Plan, version: Version, names: Sequence[ComponentName], media: int) -> dict[str, float]:
    """Estimates the floating-point operations of every stage of a run, by its label, in the order of the road.

    Args:
        planned: the plan of the run.
        version: the release that runs it.
        names: the components that are run.
        media: number of images and clips that are encoded for every pass.
    """
    grids = [one.grid for one in planned.passes]
    work = {}
    if "text_encoder" in names:
        prompts = 1 + planned.uses_negative_prompt
        work[TEXT] = prompts * version.text_tokens * _text_encoder(version.text_encoder)
    if "vae_encoder" in names:
        work[MEDIA] = media * _ENCODED_PIXEL * sum(map(_pixels, grids))
    for number, one in enumerate(planned.passes, start=1):
        if number > 1:
            work[UPSCALE] = _UPSAMPLED_CELL * grids[number - 2].tokens
        work[denoise_label(number, len(planned.passes))] = _pass(one, version.transformer)
    frames = planned.ending.num_frames
    if planned.temporal_upscale:
        work[FRAME_RATE] = _UPSAMPLED_CELL * grids[-1].tokens
    work[DECODE] = _DECODED_PIXEL * frames * grids[-1].height * grids[-1].width
    return work


def _text_encoder(size: TextEncoderSize) -> float:
    """Operations for each token: attention projections, and three matrices of the gated feed-forward layer."""
    weights = 4 * size.width * size.heads * size.head_dim + 3 * size.width * size.hidden
    return 2.0 * size.layers * weights


def _pass(one: PassPlan, size: TransformerSize) -> float:
    """Operations of all steps: 16 square matrices a layer, and self-attention over all tokens."""
    tokens = one.grid.tokens
    predictions = sum(1 + guidance.uses_cfg + guidance.uses_stg for guidance in one.guidance)
    layer = 2.0 * 16 * size.width**2 * tokens + 4.0 * tokens**2 * size.width
    return predictions * size.layers * layer


def _pixels(grid: Grid) -> int:
    return grid.num_frames * grid.height * grid.width
