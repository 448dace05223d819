"""Ways to make one and the same video: commands in other circumstances, the library, a batch, a server.

Every way gets a request and a folder, and leaves a video; the frames that it shows are compared with those of others.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime import Pipeline
from ltx_runtime.media.pictures import opened
from ltx_runtime.outputs.plain import request_from_fields

ROOT = Path(__file__).parents[2]
START_S, MADE_S = 60.0, 600.0
# Starts a program with a mask for new files, and on some of the cores.
_PROGRAM = """
import os, sys
mask, cores, module = sys.argv[1:4]
os.umask(int(mask, 8))
if cores:
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
sys.argv[:4] = [module.partition("_")[0]]
__import__(module, fromlist=["main"]).main()
"""
RUN, SERVE = "ltx_runtime.cli.main", "ltx_serve.cli.main"


@dataclass(frozen=True)
class Case:
    """A video to make.

    Attributes:
        engines: the version folder.
        wishes: fields of a request by name, as JSON has them; paths are absolute.
        backend: a name of BACKENDS.
        suffix: the format of the video, or `.png` for a folder of frames.
    """

    engines: Path
    wishes: Mapping[str, Any]
    backend: str = "cpu"
    suffix: str = ".png"


@dataclass(frozen=True)
class Circumstances:
    """What may differ around a command.

    Attributes:
        options: further options.
        environment: further variables.
        cores: the cores on which it may run; empty for all.
        mask: permissions that new files do not get, as octal digits.
        elsewhere: whether it is started in another folder.
        name: the name of the output without its suffix.
    """

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: str = ""
    mask: str = "022"
    elsewhere: bool = False
    name: str = "video"


@dataclass(frozen=True)
class Result:
    """What a way has left.

    Attributes:
        file: the file of the video, or the folder of frames.
        latents: the file of all latents; None if this way saves none.
    """

    file: Path
    latents: Path | None = None

    def frames(self) -> NDArray[np.uint8]:
        """Returns the frames that the video shows, (F, height, width, 3)."""
        pictures = sorted(self.file.iterdir()) if self.file.is_dir() else [self.file]
        frames = []
        for picture in pictures:
            with opened(picture) as shown:
                frames += [frame.picture() for frame in shown.frames]
        return np.stack(frames)

    def digest(self) -> str:
        """Returns a checksum of the bytes of the file, or of all files of the folder in their order."""
        files = sorted(self.file.iterdir()) if self.file.is_dir() else [self.file]
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


Way = Callable[[Case, Path], Result]


def started(module: str, arguments: list[str], around: Circumstances, folder: Path, **more: Any) -> Any:
    """Starts a program in its circumstances, with the caches of the folder unless they are named."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    usual = {"LTX_CACHE": str(folder / "cache"), "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **usual, **around.environment}
    command = [sys.executable, "-c", _PROGRAM, around.mask, around.cores, module, *arguments]
    place = folder / "elsewhere" if around.elsewhere else folder
    place.mkdir(exist_ok=True)
    return subprocess.Popen(command, env=environment, cwd=place, **more)


def options_of(case: Case) -> list[str]:
    """Returns the options of ltx-run for a case, without its output."""
    typed = ["--engines", str(case.engines), "--backend", case.backend, "--no-metadata", "--overwrite"]
    for name, value in case.wishes.items():
        if name == "conditions":
            for one in value:
                typed += ["--condition", f"{one['media']}@{one['frame']}:{one['strength']}"]
        elif name == "loras":
            typed += [part for one in value for part in ("--lora", f"{one['file']}:{one['scale']}")]
        elif name == "skip_blocks":
            typed += ["--skip-blocks", ",".join(map(str, value))]
        else:
            typed += [f"--{name.replace('_', '-')}", str(value)]
    return typed


def by_command(around: Circumstances = Circumstances()) -> Way:
    """Returns the way of one ltx-run."""

    def make(case: Case, folder: Path) -> Result:
        file, latents = folder / f"{around.name}{case.suffix}", folder / "latents.safetensors"
        files = ["--output", str(file), "--save-latents", str(latents)]
        typed = [*options_of(case), *files, *around.options]
        process = started(RUN, typed, around, folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        _, told = process.communicate(timeout=MADE_S)
        assert process.returncode == 0, told.decode()
        return Result(file.with_suffix("") if case.suffix == ".png" else file, latents)

    return make


def by_library(times: int = 1, *, previews: bool = False, interrupted_at: int = 0, **options: Any) -> Way:
    """Returns the way of the library.

    Args:
        times: how often the video is made with one pipeline, of which the last one counts.
        previews: whether a picture is made of every step.
        interrupted_at: number of the step at which the run is interrupted, to be gone on from; 0 for none.
        options: arguments of Pipeline.
    """

    def make(case: Case, folder: Path) -> Result:
        os.environ["LTX_CACHE"] = str(folder / "cache")
        file, latents = folder / f"video{case.suffix}", folder / "latents.safetensors"
        request, seen = request_from_fields(case.wishes, folder), 0

        def watch(step: Any) -> None:
            nonlocal seen
            seen += 1
            if previews:
                step.preview()
            if seen == interrupted_at:
                raise KeyboardInterrupt

        with Pipeline(case.engines, backend=case.backend, note=lambda line: None, **options) as pipe:
            settings = {"overwrite": True, "metadata": False, "save_latents": latents}
            for _ in range(times):
                try:
                    saved = pipe(request, **settings).save(file, each_step=watch, unfinished=lambda path: None)
                except KeyboardInterrupt:
                    assert not file.exists()
                    saved = pipe.resume(file).save(file, each_step=watch)
        return Result(saved, latents)

    return make


def in_batch(case: Case, folder: Path) -> Result:
    """Makes the video as the second of a batch, after one of another size."""
    rows = [{"prompt": "another", "seed": 1, "num_frames": 9, "height": 64, "width": 96}, {**case.wishes}]
    prompts = folder / "prompts.jsonl"
    names = ("other", "video")
    lines = [json.dumps({**row, "output": f"{name}{case.suffix}"}) for row, name in zip(rows, names, strict=True)]
    prompts.write_text("\n".join(lines))
    typed = ["--prompts", str(prompts), *options_of(replace(case, wishes={})), "--output-dir", str(folder)]
    process = started(RUN, typed, Circumstances(), folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    _, told = process.communicate(timeout=MADE_S)
    assert process.returncode == 0, told.decode()
    return Result(folder / f"video{'' if case.suffix == '.png' else case.suffix}")


@contextmanager
def served(engines: Path, folder: Path, *options: str) -> Iterator[tuple[str, Any]]:
    """Yields the address of a server and its process, until the end of the block."""
    typed = ["--engines", str(engines), "--data", str(folder / "data"), "--port", "0", *options]
    with (folder / "log").open("w") as log:
        server = started(SERVE, typed, Circumstances(), folder, stdout=subprocess.PIPE, stderr=log)
        try:
            yield server.stdout.readline().decode().split()[0], server
        finally:
            server.terminate()
            server.wait(START_S)
            server.stdout.close()


def asked(url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the answer to a request in JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_S) as answer:
        decoded: dict[str, Any] = json.load(answer)
    return decoded


def by_server(case: Case, folder: Path) -> Result:
    """Makes the video with ltx-serve, of text alone, as .mp4."""
    with served(case.engines, folder, "--backend", case.backend) as (url, _):
        job, until = asked(f"{url}v1/videos", case.wishes)["id"], time.monotonic() + MADE_S
        while (video := asked(f"{url}v1/videos/{job}"))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < until, "no video was made"
            time.sleep(0.1)
        assert video["status"] == "completed", video
        file = folder / "video.mp4"
        with urllib.request.urlopen(f"{url}v1/videos/{job}/content", timeout=START_S) as answer:
            file.write_bytes(answer.read())
    return Result(file)
