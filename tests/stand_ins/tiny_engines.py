"""Version folders for tests of engines to write into, and TensorRT-RTX, which builds without a GPU."""

import shutil
from pathlib import Path

from samples.tiny import Exported

from ltx_export.engines.engine_from_onnx import Recipe
from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.profiles import Limits
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.folder.sidecar import Maker
from ltx_runtime.sessions.trt.library import load_library, maker_of
from ltx_runtime.spec.geometry import Grid

BUILDER = "tensorrt_rtx"
# One small profile of every kind, which builds in a second.
SMALL = Limits((Grid(2, 2, 2),))


def maker() -> Maker:
    """Returns the Maker of the installed TensorRT-RTX."""
    return maker_of(BUILDER, load_library(BUILDER), None)


def copied(release: Exported, root: Path) -> Engines:
    """Copies a version folder, so that a test may write into it."""
    shutil.copytree(release.folder, root / release.version.name)
    return open_engines(root / release.version.name)


def address(engines: Engines, name: str, precision: str = "bf16", made_by: Maker | None = None) -> EngineAddress:
    """Returns the address of an engine of the installed TensorRT-RTX, unless another maker is given."""
    return EngineAddress(engines, name, made_by or maker(), precision)


def small(weights: str = "embedded") -> Recipe:
    """Returns the recipe of the cheapest engine."""
    return Recipe(weights, SMALL)
