"""Examines version folders: whether they are complete, which backends can run each component, and their engines.

This is quick, since only existence and size of a folder's files are checked; of engines also the checksum. Nothing is
changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ltx_runtime.doctor.machine import reason_of
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import engines_folder
from ltx_runtime.folder.address import FOREIGN, EngineAddress, check_engine, engine_paths, has_foreign_sidecar
from ltx_runtime.folder.manifest import MANIFEST, Engines
from ltx_runtime.folder.profiles import Profile, Span
from ltx_runtime.folder.reading import placed_file, read_manifest
from ltx_runtime.folder.sidecar import ENGINE_PRECISIONS, Maker, Sidecar, read_sidecar
from ltx_runtime.sessions import BACKENDS, find_preferable
from ltx_runtime.sessions.trt.library import LIBRARIES, title_of
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import Grid

_SHOWN_FRAMES = 13  # 97 frames in latent frames: the length by which numbers of tokens are illustrated


@dataclass(frozen=True)
class Saying:
    """A backend's answer for a component: in `says`, the file that it would run, or why it cannot run the component."""

    backend: str
    fits: bool
    says: str


@dataclass(frozen=True)
class EngineFile:
    """An engine file, and whether it can be used here.

    Attributes:
        path: path relative to the version folder.
        builder, precision, weights, sizes, relative_l2: values from its sidecar; sizes in words.
        problem: why it cannot be used here; empty if it can.
        rebuild: the command that builds a usable engine; empty if nothing is wrong.
    """

    path: str
    component: str
    size_bytes: int
    builder: str
    precision: str
    weights: str
    sizes: tuple[str, ...]
    relative_l2: float | None
    problem: str = ""
    rebuild: str = ""


@dataclass(frozen=True)
class ComponentFacts:
    """Facts about a component.

    Attributes:
        precisions: precisions of its graphs.
        backends: the answer of every backend.
        chosen: the backend that would run it; empty if none can.
        engines: its engine files.
    """

    name: str
    precisions: tuple[str, ...]
    backends: tuple[Saying, ...]
    chosen: str
    engines: tuple[EngineFile, ...]


@dataclass(frozen=True)
class FolderFacts:
    """Facts about a version folder; components are examined only if it is complete.

    Attributes:
        problem: why it is not complete; empty if it is.
        command: the command that mends it; empty if it is complete or if none does.
        advice: what else can be done, in words; may be empty.
    """

    path: str
    version: str
    size_bytes: int
    problem: str
    components: tuple[ComponentFacts, ...] = ()
    command: str = ""
    advice: str = ""


def folders_in(root: Path, version: str | None) -> list[Path]:
    """Returns the version folders in a root, only that of `version` if given; or the root itself if it is one.

    A root that does not exist yet has none.

    Raises:
        LtxError: the root is not a folder, cannot be read, or neither it nor its parent folder exists, and it is not
            the default.
    """
    if not root.is_dir():
        if root.exists() or not (root.absolute().parent.is_dir() or root == engines_folder(None)):
            raise LtxError(f"{root} is not a folder", "check the path")
        return []
    with explaining(f"read {root}"):
        inside = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    if _is_version_folder(root):
        return [root]
    folders = [path for path in inside if path.is_dir() and _is_version_folder(path)]
    return folders if version is None else [path for path in folders if path.name == version]


def _is_version_folder(path: Path) -> bool:
    return (path / MANIFEST).exists() or any(path.glob("[!.]*.onnx"))


def look_at(folder: Path, makers: Mapping[str, Maker], *, trust: bool = False) -> FolderFacts:
    """Examines a version folder.

    Args:
        folder: the version folder.
        makers: the libraries that build and run engines here, by builder.
        trust: whether engines and links in it are used that the user has not made on this machine.
    """
    try:
        manifest = read_manifest(folder)
    except LtxError as error:
        return _unusable(folder, folder.name, 0, error)
    engines = Engines(folder, manifest, trust)
    size = sum(entry.size_bytes for entry in manifest.files.values())
    try:
        for name in manifest.files:
            placed_file(engines, name)
    except LtxError as error:
        return _unusable(folder, manifest.version, size, error)
    components = tuple(_component(engines, name, makers) for name in manifest.components)
    return FolderFacts(str(folder), manifest.version, size, "", components)


def _unusable(folder: Path, version: str, size_bytes: int, error: LtxError) -> FolderFacts:
    return FolderFacts(str(folder), version, size_bytes, error.problem, command=error.command, advice=error.advice)


def _component(engines: Engines, name: str, makers: Mapping[str, Maker]) -> ComponentFacts:
    sayings = tuple(_saying(engines, name, backend) for backend in BACKENDS)
    chosen = next((saying.backend for saying in sayings if saying.fits), "")
    files = engine_paths(engines, f"*/{name}.*.engine")
    precisions = tuple(engines.component(name).graphs)
    return ComponentFacts(
        name, precisions, sayings, chosen, tuple(_engine(engines, name, path, makers) for path in files)
    )


def _saying(engines: Engines, name: str, backend: str) -> Saying:
    try:
        found = find_preferable(engines, cast(ComponentName, name), backend)
    except LtxError as error:
        return Saying(backend, False, error.problem)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a broken library may raise anything
        return Saying(backend, False, f"its library cannot be used ({reason_of(error)})")
    return Saying(backend, True, str(found.path.relative_to(engines.folder)))


def _engine(engines: Engines, name: str, path: Path, makers: Mapping[str, Maker]) -> EngineFile:
    relative_path, size = str(path.relative_to(engines.folder)), path.stat().st_size if path.exists() else 0
    precision = path.name.removeprefix(f"{name}.").removesuffix(".engine")
    default = next(iter(makers.values()), Maker(next(iter(LIBRARIES)), ""))
    rebuild = EngineAddress(engines, name, default, precision).rebuild_command()
    try:
        if has_foreign_sidecar(engines, path):
            raise LtxError(FOREIGN)
        sidecar = read_sidecar(path)
    except LtxError as error:
        return EngineFile(relative_path, name, size, "", precision, "", (), None, error.problem, rebuild)
    maker = makers.get(sidecar.builder)
    problem = _misfit(engines, name, path, sidecar, maker)
    original = sidecar.maker if sidecar.builder in LIBRARIES else Maker(next(iter(LIBRARIES)), "")
    rebuild = EngineAddress(engines, name, original, sidecar.precision).rebuild_command(sidecar.options)
    return EngineFile(
        relative_path,
        name,
        size,
        f"{sidecar.builder} {sidecar.builder_version}",
        sidecar.precision,
        sidecar.weights,
        tuple(dict.fromkeys(words_of(profile) for profile in sidecar.profiles)),
        sidecar.relative_l2,
        problem,
        rebuild if problem else "",
    )


def _misfit(engines: Engines, name: str, path: Path, sidecar: Sidecar, maker: Maker | None) -> str:
    """Returns why an engine cannot be used here; empty if it can."""
    if sidecar.builder not in LIBRARIES:
        return f"was built by {sidecar.builder}, which is not supported"
    title = title_of(sidecar.builder)
    if maker is None:
        return f"was built for {title} {sidecar.builder_version}, which does not work here"
    if sidecar.builder_version != maker.version:
        return f"was built by {title} {sidecar.builder_version}, but {maker.version} is installed"
    if sidecar.target != maker.target:
        return f"was built for {sidecar.gpu or sidecar.target}, but this GPU is {maker.gpu or maker.target}"
    if path.parent.name != maker.folder or sidecar.precision not in ENGINE_PRECISIONS:
        return f"is in {path.parent.name}, where no backend looks for it"
    try:
        check_engine(EngineAddress(engines, name, maker, sidecar.precision))
    except LtxError as error:
        return error.problem.removeprefix(f"{path} ")
    return ""


def words_of(profile: Profile) -> str:
    """Returns the sizes that a profile serves, in words such as `1 to 97 frames of 64x32 to 768x512`, width first."""
    if "tokens" in profile:
        return _tokens(profile["tokens"])
    if "text_tokens" in profile:
        tokens, batch = profile["text_tokens"], profile["batch"]
        return f"{_range(str(batch.min), str(batch.max))} prompts of {_range(str(tokens.min), str(tokens.max))} tokens"
    frames, rows, columns = (profile[axis] for axis in ("frames", "rows", "columns"))
    smallest, largest = (
        Grid(*sizes) for sizes in ((frames.min, rows.min, columns.min), (frames.max, rows.max, columns.max))
    )
    shapes = _range(*(f"{grid.width}x{grid.height}" for grid in (smallest, largest)))
    return f"{_range(str(smallest.num_frames), str(largest.num_frames))} frames of {shapes}"


def _range(smallest: str, largest: str) -> str:
    return smallest if smallest == largest else f"{smallest} to {largest}"


def _tokens(span: Span) -> str:
    words = f"{_range(str(span.min), str(span.max))} tokens"
    grid = shown_grid(span.max)
    return words if grid is None else f"{words} (such as {grid.num_frames} frames of {grid.width}x{grid.height})"


def shown_grid(tokens: int) -> Grid | None:
    """Returns the largest 3:2 grid of 97 frames with at most this number of tokens, or None if there is none."""
    rows = range(2, 512, 2)
    fitting = [row for row in rows if _SHOWN_FRAMES * row * (row * 3 // 2) <= tokens]
    return Grid(_SHOWN_FRAMES, fitting[-1], fitting[-1] * 3 // 2) if fitting else None
