"""ONNX Runtime's real CUDA provider on stand-ins for CUDA's libraries, which write down what would be launched."""

import pytest

from ltx_runtime.sessions import onnxruntime_cuda
from ltx_runtime.sessions.cuda.gpu import Gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """A GPU that the driver would tell of; the stand-ins only say it to ONNX Runtime."""
    found = Gpu("stand-in for an H100", (9, 0), "13.0", 80 << 30)
    monkeypatch.setattr(onnxruntime_cuda, "find_gpu", lambda: found)
