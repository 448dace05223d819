"""Bundles with wheels of the package index: one makes a real video without a network, others are for other systems.

`make test-bundle` runs this file; each bundle has about 100 MB.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import pytest
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename
from samples.demo import folder_with_demo

from ltx_export.bundle.target import target_of
from ltx_export.bundle.wheel_file import read_wheel

pytestmark = pytest.mark.index
BIN = "Scripts" if os.name == "nt" else "bin"
ONLY_LOOPBACK = (
    "import sys; names = open('/proc/net/dev').read(); sys.exit(names.count(':') != 1 or 'lo:' not in names)"
)


def bundled(folder: Path, *options: str) -> Path:
    """Bundles the demo with the command, extracts it, and returns its folder."""
    engines = str(folder_with_demo() / "engines")
    code = "from ltx_export.cli import main; main()"
    words = ["bundle", "demo", str(folder / "demo.tar"), "--engines", engines, *options]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    with tarfile.open(folder / "demo.tar") as tar:
        tar.extractall(folder / "there", filter="data")
    (extracted,) = (folder / "there").iterdir()
    return extracted


def alone(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Runs a command without a network, with an empty home and a path that leads only to the system's programs."""
    (folder / "home").mkdir(exist_ok=True)
    environment = {"HOME": str(folder / "home"), "PATH": "/usr/bin:/bin"}
    cut_off = ["unshare", "--map-root-user", "--net", "--"]
    return subprocess.run(
        [*cut_off, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("extra", ["cpu", "openvino"])
def test_a_bundle_makes_a_video_on_a_machine_with_nothing_but_python(tmp_path, extra):
    if alone(tmp_path, sys.executable, "-c", ONLY_LOOPBACK).returncode != 0:
        pytest.skip(
            "no network namespace can be made - run this as root, or allow user namespaces (util-linux: unshare)"
        )
    there = bundled(tmp_path, "--extra", extra)
    python = Path(sys.base_prefix) / BIN / f"python3.{sys.version_info.minor}"
    ended = alone(tmp_path, python, there / "install.py", "place")
    assert ended.returncode == 0, ended.stderr
    assert "a first small video was made in" in ended.stdout
    (program,) = re.findall(r"^next: (\S+)", ended.stdout, re.MULTILINE)
    size = ("--height", "64", "--width", "96", "--num-frames", "9", "--seed", "7", "--output", "fox.mp4")
    ended = alone(tmp_path, program, "A red fox", *size)
    assert ended.returncode == 0, ended.stderr
    with av.open(str(tmp_path / "fox.mp4")) as video:
        assert [(frame.width, frame.height) for frame in video.decode(video=0)] == [(96, 64)] * 9
    place = tmp_path / "place" / BIN
    assert alone(tmp_path, place / "python", "-c", "import torch").returncode == 1
    assert alone(tmp_path, place / "python", "-m", "pip", "check").returncode == 0
    assert alone(tmp_path, place / "ltx-export", "check").returncode == 0


@pytest.mark.parametrize(
    ("platform", "python"),
    [("win_amd64", "3.12"), ("manylinux_2_28_aarch64", "3.11"), ("macosx_14_0_arm64", "3.13")],
)
def test_a_bundle_for_another_system_has_every_wheel_that_system_needs(tmp_path, platform, python):
    there, target = bundled(tmp_path, "--platform", platform, "--python", python), target_of(platform, python)
    wheels = {wheel.name: wheel for wheel in map(read_wheel, (there / "wheels").iterdir())}
    assert len(wheels) > 20
    for wheel in wheels.values():
        _, _, _, tags = parse_wheel_filename(wheel.path.name)
        assert {tag.platform for tag in tags} & {*target.tags, "any"}, wheel.path.name
        for need in wheel.needs:
            if "extra" not in str(need.marker) and all(map(_counts(need), target.environments())):
                assert wheels[need.name.lower().replace("_", "-")].version in need.specifier, need
    assert ("colorama" in wheels) == (target.system == "win32")
    facts = json.loads((there / "bundle.json").read_text())
    assert (facts["system"], facts["python"]) == (target.system, [*target.python])
    ended = subprocess.run([sys.executable, there / "install.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, "error: this bundle is for " in ended.stderr) == (2, True)


def _counts(need: Requirement):
    return lambda values: need.marker is None or need.marker.evaluate({**values, "extra": ""})
