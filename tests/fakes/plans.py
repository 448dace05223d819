"""Plans of every release on version folders without weights, and what is described of them."""

import atexit
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import mkdtemp

import pytest
from fakes.requests import default_request
from fakes.stages import ROPE
from samples.onnx_bytes import graph_of

from ltx_runtime.folder.manifest import ComponentEntry, Engines, FileEntry, Manifest
from ltx_runtime.media.facts import Facts
from ltx_runtime.planning import report
from ltx_runtime.planning.backends import Size, choose, needed
from ltx_runtime.planning.media import NO_MEDIA, Given, GivenMedia
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import Plan, plan
from ltx_runtime.planning.report import describe
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.components import (
    temporal_upsampler,
    text_encoder,
    transformer,
    upsampler,
    vae_decoder,
    vae_encoder,
)
from ltx_runtime.spec.versions import VERSIONS

TOKENIZER = Path(__file__).parents[1] / "golden" / "t5" / "spiece.model"
WORDS = 32_128  # of T5
EVERY_VERSION = pytest.mark.parametrize("name", VERSIONS)
GB = 10**9
# Component -> the files of its weights, whose sizes are in SIZES. Three components share the checkpoint.
WEIGHTS = {
    "text_encoder": ("text_encoder.data",),
    "vae_encoder": ("checkpoint.safetensors",),
    "transformer": ("checkpoint.safetensors", "extra.data"),
    "upsampler": ("upscaler.safetensors",),
    "temporal_upsampler": ("temporal.safetensors",),
    "vae_decoder": ("checkpoint.safetensors",),
}
SIZES = {"text_encoder.data": 9, "checkpoint.safetensors": 6, "extra.data": 1, "upscaler.safetensors": 3}
SIZES["temporal.safetensors"] = 2
PLENTY = 10**13
LARGE = {"height": 704, "width": 1216, "num_frames": 121}
EVERYTHING = {
    "conditions": (Condition(Path("first.png"), 0), Condition(Path("clip.mp4"), 8, 0.5)),
    "temporal_upscale": True,
}

# What is known of EVERYTHING's image and clip.
IMAGE = Given(EVERYTHING["conditions"][0], Facts(704, 1216, 1, 1, transparent=True), 1, 3 * GB, 1 * GB, ())
CLIP = Given(
    EVERYTHING["conditions"][1],
    Facts(704, 1216, 99, 97, fps=60.0, sound=True, transfer="PQ"),
    25,
    5 * GB,
    2 * GB,
    ("its sound is dropped",),
)
MEDIA = GivenMedia((IMAGE, CLIP))


def manifest_of(name: str) -> Manifest:
    version = VERSIONS[name]
    dit = transformer(4, 6, version.transformer.width)
    signatures = (text_encoder(6), vae_encoder(4), dit, upsampler(4), temporal_upsampler(4))
    signatures += (vae_decoder(4, timestep=True),)
    components = {s.name: ComponentEntry(s, WEIGHTS[s.name], {"fp32": f"{s.name}.fp32.onnx"}) for s in signatures}
    files = {file: FileEntry(size * GB, "") for file, size in SIZES.items()}
    return Manifest(name, version.causal_positions, version.schedule, ROPE, "spiece.model", components, files)


@cache
def folder_of(name: str) -> Path:
    """Writes graphs with the ports of a release, and T5's tokenizer, once for all tests."""
    folder = Path(mkdtemp(prefix="report"))
    atexit.register(rmtree, folder, ignore_errors=True)
    copyfile(TOKENIZER, folder / TOKENIZER.name)
    for entry in manifest_of(name).components.values():
        (folder / entry.graphs["fp32"]).write_bytes(graph_of(entry.signature, entry.weights[0], WORDS))
    return folder


def asked(name: str, **changes) -> tuple[Plan, Request]:
    version = VERSIONS[name]
    request = replace(default_request(version, "a cat", 7), **changes)
    return plan(request, version), request


def described(
    name: str, options: RunOptions | None = None, manifest: Manifest | None = None, media=NO_MEDIA, **changes
) -> dict:
    planned, manifest, options = asked(name, **changes)[0], manifest or manifest_of(name), options or RunOptions()
    engines = Engines(folder_of(name), manifest)
    chosen = choose(engines, needed(planned, options), replace(options, backend="cpu"), Size(1, 1, 1, False))
    return describe(planned, chosen, engines, media)


def lines_of(name: str, options: RunOptions | None = None, **changes) -> list[str]:
    return list(report.lines_of(described(name, options, **changes)))
