"""The libraries of backends tell nobody that they are used: they write nothing into the home, and look up no host."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from samples.onnx_bytes import graph_that_adds

CODE = {
    "onnxruntime": "import onnxruntime; onnxruntime.InferenceSession(sys.argv[1])",
    "openvino": "import openvino; openvino.Core().compile_model(sys.argv[1], 'CPU')",
}
# A library that is loaded after the backends' package; what it sends, it sends from a thread.
LOADING = "import sys, time; import ltx_runtime.sessions; {code}; time.sleep(1)"
SILENT_ANYWAY = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")


@pytest.mark.parametrize("library", CODE)
def test_a_library_is_used_without_telling_its_maker(tmp_path, library):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed - install its extra")
    (tmp_path / "sum.onnx").write_bytes(graph_that_adds("a", "b", output="c"))
    (tmp_path / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in SILENT_ANYWAY}
    environment |= {"HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOADING.format(code=CODE[library]), str(tmp_path / "sum.onnx")]
    has_strace = shutil.which("strace") is not None
    if has_strace:
        command = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(tmp_path / "calls"), *command]
        (tmp_path / "calls").touch()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert list((tmp_path / "home").rglob("*")) == []
    if not has_strace:
        pytest.skip("nothing was written, but only strace tells whether anything was sent - install it")
    assert "AF_INET" not in (tmp_path / "calls").read_text()
