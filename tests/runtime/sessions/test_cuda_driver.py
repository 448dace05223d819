"""What the driver tells of GPUs: the one that CUDA would use, nothing where there is none, and never an error."""

import inspect
import sys

import pytest
from stand_ins.nvml import nvml

from ltx_runtime.sessions.cuda import driver
from ltx_runtime.sessions.cuda.driver import DriverGpu, driver_gpu, has_nvidia_driver, visible_gpus
from ltx_runtime.sessions.cuda.gpu import Gpu

FIRST = DriverGpu(Gpu("NVIDIA Test", (8, 9), "13.0", 24 << 30), 20 << 30)
SECOND = DriverGpu(Gpu("NVIDIA Other", (8, 9), "13.0", 12 << 30), 10 << 30)


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Replaces pynvml, and hides this machine's own driver."""
    monkeypatch.setattr(driver, "Path", lambda name: tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(module):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


def test_a_gpu_is_told_as_the_driver_tells_it_and_the_library_is_closed(install):
    module = install(nvml())
    assert (driver_gpu(), driver_gpu(b"0000:02:00.0"), has_nvidia_driver()) == (FIRST, SECOND, True)
    assert module.open == 0


@pytest.mark.parametrize(
    ("visible", "told"),
    [
        *[("0", FIRST), ("1,0", SECOND), (" 1 ", SECOND), ("GPU-two", SECOND)],
        *[(other, None) for other in ("GPU-x", "", "-1", "2", "MIG-1", "none")],
    ],
)
def test_it_is_the_first_one_that_cuda_may_use(install, monkeypatch, visible, told):
    install(nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert driver_gpu() == told


def test_the_memory_of_a_gpu_that_is_split_is_not_told(install):
    for split, free in ((True, None), (False, 20 << 30)):
        install(nvml(split=split))
        assert driver_gpu().free_bytes == free


@pytest.mark.parametrize("module", [None, nvml(driver=False)], ids=["no package", "no driver"])
def test_without_a_driver_nothing_is_told(install, module):
    install(module)
    assert (driver_gpu(), has_nvidia_driver()) == (None, False)


def test_a_driver_without_gpus_is_a_driver(install):
    install(nvml(gpus=0))
    assert (driver_gpu(), has_nvidia_driver()) == (None, True)


def test_the_stand_in_takes_what_the_package_takes():
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not for this system")
    for name, function in vars(nvml()).items():
        if name.startswith("nvml") and callable(function):
            assert str(inspect.signature(function)) == str(inspect.signature(getattr(real, name))), name


@pytest.mark.parametrize(
    ("visible", "listed"),
    [
        *[(None, ["GPU-one", "GPU-two"]), ("1, 0", ["1", "0"]), ("MIG-1,GPU-x", ["MIG-1", "GPU-x"])],
        *[("", []), ("-1,0", []), ("0,-1,1", ["0"])],
    ],
)
def test_the_gpus_for_one_process_each_are_those_that_cuda_would_number(install, monkeypatch, visible, listed):
    install(nvml())
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == listed


def test_a_variable_that_lists_gpus_makes_none_where_there_is_no_driver(install, monkeypatch):
    install(None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert visible_gpus() == []
