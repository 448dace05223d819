"""A version folder whose components are a few lines of numpy, for sessions that run stand-in engines."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.stages import CHANNELS, ROPE, STAGES, TEXT_CHANNELS, WIDTH
from stand_ins.engines import Recipe, install

from ltx_runtime.folder.manifest import ComponentEntry, Engines, Manifest, describe_files, write_manifest
from ltx_runtime.folder.profiles import Span
from ltx_runtime.sessions import find
from ltx_runtime.sessions.found import Found
from ltx_runtime.spec.components import text_encoder, transformer, vae_decoder
from ltx_runtime.spec.presets import Schedule

SIGNATURES = (
    text_encoder(TEXT_CHANNELS),
    transformer(CHANNELS, TEXT_CHANNELS, WIDTH),
    vae_decoder(CHANNELS, timestep=False),
)
BUILDERS = ("tensorrt", "tensorrt_rtx")
_BATCH, _TEXT = Span(1, 1, 3), Span(1, 8, 16)
_SMALL, _LARGE, _ONE = Span(4, 6, 8), Span(9, 12, 32), Span(1, 1, 1)
PROFILES = {
    "text_encoder": [{"batch": Span(1, 1, 2), "text_tokens": _TEXT}],
    "transformer": [
        {"batch": _BATCH, "text_tokens": _TEXT, "tokens": tokens, "timesteps": steps}
        for tokens in (_SMALL, _LARGE)
        for steps in (_ONE, tokens)
    ],
    "vae_decoder": [{"batch": _ONE, "frames": Span(1, 2, 3), "rows": Span(1, 2, 3), "columns": Span(1, 2, 3)}],
}
SIZES = {
    "text_encoder": {"batch": 1, "text_tokens": 5},
    "transformer": {"batch": 1, "tokens": 6, "timesteps": 1, "text_tokens": 5},
    "vae_decoder": {"batch": 1, "frames": 2, "rows": 2, "columns": 1},
}


def folder_of(path: Path) -> Engines:
    """Writes a complete version folder to `path`; its bf16 and fp16 graphs are arbitrary bytes."""
    path.mkdir()
    files = {"weights.data": bytes(range(256)) * 64, "spiece.model": b"tokens"}
    components = {}
    for signature in SIGNATURES:
        graphs = {precision: f"{signature.name}.{precision}.onnx" for precision in ("bf16", "fp16")}
        files |= {file: f"graph {file}".encode() for file in graphs.values()}
        components[signature.name] = ComponentEntry(signature, ("weights.data",), graphs)
    for name, content in files.items():
        (path / name).write_bytes(content)
    manifest = Manifest("0.9.5", True, Schedule(), ROPE, "spiece.model", components)
    manifest = replace(manifest, files=describe_files({name: path / name for name in files}))
    write_manifest(path, manifest)
    return Engines(path, manifest)


def recipes(**changed) -> dict[str, Recipe]:
    """Returns recipes with small profiles for every component, which are otherwise alike."""
    return {name: Recipe(profiles=served, **changed) for name, served in PROFILES.items()}


def feeds_for(name: str, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Returns random inputs of a component."""
    random = np.random.RandomState(seed)
    (signature,) = (one for one in SIGNATURES if one.name == name)
    feeds = {}
    for port in signature.inputs:
        shape = port.shape({**SIZES[name], **sizes})
        whole = random.randint(1, 9, shape) if port.dtype == "int64" else random.uniform(-1, 1, shape)
        feeds[port.name] = whole.astype(port.dtype)
    return feeds


def expected(name: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Computes a component's outputs without any engine."""
    return STAGES[name](feeds)


class Bench:
    """A version folder with stand-in engines; at the end of a test nothing may be left of any session."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines = folder_of(path)
        self._monkeypatch = monkeypatch

    def build(self, builder: str = "tensorrt_rtx", machine=None, recipe=None, functions=None) -> None:
        """Installs engines, library and GPU."""
        self.builder = builder
        recipe = recipes() if recipe is None else recipe
        functions = STAGES if functions is None else functions
        self.installed = install(self._monkeypatch, self.engines, builder, machine, recipe, functions)
        self.machine, self.seen, self.maker = self.installed.machine, self.installed.seen, self.installed.maker

    def find(self, name: str = "transformer") -> Found:
        """Finds the engine that the backend would run."""
        return find(self.engines, name, self.builder)
