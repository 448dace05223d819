"""What tests of engines share: version folders to write into, and TensorRT-RTX, which builds without a GPU."""

import shutil
from pathlib import Path

from samples.tiny import Exported

from ltx_export.engines.engine_from_onnx import Recipe
from ltx_runtime.folder.manifest import Engines, open_engines
from ltx_runtime.folder.profiles import Limits
from ltx_runtime.folder.sidecar import Maker
from ltx_runtime.sessions.trt.library import load_library, maker_of
from ltx_runtime.spec.geometry import Grid

BUILDER = "tensorrt_rtx"
# One small profile of every kind, which builds in a second.
SMALL = Limits((Grid(2, 2, 2),))


def maker() -> Maker:
    """TensorRT-RTX as it is installed."""
    return maker_of(BUILDER, load_library(BUILDER), None)


def copied(release: Exported, root: Path) -> Engines:
    """A version folder that a test may write into."""
    shutil.copytree(release.folder, root / release.version.name)
    return open_engines(root / release.version.name)


def small(precision: str = "bf16", weights: str = "embedded") -> Recipe:
    """The cheapest engine there is."""
    return Recipe(precision, weights, SMALL)
