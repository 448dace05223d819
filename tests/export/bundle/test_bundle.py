"""The road of a bundle: what is in it, what is refused before anything is written, and what is left after a failure."""

import hashlib
import json
import os
import shutil
import sys
import tarfile
from collections import namedtuple
from dataclasses import replace

import pytest
from fakes.requests import default_request
from fakes.wheels import own_wheel_at, write_wheel

from ltx_export import cli
from ltx_export.bundle import bundle as module
from ltx_export.bundle.bundle import TRIAL, Options, bundle, least_systems
from ltx_export.bundle.target import target_of
from ltx_export.bundle.wheel_file import read_wheel
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.planning.plan import plan
from ltx_runtime.spec.versions import VERSIONS

OPTIONS = Options(target_of("manylinux_2_28_x86_64", "3.12"), ("cpu",))
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def bundled(engines, index, tmp_path):
    """Returns a function that bundles the version folder, and one of the lines that were reported."""
    write_wheel(index, "fox", lines=["License-Expression: MIT"])

    def make(name="x.tar", options=OPTIONS, lines=None):
        told = (lambda line: None) if lines is None else lines.append
        return bundle(engines, tmp_path / "out" / name, options, told, make_wheel=own_wheel_at)

    (tmp_path / "out").mkdir()
    return make


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def extracted(archive, folder):
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "ltx-engines-demo-manylinux_2_28_x86_64"


def test_a_bundle_holds_a_whole_version_folder_all_wheels_and_their_licences(bundled, engines, tmp_path):
    lines = []
    folder = extracted(bundled(lines=lines), tmp_path / "there")
    opened = open_engines(folder / "engines" / "demo")  # checks every file of the manifest
    assert {path.name for path in opened.folder.iterdir()} == {*opened.manifest.files, "manifest.json"}
    assert {name for entry in opened.manifest.components.values() for name in entry.graphs} == {"fp32"}
    for name, entry in opened.manifest.files.items():
        assert entry == engines.manifest.files[name]
    wheels = sorted(path.name.partition("-")[0] for path in (folder / "wheels").iterdir())
    assert wheels == ["fox", "ltx_engines", "pip"]
    bill = json.loads((folder / "materials.cdx.json").read_text())
    (fox,) = [entry for entry in bill["components"] if entry["name"] == "fox"]
    assert fox["licenses"] == [{"expression": "MIT"}]
    assert fox["hashes"][0]["content"] == sha256(folder / "wheels" / "fox-1.0-py3-none-any.whl")
    assert {path.name for path in folder.iterdir()} == {
        *("install.py", "bundle.json", "requirements.txt", "materials.cdx.json", "SHA256SUMS", "wheels", "engines")
    }
    size = sum(entry.size_bytes for entry in opened.manifest.files.values())
    assert f"{size / 1e6:.2f} MB (graphs: fp32)" in lines[0]
    assert lines[-1].endswith(sha256(tmp_path / "out" / "x.tar"))


def test_the_same_contents_make_the_same_bytes(bundled):
    assert bundled("a.tar").read_bytes() == bundled("b.tar").read_bytes()


def test_a_version_of_two_passes_makes_the_video_of_the_trial_like_every_other():
    words = dict(zip(TRIAL[::2], TRIAL[1::2], strict=True))
    size = {name: int(words[f"--{name.replace('_', '-')}"]) for name in ("height", "width", "num_frames")}
    for version in VERSIONS.values():
        assert plan(replace(default_request(version, "a fox", 0), **size), version, None, None).passes


def test_the_least_system_is_the_newest_that_a_wheel_asks_for_at_least(tmp_path):
    tags = ("manylinux_2_17_x86_64.manylinux2014_x86_64", "manylinux_2_27_x86_64.manylinux_2_28_x86_64", "any")
    wheels = [read_wheel(write_wheel(tmp_path, f"fox{n}", tag=f"py3-none-{tag}")) for n, tag in enumerate(tags)]
    assert least_systems(OPTIONS.target, wheels) == {"glibc": [2, 27]}
    assert least_systems(OPTIONS.target, wheels[:1]) == {"glibc": [2, 17]}
    assert least_systems(OPTIONS.target, wheels[2:]) == {}


def refusal(make, tmp_path, *arguments):
    """Returns the sentence with which a bundle is refused; nothing in the folder of outputs changes."""
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(LtxError) as refused:
        make(*arguments)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    return str(refused.value)


def test_a_name_that_cannot_be_written_is_refused(bundled, engines, tmp_path):
    (tmp_path / "out" / "folder.tar").mkdir()
    (tmp_path / "out" / "there.tar").write_text("mine")
    os.symlink(engines.folder, tmp_path / "link")
    for name, told in {
        "x.tar.gz": "would be packed, which weights do not become smaller by - choose a name like x.tar",
        "x.zip": "would be packed",
        "folder.tar": "folder.tar: it is a folder - give a file name",
        "there.tar": "there.tar exists - choose another name, or add --overwrite",
        "no/such/x.tar": "x.tar: not a directory - check the path",
        "../engines/demo/x.tar": "x.tar is inside the version folder - choose another folder",
        "../link/x.tar": "x.tar is inside the version folder",
        "../elsewhere/x.tar": "x.tar is inside the version folder",
    }.items():
        assert told in refusal(bundled, tmp_path, name), name


def test_a_file_of_that_name_is_replaced_when_that_is_asked_for(bundled, tmp_path):
    (tmp_path / "out" / "x.tar").write_text("old")
    assert tarfile.is_tarfile(bundled("x.tar", replace(OPTIONS, overwrite=True)))


def test_space_is_looked_for_before_anything_is_downloaded(bundled, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 0, 5_000))
    assert "more, but only 0.01 MB are free - free some space" in refusal(bundled, tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_when_it_is_interrupted_or_the_disk_is_full(bundled, tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(module, "_add", fail)
    with pytest.raises((KeyboardInterrupt, LtxError)):
        bundled()
    assert list((tmp_path / "out").iterdir()) == []


def test_wheels_that_cannot_be_got_leave_nothing(bundled, index, tmp_path):
    (index / "fox-1.0-py3-none-any.whl").unlink()
    assert refusal(bundled, tmp_path).startswith("pip cannot get wheels for Python 3.12 on manylinux_2_28_x86_64: No ")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--platform", "amiga"), "unknown platform 'amiga' - give the tag of a wheel"),
        (("--python", "2"), "--python '2' is not a version such as 3.11"),
        (("--extra", "serve"), "no backend comes with serve"),
        (("--precision", "bf16"), "nothing that comes with cpu runs bf16 graphs"),
    ],
)
def test_the_command_tells_in_one_line_what_cannot_be_bundled(engines, tmp_path, monkeypatch, capsys, given, told):
    words = ["bundle", "demo", tmp_path / "x.tar", "--engines", engines.folder.parent, *given]
    monkeypatch.setattr(sys, "argv", ["ltx-export", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    err = capsys.readouterr().err
    assert (left.value.code, err.count("\n"), told in err) == (2, 1, True), err
    assert not (tmp_path / "x.tar").exists()
