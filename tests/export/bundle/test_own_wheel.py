"""A wheel that is put together from installed files is what was installed: pip installs it, and nothing is lost."""

import hashlib
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from fakes.wheels import own_wheel_at, write_wheel

from ltx_export.bundle import own_wheel as module
from ltx_export.bundle.own_wheel import own_wheel, wheel_from_installed
from ltx_runtime import packages
from ltx_runtime.errors import LtxError


def installed(wheel: Path, folder: Path) -> metadata.Distribution:
    """Installs a wheel into a folder without what it needs, and returns the distribution."""
    options = ["--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True, capture_output=True)
    (distribution,) = metadata.distributions(path=[str(folder)])
    return distribution


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_of_installed_files_has_the_files_of_the_wheel_that_was_installed(tmp_path):
    wheel = own_wheel_at(tmp_path / "wheel")
    again = wheel_from_installed(installed(wheel, tmp_path / "installed"), tmp_path)
    assert again.name == wheel.name
    before, after = contents(wheel), contents(again)
    record = "ltx_engines-0.1.0.dist-info/RECORD"
    assert sorted(before.pop(record).splitlines()) == sorted(after.pop(record).splitlines())
    assert before == after
    assert installed(again, tmp_path / "twice").version == "0.1.0"


def test_it_has_the_same_bytes_every_time(tmp_path):
    distribution = installed(own_wheel_at(tmp_path / "wheel"), tmp_path / "installed")
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digests.add(hashlib.sha256(wheel_from_installed(distribution, tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_what_is_missing_or_compiled_is_told(tmp_path):
    distribution = installed(own_wheel_at(tmp_path / "wheel"), tmp_path / "installed")
    (tmp_path / "installed" / "fake_run.py").unlink()
    with pytest.raises(LtxError, match=r"fake_run.py of ltx-engines is missing - install it again from a wheel"):
        wheel_from_installed(distribution, tmp_path)
    compiled = write_wheel(tmp_path, "fox", tag="cp311-abi3-linux_x86_64", files={"fox.so": ""})
    with zipfile.ZipFile(compiled) as archive:
        archive.extractall(tmp_path / "compiled")
    (distribution,) = metadata.distributions(path=[str(tmp_path / "compiled")])
    with pytest.raises(LtxError, match="fox was not installed from a wheel of its own"):
        wheel_from_installed(distribution, tmp_path)


def test_a_program_that_was_only_copied_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "__file__", str(tmp_path / "ltx_runtime" / "packages.py"))

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "distribution", missing)
    with pytest.raises(LtxError, match="was copied and is no installed program - install it again"):
        own_wheel(tmp_path)
