"""Rules of the source tree: what the runtime may load, which room may import which, and how large a file may grow."""

import ast
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("ltx_runtime", "ltx_export", "ltx_serve", "training", "tests")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
RUNTIME = sorted((ROOT / "ltx_runtime").rglob("*.py"))
SERVE = sorted((ROOT / "ltx_serve").rglob("*.py"))
RUNTIME_TESTS = sorted((ROOT / "tests" / "runtime").rglob("*.py"))
SOURCES = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 45
MAX_ROOM_FILES = 9  # besides __init__.py
NAMELESS = {"util", "utils", "common", "helper", "helpers", "manager", "misc", "base", "core"}

# Rooms are the subpackages and modules of a package. They import only rooms listed before them; the files of a room
# import each other without a cycle.
ROOMS = {
    "ltx_runtime": (
        *("errors", "packages", "declared", "files", "replacing", "trust", "progress", "spec", "folder", "hub"),
        *("tensors", "graph", "weights", "sessions", "noise", "media", "text", "vae", "sampling", "planning"),
        *("outputs", "road", "video", "pipeline", "batch", "cluster", "doctor", "cli"),
    ),
    "ltx_export": (
        *("recorded", "preview", "checkpoints", "sources", "models", "networks", "weights"),
        *(
            "graphs",
            "calibration",
            "engines",
            "inspection",
            "official_files",
            "random_weights",
            "build",
            "publish",
            "bundle",
        ),
        *("cli", "__main__"),
    ),
    "ltx_serve": ("settings", "jobs", "making", "checking", "page", "http", "cluster", "cli"),
}
# In the rooms text, vae and sampling only these files hold sessions; all others know arrays alone.
WITH_SESSIONS = {"text/encode", "vae/encode", "vae/decode", "vae/upsample", "sampling/velocity"}
NOT_FOR_THE_SERVER = {"torch", "ltx_export", "diffusers", "transformers", "onnx", "onnx_ir"}
NOT_FOR_THE_RUNTIME = {*NOT_FOR_THE_SERVER, "ltx_serve"}
# What the rooms of the server need besides the runtime, which machines that only make videos do not have.
LIBRARIES_OF_ROOMS = {"fastapi": {"http", "page", "cluster", "cli"}, "uvicorn": {"http", "cli"}, "ray": {"cluster"}}

IMPORT_ALONE = """
import importlib, importlib.abc, sys

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise AssertionError("there is no " + name)

sys.meta_path.insert(0, Wall())
for module in {modules!r}:
    importlib.import_module(module)
print(*sys.modules)
"""


def module_of(path: Path) -> str:
    """Returns the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_alone(*modules: str, blocked: Collection[str] = NOT_FOR_THE_RUNTIME) -> subprocess.CompletedProcess[str]:
    """Imports modules in a process where others are blocked, and prints the loaded modules."""
    code = IMPORT_ALONE.format(blocked={*blocked}, modules=modules)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def imported(path: Path) -> set[str]:
    """Returns the dotted names of all modules that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_of_the_runtime_can_be_imported_where_torch_and_the_exporter_are_not():
    ended = import_alone(*map(module_of, RUNTIME))
    assert ended.returncode == 0, ended.stderr


def libraries_of(*modules: str) -> set[str]:
    """Returns the libraries that importing these modules loads."""
    return {name.partition(".")[0] for name in import_alone(*modules).stdout.split()}


def test_importing_the_runtime_loads_no_library_at_all():
    heavy = {"torch", "typer", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "av", "PIL", "numpy", "sentencepiece"}
    assert libraries_of("ltx_runtime") & {*heavy, "rich"} == set()


def test_the_library_loads_no_backend_and_no_command_line_until_they_are_needed():
    heavy = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "av", "typer", "rich", "sentencepiece"}
    assert libraries_of("ltx_runtime.pipeline") & heavy == set()


def test_the_rooms_that_make_videos_can_be_imported_without_the_libraries_of_the_others():
    modules = [module for path in SERVE if place_of(module := module_of(path))[1] in ("", "settings", "jobs", "making")]
    ended = import_alone(*modules, blocked={*NOT_FOR_THE_SERVER, *LIBRARIES_OF_ROOMS})
    assert ended.returncode == 0, ended.stderr


def test_the_page_on_the_architecture_has_the_rooms_in_their_order():
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = page.split("only rooms that come earlier in this list:")[1].split("```")[1].strip()
    lines = listed.replace("\n    |", ",").splitlines()
    rooms = [tuple(room for room in order if not room.startswith("__")) for order in ROOMS.values()]
    assert [tuple(line.replace("|", ",").replace(" ", "").split(",")) for line in lines] == rooms


def test_the_server_imports_nothing_from_above_the_wall_and_a_library_only_in_the_room_that_is_for_it():
    for path in SERVE:
        libraries = {name.partition(".")[0] for name in imported(path)}
        assert libraries & NOT_FOR_THE_SERVER == set(), path
        for library in libraries & LIBRARIES_OF_ROOMS.keys():
            assert place_of(module_of(path))[1] in LIBRARIES_OF_ROOMS[library], path


def test_the_runtime_and_its_tests_import_nothing_from_above_the_wall_even_inside_functions():
    for path in (*RUNTIME, *RUNTIME_TESTS):
        assert {name.partition(".")[0] for name in imported(path)} & NOT_FOR_THE_RUNTIME == set(), path


def place_of(module: str) -> tuple[str, str]:
    """Returns package and room of a dotted name: `ltx_runtime.spec.geometry` is in ("ltx_runtime", "spec")."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def test_rooms_import_only_rooms_further_up():
    upwards = []
    for path in SOURCES:
        package, room = place_of(module_of(path))
        for name in imported(path):
            other_package, other = place_of(name)
            order = ROOMS.get(other_package, ())
            if not room or other_package != package or other == room or other not in order:
                continue
            if order.index(other) > order.index(room):
                upwards.append(f"{module_of(path)} imports {name}")
    assert upwards == []


def test_every_file_is_in_a_room_that_is_listed():
    found = {place_of(module_of(path)) for path in SOURCES}
    assert {(package, room) for package, room in found if room and package in ROOMS} == {
        (package, room) for package, rooms in ROOMS.items() for room in rooms
    }


def test_nothing_that_is_installed_imports_what_the_weights_of_the_demo_are_trained_with():
    packages = {package: (ROOT / package).rglob("*.py") for package in ROOMS}
    for path in (path for files in packages.values() for path in files):
        assert "training" not in {name.partition(".")[0] for name in imported(path)}, path


def test_no_file_imports_itself_through_others():
    modules = {module_of(path) for path in SOURCES}
    arrows = {module_of(path): (imported(path) & modules) - {module_of(path)} for path in SOURCES}
    while free := [module for module, needs in arrows.items() if not needs & arrows.keys()]:
        for module in free:
            del arrows[module]
    # A package that re-exports names of its own files is left over only if some of those files are.
    assert arrows == {}


def test_the_rooms_of_arrays_hold_sessions_in_these_files_alone():
    holding = {
        "/".join(path.relative_to(ROOT / "ltx_runtime").with_suffix("").parts)
        for room in ("text", "vae", "sampling")
        for path in (ROOT / "ltx_runtime" / room).glob("*.py")
        if "ltx_runtime.sessions" in imported(path)
    }
    assert holding == WITH_SESSIONS


def test_a_room_has_few_files_and_says_its_noun():
    for folder in {path.parent for path in SOURCES}:
        files = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(files) <= MAX_ROOM_FILES, folder
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_a_file_says_what_it_is_for_is_named_for_it_and_is_no_longer_than_a_reader_can_hold():
    for path in FILES:
        text = path.read_text()
        assert NAMELESS & set(path.stem.split("_")) == set(), path
        assert text.count("\n") <= MAX_FILE_LINES, path
        assert ast.get_docstring(ast.parse(text)), path


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{path}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_a_docstring_is_a_sentence_with_a_noun():
    fragments = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text is not None and (text.startswith("Of ") or len(text.split()) < 3):
                    fragments.append(f"{path}: {text}")
    assert fragments == []
