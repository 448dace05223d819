"""The models that a server has: one for each version folder, with the sizes and lengths that it makes well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.finding import find_folder
from ltx_runtime.folder.manifest import MANIFEST, Engines
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.folder.release import release_of
from ltx_runtime.spec.geometry import SPATIAL_SCALE, TEMPORAL_SCALE
from ltx_runtime.spec.versions import Version, find_version
from ltx_serve.http.answers import MOST_SHOWN, ApiError, ErrorAnswer
from ltx_serve.settings import Settings

_SHAPES = ((16, 9), (3, 2), (4, 3), (1, 1), (3, 4), (2, 3), (9, 16))  # width : height
_SECONDS = (1, 2, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True)
class Model:
    """A version that the server can make videos with.

    Attributes:
        engines: its folder and manifest.
        version: the release.
        created_at: when the folder was written, in seconds since 1970.
    """

    engines: Engines
    version: Version
    created_at: int


class Models:
    """The versions in the folder of a server, by name. The first one makes videos that name no model."""

    def __init__(self, engines: Path, *, trust: bool = False) -> None:
        """Reads the manifests of a version folder, or of all version folders in a folder.

        Args:
            engines: the folder.
            trust: whether engines and links in the folders are used that the user of the server has not made here.

        Raises:
            LtxError: there is no version folder, or a manifest cannot be read.
        """
        models = [_model_of(folder, trust) for folder in _folders_in(engines)]
        self._by_name = {model.version.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())

    def find(self, name: str | None) -> Model:
        """Returns the model of a name or alias; the first one for None.

        Raises:
            ApiError: there is no such model.
        """
        model = next(iter(self)) if name is None else self.get(name)
        if model is None:
            have = ", ".join(self._by_name)
            message = f"the model {str(name)[:MOST_SHOWN]!r} does not exist - use {have}, or leave it out"
            raise ApiError(404, message, "model_not_found", "model")
        return model

    def get(self, name: str) -> Model | None:
        """Returns the model of a name or alias; None if there is no such model."""
        try:
            return self._by_name.get(find_version(name).name)
        except LtxError:
            return None


def _folders_in(engines: Path) -> list[Path]:
    folders = []
    if not (engines / MANIFEST).exists() and engines.is_dir():
        folders = sorted(path.parent for path in engines.glob(f"[!.]*/{MANIFEST}"))
    return folders or [find_folder(engines, None)]


def _model_of(folder: Path, trust: bool) -> Model:
    manifest = read_manifest(folder)
    return Model(Engines(folder, manifest, trust), release_of(manifest), int((folder / MANIFEST).stat().st_mtime))


class Length(BaseModel):
    """A length that a model can make."""

    num_frames: int
    seconds: float


class Defaults(BaseModel):
    """The size and length that a model makes if nothing else is asked for."""

    width: int
    height: int
    num_frames: int
    fps: float
    negative_prompt: str | None = Field(description="Null for a model that does not use one.")


class ModelAnswer(BaseModel):
    """A model: OpenAI's fields, and what it can make."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ltx-engines"
    sizes: list[str]
    lengths: list[Length]
    defaults: Defaults
    takes_guidance: bool


class ModelList(BaseModel):
    """All models of a server."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


def model_answer(model: Model, settings: Settings) -> ModelAnswer:
    """Returns a model as clients see it, with a choice of sizes and lengths within the limits of the server."""
    version, takes_guidance = model.version, not model.engines.manifest.allowed_sigmas
    usual = Defaults(
        width=version.width,
        height=version.height,
        num_frames=version.num_frames,
        fps=version.fps,
        negative_prompt=version.negative_prompt if takes_guidance else None,
    )
    return ModelAnswer(
        id=version.name,
        created=model.created_at,
        sizes=[f"{width}x{height}" for width, height in _sizes(version, settings.max_pixels)],
        lengths=_lengths(version, settings.max_frames),
        defaults=usual,
        takes_guidance=takes_guidance,
    )


def _sizes(version: Version, max_pixels: int) -> list[tuple[int, int]]:
    """Returns the version's own size, and others of about as many pixels in the usual shapes; the own one is first."""
    pixels = version.width * version.height
    sizes = [(version.width, version.height), (version.height, version.width)]
    for across, down in _SHAPES:
        unit = (pixels / (across * down)) ** 0.5
        width, height = (max(2, round(side * unit / SPATIAL_SCALE)) * SPATIAL_SCALE for side in (across, down))
        sizes.append((width, height))
    return [size for size in dict.fromkeys(sizes) if size[0] * size[1] <= max_pixels]


def _lengths(version: Version, max_frames: int) -> list[Length]:
    """Returns the version's own number of frames, and those nearest to whole seconds, the shortest first."""
    counts = {version.num_frames}
    for seconds in _SECONDS:
        counts.add(TEMPORAL_SCALE * round((seconds * version.fps - 1) / TEMPORAL_SCALE) + 1)
    return [
        Length(num_frames=count, seconds=round(count / version.fps, 2))
        for count in sorted(counts)
        if count <= max_frames
    ]


def model_routes(models: Models, settings: Settings) -> APIRouter:
    """Returns the routes that list the models."""
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models")
    def list_models() -> ModelList:
        """Lists the models of this server, with sizes and lengths that each makes well."""
        return ModelList(data=[model_answer(model, settings) for model in models])

    @routes.get("/v1/models/{model}", responses={404: {"model": ErrorAnswer}})
    def retrieve_model(model: str) -> ModelAnswer:
        """Returns one model."""
        return model_answer(models.find(model), settings)

    return routes
