"""Stand-in for pynvml, the module of nvidia-ml-py, on a machine with two GPUs: same arguments, same results."""
# ruff: noqa: N802, N803

from functools import wraps
from types import ModuleType, SimpleNamespace

BUS_IDS, UUIDS = ("0000:01:00.0", "0000:02:00.0"), ("GPU-one", "GPU-two")


class NvmlError(Exception):
    """Raised by every function that fails."""


class _Library:
    """The functions; the handle of a GPU is its number, and the second has half the memory of the first."""

    def __init__(self, driver: bool, split: bool | None, gpus: int) -> None:
        self.driver, self.split, self.gpus = driver, split, gpus

    def nvmlDeviceGetCount(self):
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId):
        return self._found(BUS_IDS, pciBusId.decode())

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self._found(UUIDS, uuid)

    def nvmlDeviceGetUUID(self, handle):
        return UUIDS[handle]

    def nvmlDeviceGetName(self, handle):
        return "NVIDIA Other" if handle else "NVIDIA Test"

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return 8, 9

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        return SimpleNamespace(total=24 << 30 >> handle, free=20 << 30 >> handle)

    def nvmlSystemGetCudaDriverVersion_v2(self):
        return 13000

    def nvmlDeviceGetMigMode(self, device):
        if self.split is None:
            raise NvmlError("not supported")
        return [int(self.split), int(self.split)]

    def _found(self, names, name):
        if name not in names[: self.gpus]:
            raise NvmlError("not found")
        return names.index(name)


def nvml(*, driver: bool = True, split: bool | None = None, gpus: int = 2) -> ModuleType:
    """Returns the module; every function but nvmlInit fails before it, and everything fails without a driver.

    Args:
        driver: whether there is one.
        split: whether the GPUs are split into instances; None if they cannot be.
        gpus: number of GPUs.
    """
    made, library = ModuleType("pynvml"), _Library(driver, split, gpus)
    made.NVMLError, made.open = NvmlError, 0

    def init():
        if not library.driver:
            raise NvmlError("library not found")
        made.open += 1

    def shut():
        made.open -= 1

    def checked(function):
        @wraps(function)
        def call(*arguments):
            if not made.open:
                raise NvmlError("uninitialized")
            return function(*arguments)

        return call

    for name in (name for name in dir(library) if name.startswith("nvml")):
        setattr(made, name, checked(getattr(library, name)))
    made.nvmlInit, made.nvmlShutdown = init, shut
    return made
