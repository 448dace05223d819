"""Releases at full depth and miniature width, exported once per process for all tests that run them."""

import tempfile
from functools import cache
from pathlib import Path

from oracles.pipeline_cases import deep
from samples.tiny import export, sources_of

from ltx_export.random_weights import write_random_weights
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import open_engines

_root = tempfile.TemporaryDirectory()


@cache
def weights_of(name: str) -> Path:
    """Returns the folder of a release's random weights."""
    folder = Path(_root.name) / "weights" / name
    write_random_weights(deep(name), folder)
    return folder


@cache
def engines_of(name: str) -> Engines:
    """Returns the exported folder of a release, over the same weights."""
    folder = Path(_root.name) / "engines" / name
    export(deep(name), sources_of(deep(name), weights_of(name)), folder)
    return open_engines(folder)
