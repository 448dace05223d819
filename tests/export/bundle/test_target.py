"""The machine that a bundle is for, against the tags of the library that pip itself uses."""

import platform
import sys

import pytest
from packaging.markers import default_environment
from packaging.tags import sys_tags

from ltx_export.bundle.target import least_system, target_of
from ltx_runtime.errors import LtxError

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_aarch64", "musllinux_1_2_x86_64", "macosx_14_0_arm64", "win_amd64")


def test_this_machine_is_described_as_the_library_does():
    target = target_of()
    assert target.python == sys.version_info[:2]
    assert set(target.tags) == {tag.platform for tag in sys_tags()} - {"any"}
    own = {**default_environment()}
    of_patches = {"implementation_version", "python_full_version"}
    for values in target.environments():
        same = {name: value for name, value in values.items() if value and name not in of_patches}
        assert same == {name: own[name] for name in same}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="compares with the tags of a system with glibc")
def test_a_named_glibc_takes_the_wheels_that_the_library_lists_for_it():
    glibc = platform.libc_ver()[1].replace(".", "_")
    machine = platform.machine()
    named = set(target_of(f"manylinux_{glibc}_{machine}").tags)
    assert named == {tag.platform for tag in sys_tags() if tag.platform.startswith("manylinux")}


def test_a_newer_system_takes_the_wheels_of_older_ones():
    tags = target_of("manylinux_2_28_x86_64").tags
    assert tags[0] == "manylinux_2_28_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(tags)
    assert "manylinux_2_29_x86_64" not in tags
    assert target_of("manylinux2014_aarch64").platform == "manylinux_2_17_aarch64"
    assert target_of("musllinux_1_2_x86_64").tags == tuple(f"musllinux_1_{n}_x86_64" for n in (2, 1, 0))
    assert "macosx_11_0_arm64" in target_of("macosx_14_0_arm64").tags


def test_markers_are_those_of_the_other_machine():
    for text in PLATFORMS:
        target = target_of(text, "3.12")
        for values in target.environments():
            assert values.keys() == default_environment().keys()
            assert values["python_version"] == "3.12" and values["sys_platform"] == target.system
    assert target_of("win_amd64").environments()[0]["platform_machine"] == "AMD64"
    assert target_of("macosx_14_0_arm64").environments()[0]["platform_system"] == "Darwin"


@pytest.mark.parametrize(
    ("tag", "least"),
    [
        ("manylinux_2_28_x86_64", ("glibc", [2, 28])),
        ("manylinux2014_aarch64", ("glibc", [2, 17])),
        ("musllinux_1_2_x86_64", ("musl", [1, 2])),
        ("macosx_14_0_arm64", ("macos", [14, 0])),
        ("win_amd64", None),
        ("linux_x86_64", None),
        ("any", None),
    ],
)
def test_a_tag_says_how_new_a_system_must_be(tag, least):
    assert least_system(tag) == least


@pytest.mark.parametrize("text", ["linux", "windows", "manylinux_x_y_z", "manylinux_2_28", "", "win_amd64 "])
def test_an_unknown_platform_is_refused_with_examples(text):
    with pytest.raises(LtxError, match="give the tag of a wheel, such as manylinux_2_28_x86_64"):
        target_of(text)


@pytest.mark.parametrize("text", ["3", "2.7", "3.11.7", "3.x", "", "311"])
def test_a_python_that_is_no_version_is_refused(text):
    with pytest.raises(LtxError, match=r"is not a version such as 3\.11 - give its first two numbers"):
        target_of("win_amd64", text)
