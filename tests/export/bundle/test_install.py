"""The installer of a bundle, run by a Python of its own with no network, no home and nothing else on the path."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import cache
from pathlib import Path

import pytest
from fakes.wheels import lend_index, own_wheel_at, write_wheel

from ltx_export.bundle import install as installer
from ltx_export.bundle.bundle import Options, bundle
from ltx_export.bundle.target import target_of
from ltx_runtime.replacing.tidying import tidy

PROGRAM = Path("install.py")
BIN = "Scripts" if os.name == "nt" else "bin"


@cache
def without_network() -> list[str]:
    """Returns the command before a program that runs it without a network; empty where that is not permitted."""
    tried = ["unshare", "--map-root-user", "--net"]
    if shutil.which(tried[0]) is None or subprocess.run([*tried, "true"], capture_output=True).returncode != 0:
        return []
    return [*tried, "--"]


@pytest.fixture
def archive(engines, tmp_path, monkeypatch):
    """Returns a bundle with three small wheels for this machine."""
    with monkeypatch.context() as only_here:
        index = lend_index(tmp_path / "index", only_here)
        write_wheel(index, "fox")
        return bundle(engines, tmp_path / "x.tar", Options(target_of(), ("cpu",)), print, make_wheel=own_wheel_at)


@pytest.fixture
def there(archive, tmp_path):
    """Returns the folder of the extracted bundle."""
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "there", filter="data")
    (folder,) = (tmp_path / "there").iterdir()
    return folder


@pytest.fixture
def environment(tmp_path):
    """Returns the variables of an installer's process: an empty home, and hardly a path."""
    (tmp_path / "home").mkdir()
    return {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PIP_INDEX_URL": "http://localhost:9"}


@pytest.fixture
def install(there, environment, tmp_path):
    """Returns a function that runs the installer, and returns its exit code, its lines and its error."""

    def run(*words, bundle=there):
        command = [*without_network(), sys.executable, str(bundle / PROGRAM), *map(str, words)]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return ended.returncode, ended.stdout, ended.stderr

    return run


def test_it_installs_makes_a_video_and_says_what_to_type(install, there, tmp_path):
    code, out, err = install()
    assert (code, err) == (0, "")
    place = tmp_path / "ltx-engines"
    assert f'next: {place / BIN / "ltx-run"} "A red fox runs through deep snow"' in out
    assert "a first small video was made in" in out
    folder = place / "share" / "ltx-engines" / "engines" / "demo"
    assert (folder / "transformer.data").samefile(there / "engines" / "demo" / "transformer.data")
    assert {path.name for path in place.iterdir()} >= {BIN, "pyvenv.cfg", "share"}
    assert not any(path.suffix == ".mp4" for path in place.rglob("*"))
    assert list((tmp_path / "home").rglob("*")) == []
    found = subprocess.run(
        [place / BIN / "python", "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    assert {entry["name"] for entry in json.loads(found.stdout)} == {"fox", "ltx-engines", "pip"}


def test_twice_is_fine_and_mends_what_was_changed_meanwhile(install, tmp_path):
    assert install("place")[0] == 0
    folder = tmp_path / "place" / "share" / "ltx-engines" / "engines" / "demo"
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text("{}")
    code, out, _ = install("place")
    assert (code, "installing into" in out, "first small video" in out) == (0, False, True)
    assert (folder / "manifest.json").stat().st_size > 1000


def test_an_installation_that_was_killed_is_made_again_from_its_start(install, tmp_path):
    assert install("place")[0] == 0
    state = tmp_path / "place" / "share" / "ltx-engines" / "installed.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "complete": False}))
    shutil.rmtree(tmp_path / "place" / "lib", ignore_errors=True)
    (tmp_path / "place" / "mine.txt").write_text("kept")
    code, out, _ = install("place")
    assert (code, "installing into" in out, "first small video" in out) == (0, True, True)
    assert (tmp_path / "place" / "mine.txt").read_text() == "kept"


def refusal(install, tmp_path, *words, **options):
    """Returns the line with which an installation is refused, before anything is written."""
    before = sorted(tmp_path.rglob("*"))
    code, _, err = install(*words, **options)
    assert (code, err.count("\n"), err.startswith("error: "), " - " in err) == (2, 1, True, True), err
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before
    return err


@pytest.mark.parametrize(
    "place", ["engines/demo/transformer.data", "wheels/fox-1.0-py3-none-any.whl", "requirements.txt"]
)
def test_a_changed_or_missing_file_is_told_by_its_name(install, there, tmp_path, place):
    content = (there / place).read_bytes()
    (there / place).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{there / place} has changed since the bundle was made - get" in refusal(install, tmp_path)
    (there / place).unlink()
    assert f"{there / place} is missing - get the bundle again" in refusal(install, tmp_path)


def test_an_archive_that_was_cut_short_is_told_wherever_it_ends(install, archive, tmp_path):
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        ends = [member.offset for member in tar]
    for end in ends[1:]:
        archive.write_bytes(whole[:end])
        cut = tmp_path / f"cut-{end}"
        cut.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", cut], capture_output=True)
        (folder,) = cut.iterdir()
        assert "cut short - get the bundle again" in (line := refusal(install, tmp_path, bundle=folder)) or (
            "bundle.json is missing or damaged - get the bundle again" in line
        )


def test_a_list_of_checksums_that_lost_lines_or_leads_outside_is_told(install, there, tmp_path):
    sums = there / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(lines[1:]))
    assert re.search(rf"lists {len(lines) - 1} of {len(lines)} files - get", refusal(install, tmp_path))
    for name in ("../outside", "/etc/passwd", "C:x", "a\\b"):
        sums.write_text("".join([*lines[1:], f"{'0' * 64}  {name}\n"]))
        assert "which is outside the bundle - do not use it" in refusal(install, tmp_path), name


@pytest.mark.parametrize(
    ("fact", "value", "told"),
    [
        ("python", [3, 99], f"this bundle is for Python 3.99, and this is 3.{sys.version_info.minor} - install Python"),
        ("system", "win32", "this bundle is for Windows on "),
        ("machine", "riscv64", "on riscv64, and this is "),
        ("least", {"glibc": [9, 9]}, "this bundle needs glibc 9.9, and here is "),
        ("least", {"musl": [1, 2]}, "this bundle needs musl 1.2, and here is none"),
        ("installed_bytes", 10**18, "but only "),
        ("format", 99, "has another format than 1 - use its own install.py"),
    ],
)
def test_another_machine_is_told_before_anything_is_written(install, there, tmp_path, fact, value, told):
    facts = json.loads((there / "bundle.json").read_text())
    (there / "bundle.json").write_text(json.dumps({**facts, fact: value}))
    assert told in refusal(install, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "1", "{}", '{"format": 1}'])
def test_facts_that_are_none_are_told(install, there, tmp_path, text):
    (there / "bundle.json").write_text(text)
    assert "bundle.json is missing or damaged - get the bundle again" in refusal(install, tmp_path)


def test_a_place_that_cannot_be_written_is_told(install, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "ltx-engines: not a directory - check its permissions or choose another folder" in refusal(
        install, tmp_path, "file/place"
    )


def test_a_folder_with_other_things_is_left_alone(install, tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "mine").write_text("x")
    assert "place holds other things - choose a new folder" in refusal(install, tmp_path, "place")
    assert "is no folder - choose another one" in refusal(install, tmp_path, "x.tar")


def test_a_first_video_that_fails_says_why_and_keeps_what_is_installed(install, tmp_path):
    code, _, err = install("place", "--no-trial")
    assert (code, err) == (0, "")
    program = tmp_path / "place" / BIN / "ltx-run"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('error: no memory - buy some')\n")
    code, _, err = install("place")
    assert (code, err) == (2, "error: it is installed, but a first video fails: no memory - buy some\n")
    assert (tmp_path / "place" / BIN / "python").exists()


@pytest.fixture
def replaced(tmp_path):
    """The four names of an installer that replaces a version folder: temporary, whole, target and old."""
    names = [tmp_path / name for name in (".demo.partial", ".ltx-demo.new", "demo", ".demo.old")]
    for folder, text in ((names[0], "new"), (names[2], "old")):
        folder.mkdir()
        (folder / "manifest.json").write_text(text)
    return names


@pytest.mark.parametrize("renamings", [1, 2])
@pytest.mark.parametrize("is_locked", [True, False])
def test_a_run_that_starts_while_a_version_folder_is_replaced_costs_neither_the_old_nor_the_new(
    replaced, monkeypatch, renamings, is_locked
):
    rename, done = type(replaced[0]).replace, []
    held = installer.lock_on(replaced[0]) if is_locked else None

    def watched(self, target):
        if len(done) == renamings:
            with monkeypatch.context() as patch:
                patch.setattr(type(self), "replace", rename)
                tidy(replaced[0].parent, lambda line: None)
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(replaced[0]), "replace", watched)
        if not is_locked and renamings == 1:  # taken for what a killed installer has left: then the old one stays
            with pytest.raises(FileNotFoundError):
                installer.replace_folder(*replaced)
        else:
            installer.replace_folder(*replaced)
    expected = "old" if not is_locked and renamings == 1 else "new"
    assert (replaced[2] / "manifest.json").read_text() == expected
    assert (held is None) != is_locked


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(there, environment, tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, str(there / PROGRAM), "place"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not (tmp_path / "place" / "pyvenv.cfg").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: interrupted; run the same command again\n")
    assert not (tmp_path / "place").exists()


def test_the_installer_can_be_read_by_python_3_6_and_imports_only_the_standard_library():
    text = (Path(__file__).parents[3] / "ltx_export" / "bundle" / PROGRAM).read_text()
    tree = ast.parse(text, feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
    assert "__future__" not in imported  # 3.6 does not know the import of annotations
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for one in filter(None, [node.returns, *(argument.annotation for argument in node.args.args)]):
                assert not isinstance(one, ast.Subscript | ast.BinOp), node.name  # evaluated by every version
