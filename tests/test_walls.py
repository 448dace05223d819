"""The walls of the house: what the runtime may load, who may import whom, and how large a file may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ltx_runtime", "ltx_export", "tests")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
RUNTIME = sorted((ROOT / "ltx_runtime").rglob("*.py"))
RUNTIME_TESTS = sorted((ROOT / "tests" / "runtime").rglob("*.py"))
EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
EVERY_RUNTIME_FILE = pytest.mark.parametrize("path", RUNTIME, ids=lambda path: str(path.relative_to(ROOT)))

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 45
NAMELESS = {"util", "utils", "common", "helper", "helpers", "manager", "misc", "base", "core"}

LEAF = {"errors", "passes", "versions", "components"}
# Module of ltx_runtime -> modules of ltx_runtime it may import. What is not listed may import nothing.
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "passes": set(),
    "versions": {"errors", "passes"},
    "components": {"passes", "versions", "errors"},
    "buckets": LEAF | {"geometry"},
    "geometry": LEAF,
    "schedule": LEAF,
    "guidance": LEAF,
    "torch_random": set(),
    "tensors": {"errors"},
    "noise": LEAF | {"torch_random", "tensors"},
    "tokenizer": LEAF,
    "video": LEAF,
    "tiling": LEAF,
    "tile_sizes": LEAF | {"tiling"},
    "resize": set(),
    "pictures": LEAF,
    "media": LEAF | {"pictures", "tensors"},
    "conditioning": LEAF | {"geometry"},
    "manifest": LEAF,
    "latents": set(),
    "embeddings": LEAF | {"tensors"},
    "saved_latents": LEAF | {"geometry", "tensors"},
    "options": LEAF | {"buckets", "media", "tensors", "tile_sizes", "tiling"},
    "plan": LEAF | {"conditioning", "geometry", "guidance", "noise", "saved_latents", "schedule"},
    "denoise": {"conditioning", "schedule"},
    "arguments": set(),
    "sidecar": {"buckets", "components", "manifest", "errors"},
    "sessions": {"sessions", "buckets", "components", "manifest", "sidecar", "errors"},
}
DOCTOR = ["doctor_machine", "doctor_folders", "doctor_advice", "doctor", "doctor_lines"]
# What puts the others together: each may import all but those behind it.
TOP = ["stages", "start", "chosen", "pipeline", "plan_lines", "asked", *DOCTOR]
NOT_FOR_THE_RUNTIME = {"torch", "ltx_export", "diffusers", "transformers", "onnx", "onnx_ir"}

IMPORT_ALONE = """
import importlib, importlib.abc, sys

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise AssertionError("the runtime imported " + name)

sys.meta_path.insert(0, Wall())
importlib.import_module({module!r})
print(*sys.modules)
"""


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_alone(module: str) -> subprocess.CompletedProcess[str]:
    """Imports one module in a process where everything above the wall is blocked; prints what was loaded."""
    code = IMPORT_ALONE.format(blocked=NOT_FOR_THE_RUNTIME, module=module)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def imported(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@EVERY_RUNTIME_FILE
def test_every_module_of_the_runtime_can_be_imported_where_torch_and_the_exporter_are_not(path):
    ended = import_alone(module_of(path))
    assert ended.returncode == 0, ended.stderr


def test_importing_the_runtime_loads_no_library_at_all():
    loaded = {name.partition(".")[0] for name in import_alone("ltx_runtime").stdout.split()}
    assert "ltx_runtime" in loaded
    heavy = {"torch", "typer", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "av", "PIL", "numpy", "sentencepiece"}
    assert loaded & heavy == set()


def test_the_road_loads_no_backend_until_a_session_is_opened():
    loaded = {name.partition(".")[0] for name in import_alone("ltx_runtime.pipeline").stdout.split()}
    assert loaded & {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "av", "typer", "sentencepiece"} == set()


@pytest.mark.parametrize("path", [*RUNTIME, *RUNTIME_TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_runtime_and_its_tests_import_nothing_from_above_the_wall_even_inside_functions(path):
    assert {name.partition(".")[0] for name in imported(path)} & NOT_FOR_THE_RUNTIME == set()


@EVERY_RUNTIME_FILE
def test_modules_import_downwards_only_and_leaves_never_each_other(path):
    place = path.relative_to(ROOT / "ltx_runtime").parts[0].removesuffix(".py")
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("ltx_runtime.")}
    modules = {other.relative_to(ROOT / "ltx_runtime").parts[0].removesuffix(".py") for other in RUNTIME}
    if place == "cli":
        return
    above = TOP[TOP.index(place) :] if place in TOP else []
    allowed = modules - {*above, "cli"} if above else ALLOWED[place]
    assert inside & modules <= allowed


@EVERY_RUNTIME_FILE
def test_a_module_of_the_runtime_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@EVERY_FILE
def test_no_file_is_longer_than_a_reader_can_hold(path):
    lines = path.read_text().count("\n")
    assert lines <= MAX_FILE_LINES


@EVERY_FILE
def test_no_function_is_longer_than_a_screen(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    lengths = {function.name: function.end_lineno - function.lineno + 1 for function in functions}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


@EVERY_FILE
def test_a_file_is_named_for_what_it_is_about(path):
    assert NAMELESS & set(path.stem.split("_")) == set()


def test_every_module_of_the_runtime_has_its_tests():
    modules = {
        module_of(path).split(".")[1] for path in RUNTIME if path.parent.name != PACKAGES[0] or path.stem != "__init__"
    }
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "runtime").glob("test_*.py")}
    assert modules - tested == set()
