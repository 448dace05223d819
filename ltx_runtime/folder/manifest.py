"""Reads, writes and verifies engines/<version>/manifest.json, the contract between exporter and runtime.

The manifest is written last and atomically, so its presence proves that the folder is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import written_whole
from ltx_runtime.folder.commands import export_command
from ltx_runtime.folder.values import check_values
from ltx_runtime.replacing.held import UNHELD, Held
from ltx_runtime.spec.components import Component
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
    """A version folder whose files have been verified.

    Attributes:
        folder: the folder.
        manifest: its manifest.
        trusted: whether engines and links in it are used that the user has not made on this machine.
        held: keeps the folder whole until it is released or forgotten.
    """

    folder: Path
    manifest: Manifest
    trusted: bool = False
    held: Held = field(default=UNHELD, compare=False, repr=False)

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

    def weight_sizes(self, name: str, precision: str) -> dict[str, int]:
        """Returns the size in bytes of each weight file of one graph that the manifest lists, by name."""
        listed = self.manifest.files
        names = self.component(name).weights_of(precision)
        return {file: listed[file].size_bytes for file in names if file in listed}

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


def manifest_text(manifest: Manifest) -> str:
    """Returns the content of manifest.json.

    Raises:
        LtxError: `read_manifest` would not read it, for example since the name of a linked folder has a line break.
    """
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1)
    try:
        check_values(json.loads(text))
    except ValueError as error:
        raise LtxError(f"no {MANIFEST} can have this: {error}", "rename the file or folder of this name") from None
    return text


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json to a temporary file, syncs it to disk and renames it; see `manifest_text`."""
    text = manifest_text(manifest)
    with written_whole(folder / MANIFEST) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
