"""Reads, writes and verifies engines/<version>/manifest.json, the contract between exporter and runtime.

The manifest is written last and atomically, so its presence proves that the folder is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path, PurePath
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.files import engines_folder, refuse_pointer, written_whole
from ltx_runtime.folder.commands import export_command, fetch_advice, no_versions
from ltx_runtime.spec.components import Component, Port
from ltx_runtime.spec.encodings import Rope
from ltx_runtime.spec.presets import Schedule

MANIFEST = "manifest.json"
FORMAT = 6
# Precision of graphs whose matrices are integers of 8 bits, with a scale for so many consecutive weights of a row.
QUANTIZED, QUANTIZED_BLOCK = "q8", 128
# Precision of graphs in which most products multiply integers, with one scale for all activations: it was calibrated.
CALIBRATED = "int8"

_WHOLE_BYTES = 64 << 20
_SAMPLE_BYTES = 1 << 20
_SAMPLES = _WHOLE_BYTES // _SAMPLE_BYTES


@dataclass(frozen=True)
class FileEntry:
    """Size of one file of the folder, and the result of `checksum`."""

    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class Parity:
    """Relative L2 errors of a graph against its module in fp32.

    Attributes:
        relative_l2: one error for each entry of `sizes`.
        sizes: the size of every dynamic axis of the inputs, by axis name.
        weights: description of the weights that were used.
    """

    relative_l2: tuple[float, ...]
    sizes: tuple[dict[str, int], ...]
    weights: str


@dataclass(frozen=True)
class Preview:
    """A linear map from the channels of normalized latents to colours in [-1, 1].

    Attributes:
        weights: for red, green and blue, one number per channel.
        bias: red, green and blue of latents that are zero.
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


@dataclass(frozen=True)
class Quantized:
    """A graph whose matrices are integers.

    Attributes:
        weights: names of the weight files to which it refers.
        error: relative L2 of its output to the fp32 graph's: of q8 on the recorded inputs, of int8 on steps of a prompt
            from which no scale was taken.
    """

    weights: tuple[str, ...]
    error: float


@dataclass(frozen=True)
class ComponentEntry:
    """One component of a version folder.

    Attributes:
        signature: ports of the component.
        weights: names of the weight files to which its graphs refer.
        graphs: name of the graph file by precision.
        parity: result of the parity check of its fp32 graph.
        recorded: name of the file with inputs and the output that the fp32 graph computed for them at export.
        preview: linear map from the VAE encoder's latents to colours; None for other components.
        parameters: number of its parameters.
        quantized: its graphs of integers, by precision.
    """

    signature: Component
    weights: tuple[str, ...]
    graphs: dict[str, str]
    parity: Parity | None = None
    recorded: str | None = None
    preview: Preview | None = None
    parameters: int = 0
    quantized: dict[str, Quantized] = field(default_factory=dict)

    def weights_of(self, precision: str) -> tuple[str, ...]:
        """Returns the names of the weight files of one graph."""
        return self.quantized[precision].weights if precision in self.quantized else self.weights

    def files(self) -> set[str]:
        """Returns the names of all files of the component."""
        own = [name for graph in self.quantized.values() for name in graph.weights]
        return {*self.weights, *self.graphs.values(), *filter(None, [self.recorded]), *own}


@dataclass(frozen=True)
class Manifest:
    """Contents of a version folder.

    Attributes:
        version: name of the version.
        causal_positions, schedule, allowed_sigmas: taken from the checkpoint's header if it has them, else from the
            version. If `allowed_sigmas` is empty, every noise level is allowed.
        rope: position embedding of the transformer; its frequencies were computed by torch, like those of the official
            code, because numpy's powers differ in the last digit, and angles of 15,000 radians make that visible.
        tokenizer: name of the tokenizer's file; None if the folder has no text encoder.
        components: the exported components by name.
        files: every file but the manifest itself, by name.
        linked: the folder of each file that is outside the version folder, since `--link` leaves weights in place.
        loras: LoRAs merged into the transformer, as `FILE:SCALE`.
    """

    version: str
    causal_positions: bool
    schedule: Schedule
    rope: Rope
    tokenizer: str | None
    components: dict[str, ComponentEntry]
    files: dict[str, FileEntry] = field(default_factory=dict)
    linked: dict[str, str] = field(default_factory=dict)
    loras: tuple[str, ...] = ()
    allowed_sigmas: tuple[float, ...] = ()

    def place(self, folder: Path, name: str) -> Path:
        """Returns the path of a file: in the version folder, or in the folder given by `linked`."""
        return Path(self.linked.get(name, folder)) / name


@dataclass(frozen=True)
class Engines:
    """A version folder whose files have been verified."""

    folder: Path
    manifest: Manifest

    def weights_folder(self, name: str) -> Path:
        """Returns the folder to which the weight file names in a component's graphs are relative."""
        return Path(self.manifest.linked.get(self.component(name).weights[0], self.folder))

    def component(self, name: str) -> ComponentEntry:
        """Returns the entry of a component; raises LtxError if the folder lacks it."""
        entry = self.manifest.components.get(name)
        if entry is None:
            raise LtxError(f"{self.folder} has no {name}", command=self.export_command())
        return entry

    def checksums(self, name: str, precision: str) -> list[str]:
        """Returns the checksums of a component's weights and graph in a precision, if the manifest lists them."""
        entry = self.component(name)
        files = (*entry.weights_of(precision), *filter(None, [entry.graphs.get(precision)]))
        return [self.manifest.files[file].checksum for file in files if file in self.manifest.files]

    def export_command(self) -> str:
        """Returns the command that exports the version again, into the same root of version folders."""
        return export_command(self.manifest.version, self.folder.parent)


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file's size and bytes; above 64 MiB, of its size and 64 evenly spaced pieces of 1 MiB.

    The pieces include the first and the last MiB, so a replaced or truncated checkpoint is noticed at every start
    without reading tens of gigabytes.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            for i in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def describe_files(paths: Mapping[str, Path]) -> dict[str, FileEntry]:
    """Returns size and checksum of each file, by its name in the folder."""
    return {name: FileEntry(path.stat().st_size, checksum(path)) for name, path in sorted(paths.items())}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json to a temporary file, syncs it to disk and renames it."""
    with written_whole(folder / MANIFEST) as temporary, temporary.open("w") as file:
        json.dump({"format": FORMAT, **asdict(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a version folder without checking the files that it lists.

    Raises:
        LtxError: there is no manifest, it is damaged, or this release does not read its format.
    """
    path = folder / MANIFEST
    refuse_pointer(path)
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise LtxError(
            f"{folder} holds no {MANIFEST}: it is missing or its export was interrupted",
            command=export_command(folder.name, folder.parent),
        ) from None
    except (ValueError, RecursionError):
        raise LtxError(f"{path} is not valid JSON", command=export_command(folder.name, folder.parent)) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LtxError(f"{path} has another format than {FORMAT}", command=export_command(folder.name, folder.parent))
    try:
        manifest = _parse(data)
        if (transformer := manifest.components.get("transformer")) is not None:
            _check_rope(manifest.rope, transformer.signature)
        if manifest.tokenizer is None and "text_encoder" in manifest.components:
            raise KeyError("tokenizer")
        names = {*filter(None, [manifest.tokenizer])}
        for entry in manifest.components.values():
            if not entry.weights:
                raise KeyError(f"weights of {entry.signature.name}")
            names |= entry.files()
        for name in names:
            _refuse_outside(name)
            manifest.files[name]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise LtxError(f"{path} is damaged ({error})", command=export_command(folder.name, folder.parent)) from None
    return manifest


def _refuse_outside(name: str) -> None:
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError(f"{name} is outside the folder")


def _parse(data: dict[str, Any]) -> Manifest:
    if not isinstance(data["causal_positions"], bool):
        raise TypeError("causal_positions is not true or false")
    return Manifest(
        version=data["version"],
        causal_positions=data["causal_positions"],
        schedule=Schedule(**data["schedule"]),
        rope=_parse_rope(data["rope"]),
        tokenizer=data["tokenizer"],
        components={name: _parse_component(entry) for name, entry in data["components"].items()},
        files={name: FileEntry(**entry) for name, entry in data["files"].items()},
        linked={str(name): str(folder) for name, folder in data["linked"].items()},
        loras=tuple(data["loras"]),
        allowed_sigmas=tuple(float(sigma) for sigma in data["allowed_sigmas"]),
    )


def _parse_component(entry: dict[str, Any]) -> ComponentEntry:
    def ports(side: str) -> tuple[Port, ...]:
        return tuple(Port(p["name"], tuple(p["axes"]), p["dtype"]) for p in entry["signature"][side])

    signature = Component(entry["signature"]["name"], ports("inputs"), ports("outputs"))
    parity = entry["parity"]
    if parity is not None:
        parity = Parity(tuple(parity["relative_l2"]), tuple(parity["sizes"]), parity["weights"])
    preview = entry.get("preview")  # missing in folders of earlier releases
    if preview is not None:
        preview = _parse_preview(preview)
    return ComponentEntry(
        signature,
        tuple(entry["weights"]),
        entry["graphs"],
        parity,
        entry["recorded"],
        preview,
        int(entry["parameters"]),
        {name: Quantized(tuple(graph["weights"]), float(graph["error"])) for name, graph in entry["quantized"].items()},
    )


def _parse_rope(entry: dict[str, Any]) -> Rope:
    seconds, row, column = map(float, entry["max_position"])
    return Rope(tuple(map(float, entry["frequencies"])), (seconds, row, column))


def _check_rope(rope: Rope, transformer: Component) -> None:
    """Raises ValueError unless the frequencies of all three axes fill the transformer's width up to a remainder."""
    half, rotated = transformer.input("cosines").axes[-1], 3 * len(rope.frequencies)
    if not (isinstance(half, int) and 0 < rotated <= half < rotated + 3):
        raise ValueError(f"rope has {len(rope.frequencies)} frequencies for a width of {half}")
    if not all(0 < value < inf for value in (*rope.frequencies, *rope.max_position)):
        raise ValueError("rope has numbers that are not positive")


def _parse_preview(entry: dict[str, Any]) -> Preview:
    red, green, blue = (tuple(map(float, row)) for row in entry["weights"])
    if not len(red) == len(green) == len(blue):
        raise ValueError("preview has rows that differ in length")
    bias = tuple(map(float, entry["bias"]))
    if len(bias) != len((red, green, blue)):
        raise ValueError("preview has no bias for each colour")
    return Preview((red, green, blue), bias)


def open_engines(folder: Path) -> Engines:
    """Reads the manifest, and verifies size and checksum of every file that it lists.

    Raises:
        LtxError: the folder is incomplete, or a file is missing or has changed.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = manifest.place(folder, name)
        if not path.is_file() and name in manifest.linked:
            raise LtxError(
                f"{path} is gone, and {folder} only links to it",
                "put it back",
                export_command(manifest.version, folder.parent),
            )
        if not path.is_file():
            raise LtxError(f"{path} is missing", command=export_command(manifest.version, folder.parent))
        refuse_pointer(path)
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise LtxError(
                f"{path} has {size} bytes instead of {entry.size_bytes}",
                command=export_command(manifest.version, folder.parent),
            )
        if checksum(path) != entry.checksum:
            raise LtxError(
                f"{path} has changed since the export", command=export_command(manifest.version, folder.parent)
            )
    return Engines(folder, manifest)


def find_folder(engines: Path, version: str | None) -> Path:
    """Returns the version folder selected by `--engines` (a version folder, or a root of several) and `--version`.

    Raises:
        LtxError: there is no such folder, it has another version, or there are several and no version was named.
    """
    if (engines / MANIFEST).exists() or any(engines.glob("*.onnx")):
        folder_version = read_manifest(engines).version
        if version not in (None, folder_version):
            raise LtxError(f"{engines} holds version {folder_version}, not {version}", "leave --version out")
        return engines
    if version is not None:
        if not (engines / version).is_dir():
            versions = ", ".join(_versions_in(engines)) or "none"
            raise LtxError(
                f"no engines for {version} in {engines} (found: {versions})",
                fetch_advice(version),
                export_command(version, engines),
            )
        return engines / version
    names = _versions_in(engines)
    if len(names) == 1:
        return engines / names[0]
    if names:
        raise LtxError(f"{engines} holds several versions", f"choose one with --version: {', '.join(names)}")
    if not engines.is_dir():
        if engines == engines_folder(None):
            problem = f"there are no exported versions: neither ./engines nor {engines} is a folder"
            raise no_versions(problem, "add --version and a release to see how to get it")
        raise no_versions(f"{engines} is not a folder", "check the path")
    raise no_versions(f"{engines} holds no complete version folder")


def _versions_in(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob(f"[!.]*/{MANIFEST}"))
