"""The stand-ins for CUDA and TensorRT offer nothing that the real ones lack, and compute what their graphs compute."""

import inspect
import re

import numpy as np
import pytest
from stand_ins.cuda import cudart_of
from stand_ins.engines import VERSIONS, Recipe, install
from stand_ins.gpu_machine import Machine
from stand_ins.tensorrt_runtime import library_of
from stand_ins.tensorrt_types import World

from ltx_export.recorded import SIZES, random_feeds
from ltx_runtime.folder.profiles import Span
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session

BUILDERS = tuple(VERSIONS)
PROFILE = {
    **dict.fromkeys(("batch", "timesteps", "tokens"), Span(1, 2, 16)),
    **dict.fromkeys(("text_tokens", "frames", "rows", "columns"), Span(1, 2, 16)),
}


def public(thing):
    """Returns the names that do not begin with an underscore."""
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_stand_in_for_cuda_has_only_functions_that_cuda_has_with_the_same_arguments():
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    stand_in = cudart_of(Machine())
    functions = {name for name in public(stand_in) if inspect.isfunction(getattr(stand_in, name))}
    assert len(functions) > 20
    for name in functions:
        mine, theirs = inspect.signature(getattr(stand_in, name)), inspect.signature(getattr(real, name))
        assert list(mine.parameters) == list(theirs.parameters), name
    for name in public(stand_in) - functions:
        assert getattr(stand_in, name) == getattr(real, name)


def test_the_real_cuda_gives_an_error_first_and_then_values_like_the_stand_in():
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    stand_in = cudart_of(Machine(driver=0))
    for one in (real, stand_in):
        error, name = one.cudaGetErrorName(one.cudaError_t.cudaErrorMemoryAllocation)
        assert (int(error), name) == (0, b"cudaErrorMemoryAllocation")
        assert len(one.cudaGetDeviceCount()) == len(one.cudaDriverGetVersion()) == 2


def counts_of(method):
    """Returns how many arguments each overload of a pybind11 method takes, besides self."""
    signatures = re.findall(rf"^(?:\d+\. )?{method.__name__}\((self: .*?)\)(?: ->|$)", method.__doc__, re.MULTILINE)
    return {len(re.findall(r"(?:^|, )\w+: ", one)) - 1 for one in signatures}


@pytest.mark.parametrize("builder", BUILDERS)
def test_the_stand_in_for_tensorrt_has_only_what_the_real_one_has_with_as_many_arguments(builder):
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    stand_in = library_of(World(Machine(), {}), builder, "1")
    checked = 0
    for name in public(stand_in):
        theirs, mine = getattr(real, name), getattr(stand_in, name)
        if not inspect.isclass(mine):
            continue
        members = set().union(*(public(one) for one in mine.__mro__ if one.__module__ == "trt_stand_in" or one is mine))
        for member in members - {"mro"}:
            assert hasattr(theirs, member), f"{name}.{member}"
            method = getattr(mine, member)
            if inspect.isfunction(method) and "self:" in (getattr(theirs, member).__doc__ or ""):
                assert len(inspect.signature(method).parameters) - 1 in counts_of(getattr(theirs, member)), member
                checked += 1
    assert checked > 20


def test_what_tells_the_libraries_apart_is_what_does_so_in_the_real_one():
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    rtx, full = (library_of(World(Machine(), {}), builder, "1") for builder in ("tensorrt_rtx", "tensorrt"))
    for name in ("IRuntimeCache", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"):
        assert (hasattr(real, name), hasattr(rtx, name), hasattr(full, name)) == (True, True, False)
    assert public(rtx.ComputeCapability) & set(dir(real.ComputeCapability)) >= {"SM75", "SM89", "SM120"}
    assert not hasattr(real.ComputeCapability, "SM90")


@pytest.mark.parametrize("builder", BUILDERS)
def test_stand_in_engines_of_an_exported_folder_compute_its_graphs(exported, monkeypatch, tmp_path, builder):
    import shutil

    folder = tmp_path / "engines"
    shutil.copytree(exported("0.9.1").folder, folder)
    engines = open_engines(folder)
    profiles = {
        name: [{axis: PROFILE[axis] for axis in entry.signature.axis_names()}]
        for name, entry in engines.manifest.components.items()
    }
    recipe = {name: Recipe(profiles=served) for name, served in profiles.items()}
    installed = install(monkeypatch, engines, builder, recipe=recipe)
    for name, entry in engines.manifest.components.items():
        feeds = [random_feeds(entry.signature, {**sizes, "batch": 1}) for sizes in SIZES]
        made = []
        for backend in (builder, "cpu"):
            with open_session(find(engines, name, backend)) as session:
                made.append([session.run(one) for one in feeds for _ in range(3)])
        for mine, theirs in zip(*made, strict=True):
            for output, values in theirs.items():
                np.testing.assert_array_equal(mine[output], values)
        installed.machine.assert_nothing_left()
