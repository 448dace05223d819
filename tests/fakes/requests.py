"""Requests for tests: default ones, and any (REQUESTS)."""

from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from ltx_runtime.planning.preset import Preset
from ltx_runtime.planning.request import Condition, Request, Resolved, resolved
from ltx_runtime.spec.presets import SD3, Guidance, Pass
from ltx_runtime.spec.versions import Version
from ltx_runtime.text.tokenizer import padded
from ltx_runtime.weights.lora import LoraFile

# A video that takes no time on the fake stages, and the components that the demo version runs for it.
SMALL = {"height": 64, "width": 96, "num_frames": 9, "seed": 7}
ROAD = ("text_encoder", "transformer", "upsampler", "transformer", "vae_decoder")


def default_request(version: Version, prompt: str, seed: int) -> Resolved:
    """Returns a request with the version's defaults for everything but prompt and seed."""
    return resolved(Request(prompt, seed=seed), version)


def encoded(tokenizer, prompts):
    """Returns token ids and attention mask of prompts, both (B, T) int64."""
    return padded([tokenizer.tokens(prompt) for prompt in prompts])


BLOCKS = st.lists(st.integers(0, 9)).map(tuple)
GUIDANCE = st.builds(Guidance, st.floats(1, 9), st.floats(0, 3), st.floats(0, 1), BLOCKS)
PASSES = st.builds(Pass, st.integers(1, 9), st.lists(GUIDANCE, min_size=1, max_size=2).map(tuple), st.just((1.0, 0.5)))
PRESETS = st.builds(
    Preset,
    st.lists(PASSES, min_size=1, max_size=2).map(tuple),
    stg_mode=st.none() | st.just("attention_skip"),
    schedule=st.none() | st.just(SD3),
)
# Files that requests name, below a folder; the last name is not UTF-8.
FILES = ("a.png", "in/b c.mp4", "狐.gif", "../x.png", "caf\udce9.png")
PLACES = st.sampled_from(FILES)
REQUESTS = st.builds(
    Request,
    prompt=st.text(),
    negative_prompt=st.none() | st.text(),
    seed=st.integers(0, 2**64 - 1),
    steps=st.none() | st.integers(1, 50),
    timesteps=st.lists(st.floats(0.1, 1)).map(tuple),
    skip_blocks=st.none() | st.lists(st.integers(0, 27)).map(tuple),
    cfg_star=st.none() | st.booleans(),
    pad=st.booleans(),
    conditions=st.lists(st.builds(Condition, PLACES, st.integers(0, 99), st.floats(0, 1)), max_size=3).map(tuple),
    video=st.none() | PLACES,
    loras=st.lists(st.builds(LoraFile, PLACES, st.floats(-1, 1)), max_size=2).map(tuple),
    preset=st.none() | PRESETS,
    tone_map=st.none() | st.floats(0, 1),
)


def with_files_in(folder: Path, request: Request) -> Request:
    """Returns a request of REQUESTS whose files are in a folder."""
    return replace(
        request,
        conditions=tuple(replace(one, media=folder / one.media) for one in request.conditions),
        video=None if request.video is None else folder / request.video,
        loras=tuple(replace(one, file=folder / one.file) for one in request.loras),
    )
