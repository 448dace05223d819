"""Wheels for another machine: pip reads markers as those of this one, so what the other one needs is followed here."""

import sys

import pytest
from fakes.wheels import own_wheel_at, write_wheel

from ltx_export.bundle import wheels as module
from ltx_export.bundle.target import target_of
from ltx_export.bundle.wheel_file import read_wheel, sha256_of
from ltx_export.bundle.wheels import download_wheels, lock_of
from ltx_runtime.errors import LtxError

WINDOWS, LINUX = target_of("win_amd64", "3.12"), target_of("manylinux_2_28_x86_64", "3.12")


@pytest.fixture
def names(index, tmp_path):
    """Returns a function from the requirements of the extra `cpu` and a machine to the names of all wheels."""

    def of(target, *needs, extras=("cpu",)):
        marked = [f'{need}{" and" if ";" in need else ";"} extra == "{extras[0]}"' for need in needs]
        own = read_wheel(own_wheel_at(tmp_path / "own", marked, extras))
        return [wheel.name for wheel in download_wheels(own, extras, target, tmp_path / "wheels")]

    return of


def test_a_requirement_of_the_other_system_alone_is_brought_and_one_of_this_system_alone_is_not(index, names):
    write_wheel(index, "hound", needs=['earth; sys_platform == "win32"', 'snow; sys_platform == "linux"'])
    for name in ("fox", "earth", "snow", "deep", "frost"):
        write_wheel(index, name, needs=['deep; platform_system == "Windows"'] if name == "earth" else [])
    assert names(WINDOWS, "hound") == ["deep", "earth", "hound", "ltx-engines", "pip"]


def test_the_same_on_linux(index, names):
    write_wheel(index, "hound", needs=['earth; sys_platform == "win32"', 'snow; sys_platform == "linux"'])
    for name in ("earth", "snow"):
        write_wheel(index, name)
    assert names(LINUX, "hound") == ["hound", "ltx-engines", "pip", "snow"]


def test_extras_of_requirements_and_circles_are_followed(index, names):
    write_wheel(index, "fox", needs=['tail; extra == "red"', 'cub; extra == "old"'], extras=["red", "old"])
    write_wheel(index, "tail", needs=["fox"])
    write_wheel(index, "cub")
    assert names(LINUX, "fox[red]") == ["fox", "ltx-engines", "pip", "tail"]


def test_a_requirement_that_the_last_patch_of_a_python_has_or_lacks_is_brought(index, names):
    write_wheel(index, "fox", needs=['early; python_full_version < "3.12.3"', 'old; python_version < "3.12"'])
    write_wheel(index, "early")
    write_wheel(index, "old")
    assert names(LINUX, "fox") == ["early", "fox", "ltx-engines", "pip"]


def test_wheels_are_those_of_the_platform(index, names, tmp_path):
    for tag in ("cp312-cp312-win_amd64", "cp312-cp312-manylinux_2_28_x86_64", "cp311-cp311-manylinux_2_28_x86_64"):
        write_wheel(index, "fox", tag=tag)
    write_wheel(index, "fox", "2.0", tag="cp312-cp312-manylinux_2_34_x86_64")
    assert "fox" in names(WINDOWS, "fox")
    assert [path.name for path in (tmp_path / "wheels" / "0").glob("fox*")] == ["fox-1.0-cp312-cp312-win_amd64.whl"]


def test_the_lock_names_every_wheel_with_the_checksum_of_its_bytes(index, tmp_path):
    write_wheel(index, "fox", "3.1")
    found = download_wheels(read_wheel(own_wheel_at(tmp_path / "own")), ["cpu"], LINUX, tmp_path / "wheels")
    lines = lock_of(found).splitlines()
    assert [line.partition("==")[0] for line in lines] == ["fox", "ltx-engines", "pip"]
    assert lines[0] == f"fox==3.1 --hash=sha256:{sha256_of(tmp_path / 'wheels' / '0' / 'fox-3.1-py3-none-any.whl')}"


@pytest.mark.parametrize(
    ("needs", "extras", "target", "told"),
    [
        (["fox"], ["cpu"], LINUX, "pip cannot get wheels for Python 3.12 on manylinux_2_28_x86_64: No matching "),
        (["onnxruntime", "onnxruntime-gpu"], ["cpu"], LINUX, "onnxruntime and onnxruntime-gpu would overwrite each"),
        ([], ["cpu"], target_of("win_amd64", "3.9"), "this program needs Python >=3.10, not 3.9 - change --python"),
    ],
    ids=["nowhere", "clash", "old"],
)
def test_what_cannot_be_got_or_does_not_go_together_is_told(index, names, needs, extras, target, told):
    for name in ("onnxruntime", "onnxruntime-gpu"):
        write_wheel(index, name)
    with pytest.raises(LtxError) as refused:
        names(target, *needs, extras=extras)
    assert str(refused.value).startswith(told) and " - " in str(refused.value)


def test_an_unknown_extra_is_refused_with_those_there_are(tmp_path):
    own = read_wheel(own_wheel_at(tmp_path, (), ("cpu", "gpu")))
    with pytest.raises(LtxError, match="unknown extra 'gpus' - use one of cpu, gpu"):
        download_wheels(own, ["gpus"], LINUX, tmp_path / "wheels")


def test_an_environment_without_pip_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(LtxError, match=f"pip is not installed here, and gets the wheels - run: .*{sys.executable}"):
        download_wheels(read_wheel(own_wheel_at(tmp_path)), ["cpu"], LINUX, tmp_path / "wheels")


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (["License-Expression: MIT OR Apache-2.0"], ("MIT OR Apache-2.0", True)),
        (["License: BSD"], ("BSD", False)),
        (["License: UNKNOWN", "Classifier: License :: OSI Approved :: MIT License"], ("MIT License", False)),
        (["License: A long", " text of a licence", "Classifier: License :: OSI Approved :: ISC"], ("ISC", False)),
        (["Classifier: Topic :: Multimedia"], ("", False)),
    ],
)
def test_a_licence_is_read_from_new_and_from_old_metadata(tmp_path, lines, licence):
    wheel = read_wheel(write_wheel(tmp_path, "fox", lines=lines))
    assert (wheel.licence, wheel.is_expression) == licence


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"x" * 500])
def test_a_file_that_is_no_wheel_is_told_with_its_name(tmp_path, content):
    (tmp_path / "fox-1.0-py3-none-any.whl").write_bytes(content)
    with pytest.raises(LtxError, match=r"fox-1.0-py3-none-any.whl is not a wheel that can be read \("):
        read_wheel(tmp_path / "fox-1.0-py3-none-any.whl")
