"""What an inspection tells, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]

KINDS = {"transformer": "transformer", "vae": "VAE", "text_encoder": "T5 text encoder", "upsampler": "upscaler"}


@dataclass(frozen=True)
class File:
    """A file of weights or the shards of one, its folder's variants, names that belong to nothing, why it is unread."""

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
    """Everything told about a path: the releases it may be and why these, and what an export needs beside it."""

    path: str
    kind: str
    versions: list[str]
    reasons: list[str]
    files: list[File]
    engines: Facts
    missing: list[str]
    memory: Facts
