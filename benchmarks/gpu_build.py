"""Builds one component's engine for exactly some sizes, in a process of its own that benchmarks/gpu.py may end.

    python benchmarks/gpu_build.py FOLDER tensorrt transformer 512x768x97 704x1216x121

`ltx-export engine --static` serves the passes of one size; here one engine has a profile for each of several.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines, read_manifest
from ltx_runtime.folder.profiles import Limits
from ltx_runtime.sessions.trt.library import load_library, maker_of
from ltx_runtime.spec.geometry import Grid, grid_of


def grids_of(sizes: Sequence[str]) -> tuple[Grid, ...]:
    """The latent grids of sizes written as HEIGHTxWIDTHxFRAMES.

    Raises:
        LtxError: one is no size that the model can make.
    """
    grids = []
    for size in sizes:
        numbers = size.split("x")
        if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
            raise LtxError(f"a size is HEIGHTxWIDTHxFRAMES; got {size!r} - use 512x768x97")
        grids.append(grid_of(*map(int, numbers)))
    return tuple(grids)


def build(folder: Path, builder: str, component: str, sizes: Sequence[str]) -> None:
    """Builds an engine, unless there is just the one that would be built.

    Raises:
        LtxError: the library is not here, has no GPU, or refuses the graph.
    """
    from ltx_export.engines.engine_from_onnx import Recipe
    from ltx_export.engines.files import build_engine, check_built, prepared_for
    from ltx_runtime.sessions.cuda.gpu import find_gpu

    engines = Engines(folder, read_manifest(folder))
    maker = maker_of(builder, load_library(builder), find_gpu())
    recipe = Recipe(limits=Limits(grids_of(sizes), exact=True, given=False))
    try:
        check_built(engines, component, maker, recipe, prepared_for(engines, component, recipe))
    except LtxError:
        build_engine(engines, component, maker, recipe)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
    except LtxError as error:
        raise SystemExit(str(error)) from None
