"""Cases that the official pipelines and ours both run: the table of cases, and their media.

`tests/golden/make_pipelines.py` runs them on the official code and records the results in
`tests/golden/pipelines.safetensors`; our side runs them on exported graphs. Both make weights with
`ltx_export.random_weights.write_random_weights(deep(case.release), ...)`. Needs only numpy and
`ltx_runtime.spec.versions`.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ltx_runtime.spec.versions import (
    NEGATIVE_PROMPT,
    SIZE_13B,
    VERSIONS,
    TextEncoderSize,
    UpsamplerSize,
    VaeSize,
    Version,
)

TEXT = TextEncoderSize(layers=2, width=32, heads=4, head_dim=16, hidden=48, vocabulary=330)
VAE = VaeSize(base_channels=4, latent_channels=8, layers_per_block=1)
UPSAMPLER = UpsamplerSize(mid_channels=64, blocks_per_stage=1)  # two channels in each of the 32 norm groups
HEADS, HEAD_DIM_2B, HEAD_DIM_13B = 2, 16, 20

IMAGE_COND_NOISE_SCALE = 0.15  # default of the official command line
VIDEO_STRIDE = 997  # only every 997th value of a video (1, 3, F, H, W) in C order is recorded


def deep(name: str) -> Version:
    """Returns the release `name` with all its layers, each of them tiny, so that the blocks to skip are its own."""
    version = VERSIONS[name]
    head_dim = HEAD_DIM_13B if version.transformer == SIZE_13B else HEAD_DIM_2B
    sizes = {"heads": HEADS, "head_dim": head_dim, "text_channels": TEXT.width, "channels": VAE.latent_channels}
    size = replace(version.transformer, **sizes)
    return replace(version, transformer=size, vae_size=VAE, text_encoder=TEXT, upsampler_size=UPSAMPLER)


@dataclass(frozen=True)
class Item:
    """A conditioning item, or the clip of video-to-video: picture, number of frames, first frame and strength.

    `size` (height, width) is given if the media's size differs from the video's.
    """

    picture: int
    frames: int = 1
    start: int = 0
    strength: float = 1.0
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Case:
    """One run; all else is the release's preset. Sizes other than multiples of 32 and 8n+1 frames are padded.

    Attributes:
        video: the clip that video-to-video starts from.
        skip_initial_steps, steps, guidance_scale: replace the preset's in a single pass, unless they are 0 or None.
        stg_mode: attention_values, attention_skip or transformer_block.
        rng: `seeded` draws by key (RandomState of seed and key); `torch` uses the official code's own two streams.
    """

    name: str
    release: str
    height: int
    width: int
    num_frames: int
    fps: float
    seed: int
    prompt: str
    negative_prompt: str = NEGATIVE_PROMPT
    items: tuple[Item, ...] = ()
    video: Item | None = None
    skip_initial_steps: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    stg_mode: str = "attention_values"
    rng: str = "seeded"

    @property
    def padded(self) -> tuple[int, int, int]:
        """Size (height, width, frames) that the model generates; the requested video is cropped from it."""
        height, width = (-(-size // 32) * 32 for size in (self.height, self.width))
        return height, width, (self.num_frames - 2) // 8 * 8 + 9

    @property
    def margins(self) -> tuple[int, int]:
        """Padding rows above and columns left of the video; the rest of the padding is below and right."""
        return (self.padded[0] - self.height) // 2, (self.padded[1] - self.width) // 2


def media(case: Case, item: Item) -> np.ndarray:
    """Returns moving plane waves (1, 3, f, H, W), float32 in [-1, 1], different for each picture and not yet padded."""
    height, width = item.size or (case.height, case.width)
    axes = (np.arange(3), np.arange(item.frames), np.arange(height), np.arange(width))
    channel, time, row, column = np.meshgrid(*axes, indexing="ij")
    slow = np.sin(0.11 * (channel + 1) * row + 0.05 * (item.picture + 1) * column + 0.4 * time + item.picture)
    fast = np.sin(0.37 * row - 0.29 * column - 0.25 * time + channel)
    return (0.75 * slow + 0.25 * fast).astype(np.float32)[None]


# --- the table ------------------------------------------------------------------------------------

RELEASES = tuple(name for name in VERSIONS if name != "demo")
SINGLE_PASS = tuple(name for name in RELEASES if len(VERSIONS[name].passes) == 1)
# Two sizes (height, width, frames) for each number of passes. The first of two passes runs at 32x96 and 96x64.
SIZES_SINGLE = ((64, 96, 25), (96, 64, 33))
SIZES_DOUBLE = ((96, 160, 25), (160, 128, 33))
FPS = (30, 25)
PROMPTS = (
    "A red fox runs through deep snow at dawn, the camera follows from behind.",
    "  The city from above: cars and people move fast, clouds pass over the towers, and a train leaves.\n",
)
LONG_PROMPT = " ".join(f"Waves break on {count} black rocks under a cloudy sky, slow motion." for count in range(40))

# Conditioning items at the first and at the second size. 25 and 33 frames are 4 and 5 latent frames.
KINDS: dict[str, tuple[tuple[Item, ...], tuple[Item, ...]]] = {
    "text": ((), ()),
    "image": ((Item(0),), (Item(1, strength=0.6, size=(80, 112)),)),
    "keyframe": ((Item(2, start=13),), (Item(3, start=29, strength=0.6, size=(64, 64)),)),
    "clip_at_start": ((Item(4, frames=9),), (Item(5, frames=17, strength=0.6),)),
    # The first two latent frames of a later clip become extra tokens; a third one is placed into the video itself.
    "clip_later": ((Item(6, frames=9, start=16),), (Item(7, frames=17, start=8),)),
    "two_items": (
        (Item(0), Item(2, start=13, strength=0.6)),
        (Item(1, strength=0.6), Item(7, frames=17, start=16)),
    ),
}
# Two items with extra tokens in the given order, and an image at the start after them.
THREE_ITEMS = (Item(3, start=21), Item(6, frames=9, start=8, strength=0.6), Item(0))


def _case(release: str, kind: str, place: int, **changes: object) -> Case:
    """Returns a case at the first or second size of its release, with its own seed."""
    height, width, frames = (SIZES_SINGLE if release in SINGLE_PASS else SIZES_DOUBLE)[place]
    name = f"{release}/{kind}/{place}"
    seed = zlib.crc32(name.encode()) + place * 2**40  # the second seed needs more than 32 bits
    return replace(Case(name, release, height, width, frames, FPS[place], seed, PROMPTS[place]), **changes)


def _every_release() -> Iterator[Case]:
    for release in RELEASES:
        for kind, items in KINDS.items():
            for place in (0, 1):
                yield _case(release, kind, place, items=items[place])


def _guidance() -> Iterator[Case]:
    for mode in ("attention_skip", "transformer_block"):
        yield _case("0.9.5", mode, 0, stg_mode=mode)
        yield _case("0.9.5", mode, 1, stg_mode=mode, items=KINDS["keyframe"][1])
        yield _case("0.9.8-13b-dev", mode, 0, stg_mode=mode)
    yield _case("0.9.5", "fewer_steps", 0, steps=12, guidance_scale=5.0)
    yield _case("0.9.1", "fewer_steps", 1, steps=12, guidance_scale=5.0)


def _text() -> Iterator[Case]:
    yield _case("0.9.5", "long_prompt", 0, prompt=LONG_PROMPT, negative_prompt="")
    yield _case("0.9.8-2b-distilled", "long_prompt", 1, prompt=LONG_PROMPT)


def _video_to_video() -> Iterator[Case]:
    yield _case("0.9.5", "video", 0, video=Item(8, frames=25), skip_initial_steps=15)
    yield _case("0.9.5", "video", 1, video=Item(9, frames=33), skip_initial_steps=25, items=KINDS["two_items"][1])
    yield _case("0.9.0", "video", 0, video=Item(8, frames=25), skip_initial_steps=10)
    yield _case("0.9.6-distilled", "video", 1, video=Item(9, frames=33), skip_initial_steps=3)


def _sizes() -> Iterator[Case]:
    """Yields cases with padded and cropped sizes, and with a single frame."""
    two = (Item(0), Item(2, start=13))
    yield _case("0.9.5", "padded", 0, height=70, width=91, num_frames=20, items=two)
    yield _case("0.9.5", "padded_video", 1, height=81, width=50, video=Item(9, frames=33), skip_initial_steps=15)
    yield _case("0.9.8-2b-distilled", "padded", 1, height=147, width=102, num_frames=28, items=two)
    yield _case("0.9.5", "single_frame", 0, num_frames=1)
    yield _case("0.9.8-13b-distilled", "single_frame", 1, num_frames=1, items=(Item(1, strength=0.6),))


def _items() -> Iterator[Case]:
    for release in ("0.9.1", "0.9.5", "0.9.8-13b-dev", "0.9.8-13b-distilled"):
        yield _case(release, "three_items", 1, items=THREE_ITEMS)


def _torch_rng() -> Iterator[Case]:
    """Yields cases with the official code's draws: a generator and torch's global stream, both with the case's seed."""
    for release, kind in (
        ("0.9.1", "text"),
        ("0.9.1", "two_items"),
        ("0.9.5", "clip_later"),
        ("0.9.6-distilled", "text"),
        ("0.9.6-distilled", "keyframe"),
        ("0.9.8-2b-distilled", "text"),
        ("0.9.8-2b-distilled", "image"),
        ("0.9.8-13b-dev", "two_items"),
    ):
        for place in (0, 1):
            yield _case(release, f"torch_{kind}", place, items=KINDS[kind][place], rng="torch")
    clip = Item(9, frames=33)
    yield _case("0.9.6-distilled", "torch_video", 1, video=clip, skip_initial_steps=3, rng="torch")


CASES: tuple[Case, ...] = (
    *_every_release(),
    *_guidance(),
    *_text(),
    *_video_to_video(),
    *_sizes(),
    *_items(),
    *_torch_rng(),
)
