"""Builds one component's engine for exact sizes, in a separate process that benchmarks/gpu.py can kill.

    python benchmarks/gpu_build.py FOLDER tensorrt transformer 512x768x97 704x1216x121

`ltx-export engine --static` serves the passes of one size; here one engine has a profile for each of several sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.profiles import Limits
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.sessions.trt.library import load_library, maker_of
from ltx_runtime.spec.geometry import Grid, grid_of


def grids_of(sizes: Sequence[str]) -> tuple[Grid, ...]:
    """Returns the latent grids of sizes written as HEIGHTxWIDTHxFRAMES.

    Raises:
        LtxError: a size is malformed, or the model cannot generate it.
    """
    grids = []
    for size in sizes:
        numbers = size.split("x")
        if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
            raise LtxError(f"a size is HEIGHTxWIDTHxFRAMES; got {size!r}", "use 512x768x97")
        grids.append(grid_of(*map(int, numbers)))
    return tuple(grids)


def build(folder: Path, builder: str, component: str, sizes: Sequence[str]) -> None:
    """Builds an engine, unless the existing one equals the one that would be built.

    Raises:
        LtxError: the library is not installed, there is no GPU, or the library refuses the graph.
    """
    from ltx_export.engines.engine_from_onnx import Recipe
    from ltx_export.engines.files import build_engine, check_built, prepared_for
    from ltx_runtime.sessions.cuda.gpu import find_gpu

    engines = Engines(folder, read_manifest(folder))
    maker = maker_of(builder, load_library(builder), find_gpu())
    address = EngineAddress(engines, component, maker, "bf16")
    recipe = Recipe(limits=Limits(grids_of(sizes), exact=True, given=False))
    try:
        check_built(address, recipe, prepared_for(address, recipe.weights))
    except LtxError:
        build_engine(address, recipe)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
    except LtxError as error:
        raise SystemExit(str(error)) from None
