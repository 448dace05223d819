"""Reads a version folder, and verifies its manifest and every file that it lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError, shown
from ltx_runtime.folder.commands import export_command
from ltx_runtime.folder.manifest import (
    FORMAT,
    MANIFEST,
    ComponentEntry,
    Engines,
    FileEntry,
    Manifest,
    Parity,
    Preview,
    Quantized,
    checksum,
)
from ltx_runtime.folder.values import check_values
from ltx_runtime.replacing.held import opened
from ltx_runtime.spec.components import Component, Port
from ltx_runtime.spec.encodings import Rope
from ltx_runtime.spec.presets import Schedule
from ltx_runtime.spec.signatures import check_signatures
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.trust.listed import (
    MOST_MANIFEST_BYTES,
    MOST_WHOLE_BYTES,
    check_inside,
    check_link,
    check_names,
    ordinary_size,
    read_small,
)
from ltx_runtime.trust.pointers import refuse_pointer


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a version folder without checking the files that it lists.

    Raises:
        LtxError: there is no manifest, it is a link out of the folder or damaged, or this release does not read its
            format.
    """
    path = folder / MANIFEST
    # A folder that was renamed says nothing of its version while its manifest cannot be read.
    known = folder.name in VERSIONS
    command = export_command(folder.name, folder.parent) if known else ""
    again = "" if known else "export the version or get its folder again", command
    check_inside(folder, path)
    content = read_small(path, MOST_MANIFEST_BYTES)
    if content is None:
        raise LtxError(f"{folder} holds no {MANIFEST}: it is missing or its export was interrupted", *again)
    refuse_pointer(path)
    try:
        data: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError):
        raise LtxError(f"{path} is not valid JSON", *again) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LtxError(f"{path} has another format than {FORMAT}", *again)
    try:
        check_values(data)
        manifest = _parse(data)
        check_signatures(entry.signature for entry in manifest.components.values())
        if (transformer := manifest.components.get("transformer")) is not None:
            _check_rope(manifest.rope, transformer.signature)
        if (encoder := manifest.components.get("vae_encoder")) is not None:
            _check_preview(encoder)
        check_names(MANIFEST, manifest.files, manifest.linked)
        _check_files(manifest)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise LtxError(f"{path} is damaged ({error})", *again) from None
    return manifest


def _check_files(manifest: Manifest) -> None:
    """Checks that all files that the components name are listed, that only weights are links, and only they are large.

    All weights of a component lie in one folder. Its other files lie in the version folder, and are read as a whole.

    Raises:
        ValueError: a file is not listed, or a link or a size cannot be.
    """
    if manifest.tokenizer is None and "text_encoder" in manifest.components:
        raise ValueError("there is a text encoder, but no tokenizer")
    in_folder, needed = {*filter(None, [manifest.tokenizer])}, set[str]()
    for entry in manifest.components.values():
        _check_weights(entry, manifest.linked)
        in_folder |= {*entry.graphs.values(), *filter(None, [entry.recorded])}
        needed |= entry.files()
    if unlisted := (needed | in_folder) - manifest.files.keys():
        raise ValueError(f"files does not list {shown(min(unlisted))}")
    for name in in_folder:
        if manifest.files[name].size_bytes > MOST_WHOLE_BYTES:
            raise ValueError(f"{name} has more than {MOST_WHOLE_BYTES} bytes")
        if name in manifest.linked:
            raise ValueError(f"{name} is a link, and only weights can be")


def _check_weights(entry: ComponentEntry, linked: Mapping[str, str]) -> None:
    name = entry.signature.name
    if not entry.weights:
        raise ValueError(f"there are no weights of {name}")
    if len({linked.get(file) for file in entry.weights}) > 1:
        raise ValueError(f"the weights of {name} are in more than one folder")
    for graph in entry.quantized.values():
        if graph.weights != entry.weights and linked.keys() & {*graph.weights}:
            raise ValueError(f"the weights of integers of {name} are links")


def _parse(data: dict[str, Any]) -> Manifest:
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


def _check_preview(encoder: ComponentEntry) -> None:
    """Raises ValueError unless an encoder's preview has a number for each channel of its latents."""
    means_and_deviations = encoder.signature.outputs[0].axes[1]
    assert isinstance(means_and_deviations, int)
    channels = means_and_deviations // 2
    if encoder.preview is not None and len(encoder.preview.weights[0]) != channels:
        raise ValueError(f"preview has {len(encoder.preview.weights[0])} columns for latents of {channels} channels")


def _parse_preview(entry: dict[str, Any]) -> Preview:
    red, green, blue = (tuple(map(float, row)) for row in entry["weights"])
    if not len(red) == len(green) == len(blue):
        raise ValueError("preview has rows that differ in length")
    bias = tuple(map(float, entry["bias"]))
    if len(bias) != len((red, green, blue)):
        raise ValueError("preview has no bias for each colour")
    return Preview((red, green, blue), bias)


def open_engines(folder: Path, *, trust: bool = False) -> Engines:
    """Reads the manifest, and verifies place, size and checksum of every file that it lists.

    Args:
        folder: the version folder.
        trust: whether engines and links in it are used that the user has not made on this machine.

    Raises:
        LtxError: the folder is incomplete, or a file is missing, has changed, or is not inside the folder.
    """
    return opened(folder, lambda folder, held: _verified(Engines(folder, read_manifest(folder), trust, held)))


def _verified(engines: Engines) -> Engines:
    for name, entry in engines.manifest.files.items():
        path = placed_file(engines, name)
        if checksum(path) != entry.checksum:
            raise LtxError(f"{path} has changed since the export", command=engines.export_command())
    return engines


def listed_path(engines: Engines, name: str) -> Path:
    """Returns the path of a listed file, which is not looked at.

    Raises:
        LtxError: it is a symbolic link out of the folder, or linked by the manifest and the user has not made the link.
    """
    path, entry = engines.manifest.place(engines.folder, name), engines.manifest.files[name]
    if name not in engines.manifest.linked:
        check_inside(engines.folder, path)
    elif not engines.trusted:
        check_link(engines.folder, path, entry.size_bytes, entry.checksum)
    return path


def placed_file(engines: Engines, name: str) -> Path:
    """Returns the path of a listed file, of which place, kind and size are verified; it is not opened.

    Raises:
        LtxError: it is missing, is no ordinary file, has another size, or is outside the folder as `listed_path` says.
    """
    path, entry = listed_path(engines, name), engines.manifest.files[name]
    size = ordinary_size(path)
    if size is None and name in engines.manifest.linked:
        gone = f"{path} is gone, and {engines.folder} only links to it"
        raise LtxError(gone, "put it back", engines.export_command())
    if size is None:
        raise LtxError(f"{path} is missing", command=engines.export_command())
    if size != entry.size_bytes:
        refuse_pointer(path)
        raise LtxError(f"{path} has {size} bytes instead of {entry.size_bytes}", command=engines.export_command())
    return path
