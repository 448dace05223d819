"""The machine that a bundle is for: its Python and its platform, as pip's tags and as the markers of requirements."""

from __future__ import annotations

import platform as this_machine
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ltx_runtime.errors import LtxError

_FORMS = "manylinux_2_28_x86_64, musllinux_1_2_aarch64, macosx_14_0_arm64 or win_amd64"
_LINUX = re.compile(r"(manylinux|musllinux)_(\d+)_(\d+)_(\w+)")
_NAMED_GLIBC = {"manylinux2014": (2, 17), "manylinux2010": (2, 12), "manylinux1": (2, 5)}
_OLDEST_GLIBC = 5
_KINDS = {"manylinux": "glibc", "musllinux": "musl", "macosx": "macos"}
_NUMBERED = re.compile(rf"({'|'.join(_KINDS)})_(\d+)_(\d+)_")
_MAC = re.compile(r"macosx_(\d+)_(\d+)_(x86_64|arm64)")
_WINDOWS = {"win_amd64": "AMD64", "win_arm64": "ARM64", "win32": "x86"}
# Requirements may ask for the third number of Python's version, which a bundle does not fix: its ends stand for all.
_PATCH_LEVELS = (0, 99)


@dataclass(frozen=True)
class Target:
    """A machine to install on.

    Attributes:
        python: the first two numbers of its Python's version, as in (3, 11).
        tags: the platform tags of wheels that it takes, the newest first.
        system: its name in Python: linux, darwin or win32.
        machine: its processor, as Python's `platform.machine()` returns it.
    """

    python: tuple[int, int]
    tags: tuple[str, ...]
    system: str
    machine: str

    @property
    def platform(self) -> str:
        """The newest platform tag, which names the platform."""
        return self.tags[0]

    @property
    def python_text(self) -> str:
        """Python's version as text, such as 3.11."""
        return "{}.{}".format(*self.python)

    def pip_options(self) -> list[str]:
        """Returns the options of `pip download` that select wheels for it."""
        options = ["--implementation", "cp", "--python-version", self.python_text]
        return [*options, *(word for tag in self.tags for word in ("--platform", tag))]

    def environments(self) -> list[dict[str, str]]:
        """Returns values of all environment markers, for the first and for a late release of its Python."""
        return [
            {
                "implementation_name": "cpython",
                "implementation_version": f"{self.python_text}.{patch}",
                "os_name": "nt" if self.system == "win32" else "posix",
                "platform_machine": self.machine,
                "platform_python_implementation": "CPython",
                "platform_release": "",
                "platform_system": {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[self.system],
                "platform_version": "",
                "python_full_version": f"{self.python_text}.{patch}",
                "python_version": self.python_text,
                "sys_platform": self.system,
            }
            for patch in _PATCH_LEVELS
        ]


def least_system(tag: str) -> tuple[str, list[int]] | None:
    """Returns the system that a wheel's platform tag asks for: glibc, musl or macos, and the least version of it.

    Returns:
        None for a tag that asks for no version.
    """
    name, _, _ = tag.partition("_")
    if name in _NAMED_GLIBC:
        return "glibc", [*_NAMED_GLIBC[name]]
    numbered = _NUMBERED.match(tag)
    return (_KINDS[numbered[1]], [int(numbered[2]), int(numbered[3])]) if numbered else None


def target_of(platform: str | None = None, python: str | None = None) -> Target:
    """Parses a platform tag and a version of Python; None stands for those of this program.

    Raises:
        LtxError: one of them has another form, or this Python is none for which wheels are bundled.
    """
    if python is None and this_machine.python_implementation() != "CPython":
        raise LtxError(
            f"bundles are for CPython, and this is {this_machine.python_implementation()}", "add --python, such as 3.12"
        )
    python = f"3.{sys.version_info.minor}" if python is None else python
    numbers = re.fullmatch(r"3\.(\d{1,2})", python)
    if numbers is None:
        raise LtxError(f"--python {python!r} is not a version such as 3.11", "give its first two numbers")
    version = (3, int(numbers[1]))
    if platform is None:
        return Target(version, _own_tags(), sys.platform, this_machine.machine())
    if linux := re.fullmatch(r"(manylinux(?:2014|2010|1))_(\w+)", platform):
        platform = "manylinux_{}_{}_{}".format(*_NAMED_GLIBC[linux[1]], linux[2])
    if linux := _LINUX.fullmatch(platform):
        tags = tuple(_linux_tags(linux[1], int(linux[2]), int(linux[3]), linux[4]))
        return Target(version, tags, "linux", linux[4])
    if mac := _MAC.fullmatch(platform):
        from packaging.tags import mac_platforms  # noqa: PLC0415  (20 ms, for bundles only)

        return Target(version, tuple(mac_platforms((int(mac[1]), int(mac[2])), mac[3])), "darwin", mac[3])
    if platform in _WINDOWS:
        return Target(version, (platform,), "win32", _WINDOWS[platform])
    raise LtxError(f"unknown platform {platform!r}", f"give the tag of a wheel, such as {_FORMS}")


def _own_tags() -> tuple[str, ...]:
    from packaging.tags import platform_tags  # noqa: PLC0415

    return tuple(sorted(platform_tags(), key=lambda tag: tag.startswith("linux_")))  # they ask for no version


def _linux_tags(libc: str, major: int, minor: int, machine: str) -> Iterator[str]:
    """Yields the tags of a C library and of those before it, since wheels for an older one run with a newer one."""
    oldest = _OLDEST_GLIBC if libc == "manylinux" else 0
    named = {glibc: name for name, glibc in _NAMED_GLIBC.items()}
    for older in range(minor, min(minor, oldest) - 1, -1):
        yield f"{libc}_{major}_{older}_{machine}"
        if libc == "manylinux" and (major, older) in named:
            yield f"{named[major, older]}_{machine}"
