"""Results of an inspection as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]

KINDS = {"transformer": "transformer", "vae": "VAE", "text_encoder": "T5 text encoder", "upsampler": "upscaler"}


@dataclass(frozen=True)
class File:
    """Results for one weights file, or for the shards of one.

    Attributes:
        path: the file, or the index of the shards.
        kind: format and networks in words, such as "GGUF transformer"; "unknown" or "unreadable" if it is not usable.
        size_bytes: size of the file, or of all shards.
        variants: variants in the component's folder, if the path is one; the results are those of the first.
        header: fields of the file's header that distinguish releases.
        networks: name, number of parameters, dtypes and sizes of each network in the file.
        lora: keys, ranks, alphas and possible releases of a LoRA; empty for another file.
        unknown_names: names of tensors that belong to no known network, or in a LoRA file to no LoRA.
        problem: why the file could not be read, or empty.
    """

    path: str
    kind: str
    size_bytes: int
    variants: list[str]
    header: Facts
    networks: list[Facts]
    lora: Facts
    unknown_names: list[str]
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """Results for a path.

    Attributes:
        kind: what the path is, such as "weights folder" or the kind of a file.
        versions: releases that the weights may belong to.
        reasons: reasons for these releases.
        files: the inspected files.
        engines: contents of a version folder; empty for other paths.
        missing: files that an export lacks, or files of a version folder's manifest that do not exist.
        memory: estimated memory of the networks.
    """

    path: str
    kind: str
    versions: list[str]
    reasons: list[str]
    files: list[File]
    engines: Facts
    missing: list[str]
    memory: Facts
