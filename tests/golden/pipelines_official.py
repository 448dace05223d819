"""The official pipelines on our checkpoints: loaded from files, with replaced draws, and watched.

`load` builds a pipeline from a release's files in a folder. `run` runs one case of `tests/oracles/pipeline_cases.py`
as the official command line does, except for float32 and for the draws, which `Draws` replaces or records.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import official
import sentencepiece
import torch
import torch.nn.functional as F
from ltx_video.models.autoencoders.latent_upsampler import LatentUpsampler
from ltx_video.models.transformers.symmetric_patchifier import SymmetricPatchifier
from ltx_video.pipelines.pipeline_ltx_video import ConditioningItem, LTXMultiScalePipeline, LTXVideoPipeline
from official_draws import Draws
from oracles.pipeline_cases import IMAGE_COND_NOISE_SCALE, Case, Item, media
from safetensors.torch import load_file
from transformers import BatchEncoding, T5Config, T5EncoderModel

from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE
from ltx_runtime.spec.versions import TextEncoderSize, Version

# The inference presets, `configs/*.yaml` of the official repository; those of 0.9.7 are in its history.
SHARED = {"decode_timestep": 0.05, "decode_noise_scale": 0.025, "stochastic_sampling": False}
BASE = {
    "num_inference_steps": 40,
    "guidance_scale": 3,
    "stg_scale": 1,
    "rescaling_scale": 0.7,
    "skip_block_list": [19],
}
UNGUIDED = {"guidance_scale": 1, "stg_scale": 0, "rescaling_scale": 1}
DEV_FIRST = {
    "guidance_scale": [1, 1, 6, 8, 6, 1, 1],
    "stg_scale": [0, 0, 4, 4, 4, 2, 1],
    "rescaling_scale": [1, 1, 0.5, 0.5, 1, 1, 1],
    "guidance_timesteps": [1.0, 0.996, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180],
    "skip_block_list": [[], [11, 25, 35, 39], [22, 35, 39], [28], [28], [28], [28]],
    "num_inference_steps": 30,
    "skip_final_inference_steps": 3,
    "cfg_star_rescale": True,
}
DEV_SECOND = {
    "guidance_scale": [1],
    "stg_scale": [1],
    "rescaling_scale": [1],
    "guidance_timesteps": [1.0],
    "skip_block_list": [27],
    "num_inference_steps": 30,
    "skip_initial_inference_steps": 17,
    "cfg_star_rescale": True,
}
LEVELS = [1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250, 0.4219]
DISTILLED_FIRST = {"timesteps": LEVELS[:7], **UNGUIDED, "skip_block_list": [42]}
DISTILLED_SECOND = {"timesteps": LEVELS[5:], **UNGUIDED, "skip_block_list": [42]}
SCALE = {"downscale_factor": 0.6666666}
DEV = SCALE | {"first_pass": DEV_FIRST, "second_pass": DEV_SECOND}
DISTILLED = SCALE | {"first_pass": DISTILLED_FIRST, "second_pass": DISTILLED_SECOND}
TONE_MAPPED = DISTILLED | {"second_pass": DISTILLED_SECOND | {"tone_map_compression_ratio": 0.6}}
PRESETS: dict[str, dict] = {
    "0.9.0": BASE,
    "0.9.1": BASE,
    "0.9.5": BASE,
    "0.9.6-dev": BASE,
    "0.9.6-distilled": UNGUIDED | {"num_inference_steps": 8, "stochastic_sampling": True},
    "0.9.7-dev": DEV,
    "0.9.7-distilled": DISTILLED,
    "0.9.8-2b-distilled": DISTILLED,
    "0.9.8-13b-dev": DEV,
    "0.9.8-13b-distilled": TONE_MAPPED,
}
STRATEGIES = {
    "attention_values": official.SkipLayerStrategy.AttentionValues,
    "attention_skip": official.SkipLayerStrategy.AttentionSkip,
    "transformer_block": official.SkipLayerStrategy.TransformerBlock,
}


def preset_of(case: Case) -> dict:
    """Returns the arguments that the official command line takes from its configuration file."""
    preset = SHARED | PRESETS[case.release]
    if case.steps is not None:
        preset |= {"num_inference_steps": case.steps}
    if case.guidance_scale is not None:
        preset |= {"guidance_scale": case.guidance_scale}
    if case.skip_initial_steps:
        preset |= {"skip_initial_inference_steps": case.skip_initial_steps}
    return preset


# --- parts of a pipeline --------------------------------------------------------------------------


class Tokenizer:
    """T5's tokenizer, as far as the pipeline calls it, on a SentencePiece model: `</s>` is last, 0 pads."""

    def __init__(self, model_file: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))

    def __call__(self, texts: list[str], padding: str, max_length: int = 10**6, **_: object) -> BatchEncoding:
        rows = [[*self.pieces.encode(text)[: max_length - 1], self.pieces.eos_id()] for text in texts]
        length = max_length if padding == "max_length" else max(map(len, rows))
        ids, mask = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in "im")
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def batch_decode(self, rows: torch.Tensor) -> list[str]:
        return self.pieces.decode(rows.tolist())


def text_encoder(size: TextEncoderSize, file: Path) -> T5EncoderModel:
    config = T5Config(
        vocab_size=size.vocabulary,
        d_model=size.width,
        d_kv=size.head_dim,
        d_ff=size.hidden,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config)
    state = load_file(file)
    model.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]})
    return model.float().eval()


@dataclass
class Watched:
    """Records of a run: the latents after each pass, and the latents that the second pass was given."""

    latents: list[torch.Tensor] = field(default_factory=list)
    upsampled: torch.Tensor | None = None


class WatchedPatchifier(SymmetricPatchifier):
    """Records the latents at the end of the loop: normalized (B, C, F, H, W), before the decoder adds noise."""

    watched: Watched

    def unpatchify(self, *args: object, **kwargs: object) -> torch.Tensor:
        latents = super().unpatchify(*args, **kwargs)
        self.watched.latents.append(latents.clone())
        return latents


class WatchedPipeline(LTXVideoPipeline):
    """The official pipeline, which tells `draws` which of its parts is running."""

    draws: Draws
    watched: Watched

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.draws.begin_pass()
        if kwargs.get("latents") is not None:
            self.watched.upsampled = kwargs["latents"].clone()
        return super().__call__(*args, **kwargs)

    def prepare_latents(self, *args: object, **kwargs: object) -> object:
        with self.draws.during("latents", kwargs["latent_shape"]):
            return super().prepare_latents(*args, **kwargs)

    def prepare_conditioning(self, *args: object, **kwargs: object) -> object:
        with self.draws.during("items"):
            return super().prepare_conditioning(*args, **kwargs)

    def add_noise_to_image_conditioning_latents(self, *args: object, **kwargs: object) -> object:
        with self.draws.during("image"):
            return super().add_noise_to_image_conditioning_latents(*args, **kwargs)

    def denoising_step(self, *args: object, **kwargs: object) -> object:
        with self.draws.during("step"):
            latents = super().denoising_step(*args, **kwargs)
        self.draws.step += 1
        return latents


def load(version: Version, weights: Path) -> WatchedPipeline | LTXMultiScalePipeline:
    """Builds the pipeline of a release from the files in `weights`, in float32."""
    checkpoint = weights / version.checkpoint
    pipeline = WatchedPipeline(
        tokenizer=Tokenizer(weights / TOKENIZER_FILE),
        text_encoder=text_encoder(version.text_encoder, weights / TEXT_ENCODER_FILE),
        vae=official.CausalVideoAutoencoder.from_pretrained(checkpoint).float().eval(),
        transformer=official.Transformer3DModel.from_pretrained(checkpoint).float().eval(),
        scheduler=official.RectifiedFlowScheduler.from_pretrained(checkpoint),
        patchifier=WatchedPatchifier(patch_size=1),
        prompt_enhancer_image_caption_model=None,
        prompt_enhancer_image_caption_processor=None,
        prompt_enhancer_llm_model=None,
        prompt_enhancer_llm_tokenizer=None,
        allowed_inference_steps=LEVELS if "distilled" in version.name else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    if len(version.passes) == 1:
        return pipeline
    return LTXMultiScalePipeline(pipeline, LatentUpsampler.from_pretrained(weights / version.upscaler).float().eval())


# --- one run --------------------------------------------------------------------------------------


def run(pipeline: WatchedPipeline | LTXMultiScalePipeline, case: Case) -> tuple[dict[str, np.ndarray], Draws]:
    """Runs a case; returns its tensors and its draws.

    The tensors are the latents of every pass, those given to the second pass, and the video without padding,
    (1, 3, F, H, W) in [0, 1].
    """
    inner = getattr(pipeline, "video_pipeline", pipeline)
    inner.draws, watched = Draws(case, inner.vae.decoder), Watched()
    inner.watched = inner.patchifier.watched = watched
    height, width, frames = case.padded
    with inner.draws.given():
        video = pipeline(
            **preset_of(case),
            skip_layer_strategy=STRATEGIES[case.stg_mode],
            generator=inner.draws.generator,
            output_type="pt",
            height=height,
            width=width,
            num_frames=frames,
            frame_rate=case.fps,
            prompt=case.prompt,
            negative_prompt=case.negative_prompt,
            media_items=_padded_media(case, case.video) if case.video else None,
            conditioning_items=_conditioning(case) or None,
            is_video=True,
            vae_per_channel_normalize=True,
            image_cond_noise_scale=IMAGE_COND_NOISE_SCALE,
        ).images
    top, left = case.margins
    video = video[:, :, : case.num_frames, top : top + case.height, left : left + case.width]
    made = {f"latents_{i}": latents for i, latents in enumerate(watched.latents, 1)} | {"video": video}
    if watched.upsampled is not None:
        made["upsampled"] = watched.upsampled
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in made.items()}, inner.draws


def _conditioning(case: Case) -> list[ConditioningItem]:
    return [ConditioningItem(_padded_media(case, item), item.start, item.strength) for item in case.items]


def _padded_media(case: Case, item: Item) -> torch.Tensor:
    """Pads media as the command line does: with zero, which is grey, an odd row or column below or right."""
    (height, width, _), (top, left) = case.padded, case.margins
    below, right = height - case.height - top, width - case.width - left
    return F.pad(torch.from_numpy(media(case, item)), (left, right, top, below))
