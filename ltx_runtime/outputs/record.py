"""The record of a video: everything that is needed to make it again, as JSON that is stored in its file.

{"ltx-engines": "0.1.0", "version": "0.9.5", "request": {...}, "options": {...}, "weights": {...}, "inputs": {...}}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ltx_runtime.declared import path_of
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.media.comments import read_comment
from ltx_runtime.media.pictures import Source, file_of
from ltx_runtime.media.video import WRITERS, is_frame, target_of
from ltx_runtime.outputs.plain import differing, from_fields, plain, relative_name, request_from_fields
from ltx_runtime.planning.backends import Chosen
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.request import Request, Resolved
from ltx_runtime.spec.versions import Version, find_version
from ltx_runtime.weights.lora import files_of

KEY = "ltx-engines"
_DIGEST_CHARACTERS = 16
_SHOWN_CHARACTERS = 40
_CHUNK_BYTES = 1 << 20
# Options that may change the pixels; all others say where files go and how much of the machine is used.
OPTIONS = (
    *("backend", "cpu_mode", "threads", "memory_bytes", "gpu_memory_bytes", "rng", "low_memory", "tiled"),
    *("crf", "sample_posterior", "embeddings", "initial_latents", "noise"),
)


@dataclass(frozen=True)
class Recorded:
    """The content of a record; without arguments, that of an empty one.

    Attributes:
        version: name of the release.
        request: the video.
        options: fields of RunOptions by name, those that are not the defaults.
        weights: the first characters of the checksum of each network's files, by its name.
        inputs: checksum of each file that was read, by its path.
    """

    version: str = ""
    request: Request = field(default_factory=Request)
    options: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    inputs: dict[Path, str] = field(default_factory=dict)

    def changed_inputs(self) -> list[Path]:
        """Returns the files that were read and are now others, or are gone."""
        return [path for path, digest in self.inputs.items() if not path.is_file() or _digest_of_file(path) != digest]

    def changed_weights(self, weights: Mapping[str, str]) -> list[str]:
        """Returns the networks whose files differ from `weights`, which `weights_of` returns for the present ones."""
        return [name for name, digest in self.weights.items() if name in weights and weights[name] != digest]


def record_of(
    request: Resolved, options: RunOptions, version: Version, weights: Mapping[str, str], output: Path, program: str
) -> str:
    """Returns the record of a video as JSON.

    Args:
        request: the request with all defaults filled in.
        options: how it is run.
        version: the release that makes it.
        weights: what `weights_of` returns.
        output: the file of the video; paths in the record are relative to its folder.
        program: the version of this program.
    """
    folder = _folder_of(output)

    def named(source: Source) -> dict[str, str]:
        return {"path": _name_of(source, folder)}

    asked = differing(request, Request())
    if request.negative_prompt == version.negative_prompt:
        del asked["negative_prompt"]
    run = {name: value for name, value in differing(options, RunOptions()).items() if name in OPTIONS}
    inputs = {_name_of(source, folder): _digest(source) for source in _sources(request, options)}
    record = {
        KEY: program,
        "version": version.name,
        "request": plain(asked, named),
        "options": plain(run, named),
        "weights": dict(weights),
        "inputs": inputs,
    }
    text = json.dumps({name: value for name, value in record.items() if value != {}}, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # JSON's escapes for bytes of names that are not UTF-8


def weights_of(engines: Engines, chosen: Chosen) -> dict[str, str]:
    """Returns the first characters of the checksum of the weights and graph of each network that runs, by its name."""
    checksums: dict[str, str] = {}
    for name in chosen.names:
        listed = engines.checksums(name, chosen.found[name].precision)
        checksums[name] = hashlib.sha256("".join(listed).encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return checksums


def check_recordable(request: Request) -> None:
    """Raises LtxError if a request has pictures in memory, from which no other process can go on."""
    if not all(isinstance(source, Path) for source in _sources(request, RunOptions())):
        raise LtxError(
            "a run with pictures in memory cannot be kept in a file to go on from",
            "save them to files first, or leave unfinished out",
        )


def read_record(path: Path | str) -> Recorded:
    """Reads the record that is stored in a video, in a folder of frames or in one of its frames.

    Raises:
        LtxError: the file cannot be read or has no record, or the record is damaged.
    """
    path = path_of(path, "path")
    if path.suffix.lower() in WRITERS and not path.exists():  # fox.png, as it was typed for the folder fox
        path = target_of(path)
    video = path.parent if is_frame(path) else path
    return parse_record(read_comment(path), video)


def parse_record(text: str, path: Path) -> Recorded:
    """Returns what a record says; `path` is the file that holds it, and to whose folder its paths are relative.

    Raises:
        LtxError: the text is no record, or has a field that this release does not know.
    """
    try:
        record = json.loads(text)
        program = record[KEY]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise LtxError(
            f"{path} does not say how it was made",
            "give a video that ltx-run made from a prompt, and without --no-metadata",
        ) from None
    folder = _folder_of(path)
    try:
        version = find_version(record["version"]).name
        request = request_from_fields(record.get("request", {}), folder)
        options = record.get("options", {})
        unknown = sorted(options.keys() - {*OPTIONS})
        if unknown:
            raise LtxError(f"it has an option {unknown[0]!r}")
        checked = from_fields(RunOptions, options, folder)
        options = {name: getattr(checked, name) for name in options}
        used = {source for source in _sources(request, checked) if isinstance(source, Path)}
        digests = {folder / name: str(digest) for name, digest in record.get("inputs", {}).items()}
        inputs = {path: digests.get(path, "") for path in used}  # others need not be read
        weights = {str(name): str(digest) for name, digest in record.get("weights", {}).items()}
        return Recorded(version, request, options, weights, inputs)
    except (LtxError, TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        problem = error.problem if isinstance(error, LtxError) else "it is damaged"
        release = str(program)[:_SHOWN_CHARACTERS]
        raise LtxError(
            f"the record in {path}, written by release {release}, cannot be used: {problem}", "type the options instead"
        ) from None


def _sources(request: Request, options: RunOptions) -> Iterator[Source]:
    """Yields everything that a run reads, whether a file or pictures in memory."""
    media = (*(one.media for one in request.conditions), request.video)
    files = (options.embeddings, options.initial_latents, options.noise)
    loras = (path for one in request.loras for path in files_of(one.file))
    yield from (source for source in (*media, *files, *loras) if source is not None)


def _name_of(source: Source, folder: Path) -> str:
    """Returns the path of a file relative to a folder, with slashes; pictures in memory get a name in brackets."""
    if not isinstance(source, (str, Path)):
        return f"<{type(source).__name__} {_digest(source)}>"
    return relative_name(file_of(source), folder)


def _folder_of(path: Path) -> Path:
    """Returns the folder of a video, to which the paths in its record are relative, whatever links lead to it."""
    real = Path(os.path.realpath(path))
    return path.parent if real == Path(os.path.abspath(path)) else real.parent


def _digest(source: Source) -> str:
    """Returns the first characters of the SHA-256 of a file, or of pictures in memory."""
    if isinstance(source, (str, Path)):
        return _digest_of_file(file_of(source))
    return hashlib.sha256(np.ascontiguousarray(source).tobytes()).hexdigest()[:_DIGEST_CHARACTERS]


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with explaining(f"read {path}"), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()[:_DIGEST_CHARACTERS]
