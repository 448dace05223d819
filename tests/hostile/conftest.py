"""Version folders of strangers, and a process in which programs are watched that are given them."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.folders import Stranger
from hostile.watched import MOST_BYTES, ROOT, Run, WatchedProcess
from samples.demo import folder_with_demo

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines

SECRET = b"SECRET-OF-THE-USER " * 64


@pytest.fixture(scope="session")
def watched_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedProcess]:
    """Starts the process in which programs are watched, one for all tests of a worker."""
    process = WatchedProcess(tmp_path_factory.mktemp("watched"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copies the demo's version folder: that of `make demo` where there is one, since an export takes long."""
    try:
        demo = open_engines(ROOT / "engines" / "demo").folder
    except LtxError:
        demo = folder_with_demo() / "engines" / "demo"
    folder = tmp_path_factory.mktemp("honest") / "demo"
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("*-tensorrt*"))
    yield folder
    open_engines(folder)  # no test has written to it by way of a hard link


@pytest.fixture
def stranger(honest: Path, tmp_path: Path) -> Stranger:
    """Copies the demo's version folder to `tmp_path`/engines/demo, with files of the user in `tmp_path`/outside.

    Weights are hard links to those of other tests: a test may replace them, but not write to them.
    """
    folder, outside = tmp_path / "engines" / "demo", tmp_path / "outside"
    shutil.copytree(honest, folder, copy_function=_copy)
    outside.mkdir()
    (outside / "secret.bin").write_bytes(SECRET)
    return Stranger(folder, outside)


def _copy(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


@pytest.fixture
def watched(watched_process: WatchedProcess, tmp_path: Path) -> Callable[..., Run]:
    """Runs a program in the empty folder `tmp_path`/work: watched("ltx-run", "--engines", folder, "A fox")."""
    work = tmp_path / "work"
    work.mkdir()

    def run(program: str, *arguments: object, **environment: str) -> Run:
        return watched_process.run(program, *arguments, cwd=work, **environment)

    return run


@pytest.fixture
def refused(watched: Callable[..., Run], stranger: Stranger, tmp_path: Path) -> Callable[..., str]:
    """Runs a program on the stranger's folder, which it must refuse; returns its sentence.

    By default, that is `ltx-run` with the smallest video, without --engines and the folder in `arguments`.
    """

    def refuse(*arguments: object, program: str = "ltx-run", **environment: str) -> str:
        arguments = arguments or small_video(stranger.folder)
        ended = watched(program, *arguments, **environment)
        errors = [line for line in ended.err.splitlines() if not line.startswith(("note: ", "warning: "))]
        assert ended.code == 2, ended
        assert len(errors) == 1 and errors[0].startswith("error: "), ended.err
        assert "Traceback" not in ended.out + ended.err
        assert "SECRET" not in ended.out + ended.err
        assert ended.outside(stranger.folder.parent, tmp_path / "work") == set()
        assert ended.peak_bytes < MOST_BYTES
        return errors[0].removeprefix("error: ")

    return refuse


def small_video(folder: Path) -> tuple[object, ...]:
    """Returns arguments of ltx-run for the smallest video from a version folder."""
    size = ("--height", 64, "--width", 64, "--num-frames", 9, "--steps", 1, "--single-pass", "--seed", 1)
    return ("--engines", folder, "A red fox", "--backend", "cpu", *size, "-o", "fox.mp4")
