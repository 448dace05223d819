"""Commands that install packages: they name packages that an index has, and the environment that runs the program."""

import ast
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ltx_runtime
from ltx_runtime import packages
from ltx_runtime.packages import install_command, pip_command, replace_command, requirements_of

ROOT = Path(ltx_runtime.__file__).parents[1]  # of the installed packages
REPOSITORY = Path(__file__).parents[2]
STATED = [
    "numpy>=1.26",
    'onnxruntime>=1.23; extra == "cpu"',
    'onnxruntime-gpu[cuda,cudnn]>=1.23; extra == "gpu"',
    'tensorrt-rtx>=1.7; sys_platform != "darwin" and extra == "tensorrt-rtx"',
    'mlx>=1; sys_platform == "none" and extra == "tensorrt-rtx"',
]


@pytest.fixture
def stated(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: STATED if name == "ltx-engines" else None)


@pytest.fixture
def pip(monkeypatch):
    """Says that `pip` on the path is this environment's."""
    monkeypatch.setattr(packages.shutil, "which", lambda name: str(Path(sys.executable).parent / name))
    monkeypatch.setattr(packages, "find_spec", lambda name: object())


def test_every_extra_is_spelled_out_as_packages_of_its_own():
    extras = metadata.metadata("ltx-engines").get_all("Provides-Extra")
    assert {"cpu", "openvino", "gpu", "tensorrt", "tensorrt-rtx", "export"} <= {*extras}
    for extra in extras:
        names = [Requirement(one).name for one in requirements_of(extra)]
        assert names and "ltx-engines" not in names, extra
        assert "numpy" not in names  # which every install has


def test_packages_that_are_for_another_system_are_left_out(stated):
    assert requirements_of("tensorrt-rtx") == (["tensorrt-rtx>=1.7"] if sys.platform != "darwin" else [])
    assert requirements_of("gpu") == ["onnxruntime-gpu[cuda,cudnn]>=1.23"]
    assert requirements_of("nothing") == [f"{ROOT}[nothing]"]


def test_a_copy_that_was_never_installed_is_installed_from_where_it_lies(monkeypatch, pip):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert install_command("cpu") == f'pip install "{ROOT}[cpu]"'


def test_the_command_is_of_the_tool_that_the_environment_has(stated, pip, monkeypatch):
    assert install_command("cpu") == 'pip install "onnxruntime>=1.23"'
    assert install_command("cpu", "--upgrade") == 'pip install --upgrade "onnxruntime>=1.23"'
    assert replace_command(("onnxruntime",), "gpu") == (
        'pip uninstall --yes onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]>=1.23"'
    )
    for other in ("/usr/bin/pip", None):  # another environment's, or none on the path
        monkeypatch.setattr(packages.shutil, "which", lambda name, other=other: other)
        assert install_command("cpu") == f'{sys.executable} -m pip install "onnxruntime>=1.23"'
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert install_command("cpu") == f'uv pip install --python {sys.executable} "onnxruntime>=1.23"'
    assert pip_command("uninstall", "a", "b") == f"uv pip uninstall --python {sys.executable} a b"


@pytest.mark.parametrize("place", ["/opt/my python/bin/python", "/opt/$HOME/`x`/python", 'a"b/python', "plain/python"])
def test_a_shell_takes_every_command_as_it_was_meant(stated, monkeypatch, place):
    monkeypatch.setattr(sys, "executable", place)
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    monkeypatch.setattr(packages, "find_spec", lambda name: object())
    words = [place, "-m", "pip", "install", "onnxruntime-gpu[cuda,cudnn]>=1.23"]
    assert shlex.split(install_command("gpu")) == words
    printed = subprocess.run(["sh", "-c", f"printf '%s\\n' {install_command('gpu')}"], capture_output=True, text=True)
    assert printed.stdout.splitlines() == words


def test_no_message_names_the_project_to_pip_or_a_makefile():
    wrong = re.compile(r"ltx-engines\[|\bpip3? install\b|\bmake [a-z-]+")
    targets = {*re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)}
    found = []
    for path in (*(REPOSITORY / "ltx_runtime").rglob("*.py"), *(REPOSITORY / "ltx_export").rglob("*.py")):
        if path.name == "packages.py":
            continue
        tree = ast.parse(path.read_text())
        docstrings = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if hasattr(node, "body") and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                for said in wrong.findall(node.value):
                    if not said.startswith("make ") or said.removeprefix("make ") in targets:
                        found.append(f"{path.relative_to(REPOSITORY)}: {node.value}")
    assert found == []
