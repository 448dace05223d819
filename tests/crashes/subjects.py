"""The programs that are killed: the folder in which each begins, its command, and what it writes as a whole."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from fakes.hub_server import RELEASE, lent_hub
from fakes.program import install_fake_stages
from fakes.stages import write_engines
from fakes.wheels import lend_index, own_wheel_at
from samples import demo
from samples.tiny import sources_of, tiny, traced_once

from ltx_export import build
from ltx_export.build import ExportOptions, export_version
from ltx_export.calibration import calibrate as calibration
from ltx_export.publish import publish
from ltx_export.random_weights import write_random_weights
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.replacing import exchange
from ltx_runtime.spec.versions import VERSIONS

NAME = "0.9.5"
_PUBLISHED = "tests/demo"
SPIECE = Path(__file__).parents[1] / "golden" / "t5" / "spiece.model"
Program = Callable[[], None]
_SIZE = ("--height", "64", "--width", "96", "--num-frames", "9", "--steps", "2")
_SMALL = (*_SIZE, "--single-pass", "--seed", "7")  # a second pass replaces the latents that the first one has saved
_SMALLEST_ENGINE = ("--component", "text_encoder", "--weights", "inputs")
_PARTS = ("--without", "vae_encoder", "--without", "upsampler", "--precision", "fp32", "--precision", "bf16")


@dataclass(frozen=True)
class Subject:
    """A program that is killed.

    Attributes:
        name: its name in the table.
        begin: fills an empty folder, the working directory, with what is there before.
        run: the program.
        wholes: patterns of files and folders, each of which is the old one or the new one as a whole.
        resumed: patterns of what may stay beside them until the next run, since that goes on from it.
        records: patterns of files that tell what was done, which stay for good and are not compared.
        others: programs of which any may be the next run; `run` itself is one too.
        plan: a program that may be the next run and changes nothing.
        goes_on: returns the program that goes on after a kill; None for `run`.
        states: most states to kill it in.
    """

    name: str
    begin: Callable[[], None]
    run: Program
    wholes: tuple[str, ...]
    resumed: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    others: tuple[Program, ...] = ()
    plan: Program | None = None
    goes_on: Callable[[], Program | None] = lambda: None
    states: int = 400


def _command(main: Callable[[], None], *words: str) -> None:
    sys.argv = [*words]
    os.environ |= {"LTX_CACHE": str(Path("cache").absolute()), "XDG_DATA_HOME": str(Path("cache", "data").absolute())}
    main()


def _exporting(*words: str, at_once: bool = True) -> Program:
    """Returns the program `ltx-export` for releases in miniature."""

    def program() -> None:
        from ltx_export import cli

        VERSIONS[NAME] = tiny(NAME)
        build.onnx_from_torch = traced_once
        calibration.calibrate.__kwdefaults__["limit"] = 0.5
        if not at_once:
            exchange._exchange_of_system = lambda: None
        _command(cli.main, "ltx-export", *words)

    return program


def _running(*words: str, at_once: bool = True, release: str = "") -> Program:
    """Returns the program `ltx-run`, on the fake stages."""

    def program() -> None:
        from ltx_runtime.cli import main as cli

        if release:
            VERSIONS[release] = tiny(release)
        install_fake_stages()
        if not at_once:
            exchange._exchange_of_system = lambda: None
        _command(cli.main, "ltx-run", *words)

    return program


_LOOK = _running("a fox", "--plan", release=NAME)


def _weights(seed: int = 0) -> None:
    write_random_weights(tiny(NAME), Path("weights") / NAME, seed=seed)


def _exported(precisions: tuple[str, ...] = ("fp32", "bf16"), seed: int = 1) -> None:
    """Exports other weights than those that lie there for the next export."""
    build.onnx_from_torch = traced_once
    _weights(seed)
    version, weights = tiny(NAME), Path("weights") / NAME
    options = ExportOptions(precisions, without=("vae_encoder", "upsampler"))
    export_version(version, sources_of(version, weights), Path("engines") / NAME, options, lambda line: None)
    shutil.rmtree(weights)


def _exported_before() -> None:
    _exported()
    _weights()


def _built_before() -> None:
    """Leaves an engine for other sizes, with files that sessions have saved beside it and beside another engine."""
    _exported()
    _exporting_at_once("engine", NAME, *_SMALLEST_ENGINE, "--max-frames", "9")
    (sidecar,) = Path("engines").rglob("text_encoder.bf16.engine.json")
    for name in ("text_encoder.bf16.engine.gpu.kernels", "vae_decoder.bf16.engine", "vae_decoder.bf16.engine.json"):
        sidecar.with_name(name).write_text("saved")


def _exporting_at_once(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        _exporting(*words)()
    assert not ended.value.code


def _stages() -> None:
    write_engines(Path("engines") / "demo", VERSIONS["demo"], SPIECE)


def _stages_and(*names: str) -> Callable[[], None]:
    """Returns a function that leaves version folder and outputs of earlier runs."""

    def begin() -> None:
        _stages()
        for name in names:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("of before")

    return begin


def _rows() -> None:
    _stages()
    Path("p.csv").write_text("prompt,output\na fox,\nan owl,birds/owl.png\n")


def _resuming(pattern: str) -> Callable[[], Program | None]:
    """Returns a function that looks for the file of an interrupted run, and returns the program that goes on."""

    def goes_on() -> Program | None:
        found = sorted(path for path in Path().rglob(pattern) if ".ltx-" not in str(path))
        return _running("--resume", str(found[0])) if found else None

    return goes_on


def _run(
    name: str, *words: str, wholes: tuple[str, ...], before: tuple[str, ...] = (), at_once: bool = True
) -> Subject:
    program = _running("a cat", *_SMALL, *words, "--overwrite", at_once=at_once)
    resuming = _resuming("*.unfinished")
    return Subject(f"run: {name}", _stages_and(*before), program, wholes, ("*.unfinished",), goes_on=resuming)


def _with_quantized_demo() -> None:
    shutil.copytree(demo.folder_with_quantized_demo(), Path("engines") / "demo")
    Path("prompts.txt").write_text("a fox in the snow\na boat at sea\nrain on a window\n")


def _bundling() -> None:
    from ltx_export.bundle import bundle as module

    module.bundle.__defaults__ = (*module.bundle.__defaults__[:-1], partial(own_wheel_at, needs=()))
    _exporting("bundle", "demo", "demo.tar", "--overwrite")()


def _downloading() -> None:
    VERSIONS["0.9.8-2b-distilled"] = RELEASE
    _exporting("download", RELEASE.name, "weights")()


_SAVED = ("--save-latents", "l.safetensors", "--save-embeddings", "e.safetensors", "--save-noise", "n.safetensors")
_FILES = ("fox.mp4", "l.safetensors", "e.safetensors", "n.safetensors")
_OVER = ("export over a folder", "export over a folder, by names")
_PARTS_OF_DOWNLOADS = ("*.incomplete", "*.taken", "ltx-export.lock")
_FORCED = ("engine --force", "engine --force, by names")
_FRAMES = ("folder of frames", "folder of frames, by names")

SUBJECTS = (
    Subject("export", _weights, _exporting("onnx", NAME, *_PARTS), (f"engines/{NAME}",), plan=_LOOK),
    *(
        Subject(
            name,
            _exported_before,
            _exporting("onnx", NAME, *_PARTS, at_once=name == _OVER[0]),
            (f"engines/{NAME}",),
            others=(_exporting("check", f"engines/{NAME}"),),
            plan=_LOOK,
        )
        for name in _OVER
    ),
    Subject("engine", _exported, _exporting("engine", NAME, *_SMALLEST_ENGINE), ("engines/*/portable-*",), plan=_LOOK),
    *(
        Subject(
            name,
            _built_before,
            _exporting("engine", NAME, *_SMALLEST_ENGINE, "--force", at_once=name == _FORCED[0]),
            ("engines/*/portable-*",),
            others=(_exporting("engine", NAME, *_SMALLEST_ENGINE),),
            plan=_LOOK,
        )
        for name in _FORCED
    ),
    Subject(
        "calibrate",
        _with_quantized_demo,
        _exporting("calibrate", "demo", "--prompts", "prompts.txt", "--size", "64x96x9", "--error", "0.05"),
        ("engines/demo",),
        plan=_running("a fox", "--plan"),
        states=8,
    ),
    _run("mp4, saving all", "-o", "fox.mp4", *_SAVED, wholes=_FILES),
    _run("mp4 over files", "-o", "fox.mp4", *_SAVED, wholes=_FILES, before=_FILES),
    _run("image", "-o", "fox.gif", wholes=("fox.gif",), before=("fox.gif",)),
    *(
        _run(name, "-o", "fox.png", wholes=("fox",), before=("fox/frame_0000.png",), at_once=name == _FRAMES[0])
        for name in _FRAMES
    ),
    Subject(
        "batch",
        _rows,
        _running("--prompts", "p.csv", *_SIZE, "--seeds", "1,2", "--output-dir", "out"),
        ("out/*.mp4", "out/birds/*"),
        ("*.unfinished",),
        ("*.results.jsonl",),
        goes_on=_resuming("*.results.jsonl"),
    ),
    Subject("random-weights", lambda: None, _exporting("random-weights", NAME), (f"weights/{NAME}/*",)),
    Subject("bundle", _stages, _bundling, ("demo.tar",), states=16),
    Subject(
        "download",
        lambda: None,
        _downloading,
        ("weights/[!.]*.*", "weights/tokenizer/*"),
        _PARTS_OF_DOWNLOADS,
        ("*.metadata",),
    ),
    Subject(
        "fetch",
        lambda: None,
        _running("--fetch", _PUBLISHED, "--engines", "engines"),
        ("engines/demo",),
        (f"engines/.{_PUBLISHED.replace('/', '--')}.fetched",),
    ),
)


@contextmanager
def lent(folder: Path) -> Iterator[None]:
    """Lends every program the hub and the package index that it needs, while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        hub = lent_hub(patch, folder)
        next(hub)
        lend_index(folder / "index", patch)
        write_engines(folder / "published" / "demo", VERSIONS["demo"], SPIECE)
        publish(open_engines(folder / "published" / "demo"), _PUBLISHED, lambda line: None)
        yield
        next(hub, None)
