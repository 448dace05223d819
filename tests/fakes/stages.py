"""A whole version folder in a few lines of numpy: six stages that keep a diary, and the manifest that names them.

Every stage depends on each of its inputs, so that a wrong input makes another video. In all but the transformer an
output depends on one place of the inputs only, so that tiles give the same result as the whole.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from fakes.encodings import timesteps_of
from fakes.sessions import FunctionRunner

from ltx_runtime.folder.manifest import ComponentEntry, Engines, Manifest, describe_files, write_manifest
from ltx_runtime.spec.components import (
    temporal_upsampler,
    text_encoder,
    transformer,
    upsampler,
    vae_decoder,
    vae_encoder,
)
from ltx_runtime.spec.encodings import Rope
from ltx_runtime.spec.versions import Version

CHANNELS, TEXT_CHANNELS, WIDTH = 4, 6, 12
ROPE = Rope((1.0, 30.0), (20.0, 2048.0, 2048.0))  # the fast angles of neighbours differ by about one
NOISE_MAPS = {"B": {2: (14, 2), 4: (12, 4), 6: (10, 8)}}
_MODE_WEIGHTS = np.array([0.3, 0.2, 0.1])[None, :, None]


def encode(feeds):
    return {"text": np.repeat(feeds["ids"][..., None], TEXT_CHANNELS, 2).astype(np.float32)}


def posterior(feeds):
    """Returns means, the colour of each cell's last frame and top left corner, and deviations 0.1 + |mean| / 2."""
    cells = feeds["video"][:, :, ::8, ::32, ::32]
    mean = np.concatenate([cells, cells.mean(1, keepdims=True)], 1)
    return {"posterior": np.concatenate([mean, 0.1 + np.abs(mean) / 2], 1).astype(np.float32)}


def velocity(feeds):
    """Returns a velocity that depends on every input, and on each mode and layer of the skip mask.

    Every token is led towards a value given by the prompt, by its own place, and by the mean over all tokens weighted
    by their places; all cosines and sines of a place count, each differently.
    """
    said = (feeds["text"] * feeds["text_mask"][..., None]).sum((1, 2)) / feeds["text_mask"].sum(1)
    pairs = 1 + np.arange(feeds["cosines"].shape[1])
    places = ((feeds["cosines"] + feeds["sines"] / 2) * pairs).sum(1)
    seen = (feeds["latents"] * np.cos(places)[:, None]).mean((1, 2))
    aim = np.sin((said + seen)[:, None] + places)[..., None]
    way = (feeds["latents"] - aim) * (0.4 + timesteps_of(feeds["sinusoid"])[..., None] / 2)
    return {"velocity": (way * kept(feeds)[:, None, None]).astype(np.float32)}


def kept(feeds):
    """Returns 1 for a row that skips nothing; every mode in every layer subtracts a different amount."""
    if "skip_mask" not in feeds:
        return np.ones(len(feeds["latents"]))
    skipped = 1 - feeds["skip_mask"]
    depth = 1 + np.arange(len(skipped))[:, None, None] / len(skipped)
    return 1 - (skipped * depth * _MODE_WEIGHTS).sum((0, 1)) / 2


def upsample(feeds):
    """Doubles the rows and columns, and changes the statistics."""
    return {"upsampled": 1 + 2 * feeds["latents"].repeat(2, 3).repeat(2, 4)}


def upsample_in_time(feeds):
    """Repeats each latent frame twice, but the first once."""
    return {"upsampled": feeds["latents"].repeat(2, 2)[:, :, 1:]}


def decode(feeds):
    """Shows the first three channels of every latent frame as large cells, changed a little by the other inputs."""
    cells = feeds["latents"][:, :3]
    if "sinusoid" in feeds:
        cells = cells + timesteps_of(feeds["sinusoid"]).reshape(-1, 1, 1, 1, 1)
    for name, maps in feeds.items():
        if name.startswith("noise_"):
            scale = maps.shape[1] // cells.shape[3]
            cells = cells + maps[:, ::scale, ::scale].mean(0) / 10
    return {"video": np.tanh(cells.repeat(8, 2)[:, :, 7:].repeat(32, 3).repeat(32, 4)).astype(np.float32)}


STAGES = {
    "text_encoder": encode,
    "vae_encoder": posterior,
    "transformer": velocity,
    "upsampler": upsample,
    "temporal_upsampler": upsample_in_time,
    "vae_decoder": decode,
}


class Diary(list):
    """Log of what the stages do, in order; `stages` holds the stages."""

    def __init__(self):
        super().__init__()
        self.stages = []

    def fed(self, name):
        """Returns all feeds of a component, in order."""
        return [feeds for stage in self.stages if stage.name == name for feeds in stage.fed]

    def opened(self):
        """Returns the names of the components that were opened, in order."""
        return [stage.name for stage in self.stages]


class Stage(FunctionRunner):
    """A stage that notes in a diary when it opens, runs and closes."""

    def __init__(self, name, diary):
        super().__init__(STAGES[name])
        self.name, self.diary = name, diary
        diary.append(f"open {name}")
        diary.stages.append(self)

    def run(self, feeds, wanted):
        self.diary.append(f"run {self.name} with {len(next(iter(feeds.values())))}")
        return super().run(feeds, wanted)

    def close(self):
        self.diary.append(f"close {self.name}")


def engines_of(version: Version, spiece, lacking=()) -> Engines:
    """Returns a version folder with every component except those in `lacking`."""
    signatures = (
        text_encoder(TEXT_CHANNELS),
        vae_encoder(CHANNELS),
        transformer(CHANNELS, TEXT_CHANNELS, WIDTH, version.transformer.layers if version.uses_stg else 0),
        upsampler(CHANNELS),
        temporal_upsampler(CHANNELS),
        vae_decoder(CHANNELS, timestep=version.vae != "A", noise_maps=NOISE_MAPS.get(version.vae)),
    )
    components = {
        s.name: ComponentEntry(s, (f"{s.name}.data",), {"fp32": f"{s.name}.fp32.onnx"})
        for s in signatures
        if s.name not in lacking
    }
    tokenizer = spiece.name if "text_encoder" in components else None
    manifest = Manifest(version.name, version.causal_positions, version.schedule, ROPE, tokenizer, components)
    return Engines(spiece.parent, replace(manifest, allowed_sigmas=version.allowed_sigmas))


def write_engines(folder: Path, version: Version, spiece: Path, lacking=()) -> None:
    """Writes the version folder of `engines_of`: empty files, the tokenizer and a manifest."""
    folder.mkdir(parents=True)
    manifest = engines_of(version, spiece, lacking).manifest
    entries = manifest.components.values()
    names = {name for entry in entries for name in (*entry.weights, *entry.graphs.values())}
    for name in names:
        (folder / name).touch()
    if manifest.tokenizer is not None:
        (folder / manifest.tokenizer).write_bytes(spiece.read_bytes())
        names.add(manifest.tokenizer)
    files = describe_files({name: folder / name for name in names})
    write_manifest(folder, replace(manifest, files=files))


def interrupting(stage, after):
    """Returns a stage that works some times and is then interrupted."""
    original, calls = STAGES[stage], []

    def interrupted(feeds):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(feeds)

    return interrupted
