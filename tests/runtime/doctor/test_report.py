"""Laws of the whole examination: machine and folders together, as data; it changes and requires nothing."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest
from fakes.doctor_cases import H100, RTX_4090, machine

from ltx_runtime.doctor import report as doctor
from ltx_runtime.doctor.report import examine
from ltx_runtime.errors import LtxError
from ltx_runtime.sessions import BACKENDS
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.spec.versions import VERSIONS

GPU = Gpu("NVIDIA Test", RTX_4090, "13.0", 24 << 30)


@pytest.fixture
def here(monkeypatch):
    """Replaces this machine with a made-up one, on which every builder has version 1.2."""

    def here(found, gpu=None):
        monkeypatch.setattr(doctor, "look", lambda: (found, gpu))
        for module in ("tensorrt", "tensorrt_rtx"):
            library = ModuleType(module)
            library.__version__ = "1.2"
            if module == "tensorrt_rtx":
                library.IRuntimeCache = object
            monkeypatch.setitem(sys.modules, module, library)

    here(machine())
    return here


@pytest.fixture
def no_gpu_backends(monkeypatch):
    """Makes every backend but `cpu` refuse."""
    module = ModuleType("fake_refusing")

    def find(engines, name, backend):
        raise LtxError(f"{backend} is not here - install it")

    module.find = find
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in BACKENDS:
        if name != "cpu":
            monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], module=module.__name__))


def plain(value):
    """Returns plain data as JSON would give it back."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def test_a_report_is_plain_data_that_survives_json(tmp_path, engines, here, no_gpu_backends):
    engines(VERSIONS["demo"])
    here(machine(RTX_4090), GPU)
    told = asdict(examine(tmp_path / "engines"))
    assert json.loads(json.dumps(told)) == plain(told)
    assert told["machine"]["gpu"]["compute_capability"] == RTX_4090
    assert told["folders"][0]["version"] == "demo" and told["advice"]


def test_every_version_under_the_root_is_looked_at_or_the_one_that_is_named(tmp_path, engines, here, no_gpu_backends):
    for name in ("demo", "0.9.5"):
        engines(VERSIONS[name])
    root = tmp_path / "engines"
    assert [folder.version for folder in examine(root).folders] == ["0.9.5", "demo"]
    assert [folder.version for folder in examine(root, "demo").folders] == ["demo"]
    assert [folder.version for folder in examine(root / "demo").folders] == ["demo"]
    assert all(part.chosen == "cpu" for folder in examine(root).folders for part in folder.components)


def test_a_root_without_folders_leads_to_the_command_that_makes_them(tmp_path, here):
    for root in (tmp_path, tmp_path / "engines"):
        report = examine(root)
        assert report.folders == () and report.root_exists == root.exists() and report.free_bytes > 0
        assert report.advice[-1].command.startswith("ltx-export download")
    assert examine(tmp_path, "0.9.1").advice[-1].command.endswith("&& ltx-export onnx 0.9.1")


def test_a_bad_path_is_refused(tmp_path, here):
    (tmp_path / "file").touch()
    with pytest.raises(LtxError, match="is not a folder"):
        examine(tmp_path / "file")


def test_a_gpu_with_a_builder_and_no_engines_is_told_to_build_them(tmp_path, engines, here, no_gpu_backends):
    engines(VERSIONS["demo"])
    here(machine(RTX_4090, absent=["tensorrt"]), GPU)
    assert [one.command for one in examine(tmp_path / "engines").advice] == [
        f"ltx-export engine demo --builder tensorrt_rtx --engines {tmp_path / 'engines' / 'demo'}"
    ]


def test_what_makes_engines_here_is_known_of_each_library_that_loads():
    assert set(doctor._makers(machine(absent=["tensorrt", "tensorrt_rtx"]), None)) == set()
    assert set(doctor._makers(machine(broken=["tensorrt", "tensorrt_rtx"]), None)) == set()


def test_without_a_gpu_only_portable_engines_can_be_told_to_fit(here):
    assert set(doctor._makers(machine(), None)) == {"tensorrt_rtx"}
    h100 = Gpu("NVIDIA H100", H100, "13.0", 80 << 30)
    assert {maker.target for maker in doctor._makers(machine(H100), h100).values()} == {"portable", "sm90-nvidia-h100"}


def test_a_folder_that_can_only_be_read_is_examined_and_left_as_it_is(tmp_path, engines, here, no_gpu_backends):
    folder = engines(VERSIONS["demo"])
    paths = [folder.parent, folder, *folder.iterdir()]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in paths}
    try:
        assert examine(folder.parent).folders[0].problem == ""
        assert {path: path.stat().st_mtime_ns for path in [folder.parent, folder, *folder.iterdir()]} == before
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_no_file_of_a_folder_is_hashed(tmp_path, engines, here, no_gpu_backends, monkeypatch):
    folder = engines(VERSIONS["demo"])
    opened = []
    whole = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *rest, **more: opened.append(path) or whole(path, *rest, **more))
    assert examine(folder).folders[0].problem == ""
    assert not [path for path in opened if path.is_relative_to(folder) and path.suffix != ".json"]


def test_this_machine_whatever_it_has_can_be_examined(tmp_path):
    report = examine(tmp_path)
    assert {one.module for one in report.machine.libraries} >= {"numpy", "onnxruntime", "tensorrt"}
    assert report.machine.library("numpy").loads


def test_ltx_run_tells_what_the_doctor_found_and_for_programs_as_json(here, run, tmp_path):
    (tmp_path / "engines").mkdir()
    code, out, err = run("--doctor")
    assert (code, err) == (0, "")
    assert "advice:" in out.splitlines()
    code, out, err = run("--doctor", "--json")
    assert (code, err) == (0, "")
    assert {"machine", "folders", "advice"} <= json.loads(out).keys()
    assert run("--doctor", "--engines", "no/such/place")[0] == 2
