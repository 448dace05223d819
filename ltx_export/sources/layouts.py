"""Where weights are by default, and for a folder in another program's layout, where each kind of file is in it.

Known are the hub's cache, in which a repository's files are links below `snapshots`, and the models of ComfyUI, which
has a folder for each kind. Any other folder holds everything itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.spec.versions import Version

_CHECKPOINTS = ("checkpoints", "diffusion_models", "unet")
_TEXT_ENCODERS = ("text_encoders", "clip")
_VAES = ("vae",)
_UPSCALERS = ("latent_upscale_models", "upscale_models")


@dataclass(frozen=True)
class Places:
    """Folders in which the files of an export are looked for, by kind.

    Attributes:
        checkpoints, text_encoders, vaes, upscalers: folders for files of that kind.
        tokenizers: folders for the tokenizer, in the order of preference.
        is_mixed: whether the folders hold weights of other models too, so that names have to tell which are ours.
    """

    checkpoints: tuple[Path, ...]
    text_encoders: tuple[Path, ...]
    vaes: tuple[Path, ...]
    upscalers: tuple[Path, ...]
    tokenizers: tuple[Path, ...]
    is_mixed: bool = False


def weights_folder(version: Version) -> Path:
    """Returns where a version's weights are if nothing else is said; those of the demo come with this package."""
    return Path("weights") / version.name if version.repository else Path(__file__).parents[1] / "demo_weights"


def places_in(version: Version, folder: Path) -> Places:
    """Returns where the files of a version are in the folder that is given as weights.

    Raises:
        LtxError: the folder is a cache of the hub without the version, or with several snapshots.
    """
    for models in (folder, folder / "models"):
        if _is_comfy(models):
            return _comfy_places(models)
    hub, folder = _hub(folder), _snapshot_for(version, folder)
    texts = () if (folder / "text_encoder").is_dir() else tuple(_cached(hub, version.text_repository))
    return Places((folder,), (folder, *texts), (folder,), (folder,), (folder, *texts))


def places_beside(file: Path) -> Places:
    """Returns where the other files of a version are whose checkpoint is this file."""
    folder = file.parent
    own = Places((folder,), (folder,), (folder,), (folder,), (folder,))
    models = next((parent.parent for parent in file.parents if parent.name in _CHECKPOINTS), None)
    if models is None or not _is_comfy(models):
        return own
    comfy = _comfy_places(models)
    return Places(
        checkpoints=own.checkpoints,
        text_encoders=(folder, *comfy.text_encoders),
        vaes=(folder, *comfy.vaes),
        upscalers=(folder, *comfy.upscalers),
        tokenizers=(folder, *comfy.tokenizers),
        is_mixed=True,
    )


def snapshot_of(folder: Path) -> Path:
    """Returns the folder of a repository's files in the hub's cache, or `folder` itself if it is no such cache.

    Raises:
        LtxError: there is no snapshot, or there are several and none is the main branch's.
    """
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        with explaining(f"read {main}"):
            commit = snapshots / Path(main.read_text("utf-8", "replace").strip()).name
        if commit.is_dir() and commit != snapshots:
            return commit
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) == 1:
        return found[0]
    if not found:
        raise LtxError(f"{folder} is a cache of the hub without a snapshot", "download the repository again")
    raise LtxError(f"{snapshots} holds {', '.join(path.name for path in found)}", "give --weights one of them")


def _hub(folder: Path) -> Path:
    """Returns the folder of cached repositories; the hub's home has it as a folder of its own."""
    return folder / "hub" if (folder / "hub").is_dir() else folder


def _cached(hub: Path, repository: str | None) -> Iterator[Path]:
    """Yields the snapshot of a repository in a cache of the hub, if there is one."""
    folder = hub / f"models--{(repository or '').replace('/', '--')}"
    if folder.is_dir():
        yield snapshot_of(folder)


def _snapshot_for(version: Version, folder: Path) -> Path:
    hub = _hub(folder)
    if not any(hub.glob("models--*")):
        return snapshot_of(folder)
    repositories = (version.repository, version.diffusers_repository)
    snapshots = [path for repository in repositories for path in _cached(hub, repository)]
    for path in snapshots:
        if any(path.glob(f"{Path(version.checkpoint).stem}*")) or (path / "transformer").is_dir():
            return path
    names = " or ".join(filter(None, repositories)) or "such a repository"
    raise LtxError(f"{hub} is a cache of the hub without {version.name} in {names}", "give --weights another folder")


def _is_comfy(models: Path) -> bool:
    """Returns whether a folder is that of ComfyUI's models: it has folders for checkpoints and for text encoders."""
    return all(any((models / name).is_dir() for name in names) for names in (_CHECKPOINTS, _TEXT_ENCODERS))


def _comfy_places(models: Path) -> Places:
    def below(*names: str) -> tuple[Path, ...]:
        """Returns folders and all folders in them, which ComfyUI searches too."""
        roots = [models / name for name in names if (models / name).is_dir()]
        inner = (sorted(path for path in root.rglob("[!.]*") if path.is_dir()) for root in roots)
        return tuple(folder for root, more in zip(roots, inner, strict=True) for folder in (root, *more))

    texts = below(*_TEXT_ENCODERS)
    return Places(below(*_CHECKPOINTS), texts, below(*_VAES), below(*_UPSCALERS), (models, *texts), is_mixed=True)
