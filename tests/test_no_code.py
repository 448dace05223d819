"""No file that this project reads is code: no source names an unsafe reader, and files with code run nothing."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.reading import CARELESS, FILE_READERS
from samples.files_with_code import contents

ROOT = Path(__file__).parents[1]
SOURCES = [path for package in ("ltx_runtime", "ltx_export", "ltx_serve") for path in (ROOT / package).rglob("*.py")]
# Modules whose data can be code, and calls that run text.
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "runpy"}
CALLS = {"exec", "eval", "compile", "__import__", "os.system", "os.popen", "torch.load", "numpy.load", "yaml.load"}
UNSAFE_YAML = {"unsafe_load", "full_load", "load_all", "UnsafeLoader", "FullLoader", "Loader"}
UNSAFE_OPTIONS = {"trust_remote_code", "weights_only", "shell"}
# Who starts programs: pip for a bundle, a bundle's installer, and workers of a server; a command is quoted for people.
STARTING = {
    *("ltx_export/bundle/wheels.py", "ltx_export/bundle/install.py", "ltx_serve/making/process.py"),
    "ltx_runtime/cli/streams.py",
}


def places(found):
    """Returns where each source has what `found` yields for its syntax tree."""
    return {
        f"{path.relative_to(ROOT)}: {what}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        for what in found(node)
    }


def imports(node):
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield (node.module or "").partition(".")[0]


def unsafe(node):
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name in CALLS:
            yield name
        yield from (one.arg for one in node.keywords if one.arg in UNSAFE_OPTIONS)
        yield from (one.arg for one in node.keywords if one.arg == "allow_pickle" and ast.unparse(one.value) != "False")
    elif isinstance(node, ast.Attribute) and node.attr in UNSAFE_YAML and ast.unparse(node.value) == "yaml":
        yield ast.unparse(node)


def test_no_source_names_a_reader_that_can_run_what_it_reads():
    assert {place for place in places(imports) if place.rpartition(" ")[2] in MODULES} == set()
    assert places(unsafe) == set()


def test_programs_are_started_in_few_places():
    assert {place.partition(":")[0] for place in places(imports) if place.endswith(": subprocess")} == STARTING


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Returns a function that reads all files with code in them, in a process with an audit hook."""

    def run(*careless):
        folder = tmp_path_factory.mktemp("code")
        place = folder / "made-by-code"
        paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        (folder / "files").mkdir()
        command = [sys.executable, "-m", "fakes.reading", folder / "files", place, *careless]
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout), place

    return run


def test_files_with_code_in_them_run_nothing_whatever_reads_them_and_whatever_they_are_called(read, tmp_path):
    told, place = read()
    assert told["count"] > 10 * len(FILE_READERS) * len([*contents(tmp_path)])
    assert told["heard"] == [] and not place.exists()
    assert told["raised"] == []


def test_the_hook_hears_readers_that_do_run_what_they_read(read):
    told, place = read("careless")
    heard = {line.partition(" of ")[0] for line in told["heard"]}
    assert {f"pickle.find_class by {name}" for name in ("pickle", "numpy")} < heard
    assert {"exec by eval", "compile by eval"} < heard and {line.rpartition(" ")[2] for line in heard} <= {*CARELESS}
    assert place.exists()
