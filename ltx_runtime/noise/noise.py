"""Sources of noise: every random draw of a run is requested by its key (docs/noise.md lists the keys).

There are four sources of standard normals: this project's own, which depends on seed and key only; those that repeat
the draws of the official code or of diffusers, which also depend on the order of the draws; and a file of recorded
draws. This module does not know what the noise is added to.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.noise.torch_random import TorchGenerator
from ltx_runtime.tensors import names_in, read_tensors, write_tensors

SEED_BITS = 64

# Kind of a draw, as `_kind_of` returns it -> the random generator that the official code uses for it.
_STREAMS = {
    "initial": "generator",
    "keyframe": "generator",
    "image": "generator",
    "posterior": "global",
    "step": "global",
    "decode": "global",
    "noise": "global",
}
_TOKENS_IN_MEMORY = (0, 2, 3, 4, 1)  # axes of (B, C, F, H, W) in the memory order of tokens: channels are innermost


def check_seed(seed: int) -> None:
    """Raises LtxError unless the seed is in 0 .. 2**64-1."""
    if not 0 <= seed < 2**SEED_BITS:
        raise LtxError(f"seed must be from 0 to 2^{SEED_BITS}-1; got {seed}", "use a seed in that range")


class Noise(Protocol):
    """A source of the noise of a run."""

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns the float32 standard normals of `key`. Each key is drawn once, in the order of the run."""
        ...


class SeededNoise:
    """Noise that is equal on all machines and independent of earlier draws, since each key has its own stream.

    NumPy's compatibility policy has frozen the streams of RandomState.
    """

    def __init__(self, seed: int) -> None:
        """Raises LtxError if the seed is not in 0 .. 2**64-1."""
        check_seed(seed)
        self._seed = seed

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        state = np.random.RandomState([self._seed & 0xFFFFFFFF, self._seed >> 32, zlib.crc32(key.encode())])
        return state.standard_normal(shape).astype(np.float32)


class TorchNoise:
    """Noise that the official pipeline draws in float32 on a CPU, if torch's global generator was seeded just before.

    The pipeline's own generator has the same seed.
    """

    def __init__(self, seed: int) -> None:
        """Raises LtxError if the seed is not in 0 .. 2**64-1."""
        check_seed(seed)
        self._streams = {name: TorchGenerator(seed) for name in ("generator", "global")}

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        kind = _kind_of(key)
        stream = self._streams[_STREAMS[kind]]
        if kind == "initial":  # the official code draws tokens (B, N, C)
            batch, channels, *cells = shape
            tokens = stream.normals((batch, math.prod(cells), channels))
            return np.asarray(np.moveaxis(tokens.reshape(batch, *cells, channels), -1, 1), order="C")
        if kind == "decode":  # the official code draws into a view of tokens
            return stream.normals(shape, _TOKENS_IN_MEMORY)
        return _draw_maps(stream, shape) if kind == "noise" else stream.normals(shape)


class DiffusersNoise:
    """Noise that the pipelines of diffusers draw in float32 on a CPU from a single generator."""

    def __init__(self, seed: int) -> None:
        """Raises LtxError if the seed is not in 0 .. 2**64-1."""
        check_seed(seed)
        self._stream = TorchGenerator(seed)

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return _draw_maps(self._stream, shape) if _kind_of(key) == "noise" else self._stream.normals(shape)


class FileNoise:
    """Noise from a safetensors file with one tensor per key, as `RecordingNoise` saves it."""

    def __init__(self, path: Path) -> None:
        """Raises LtxError if the file cannot be read, is empty, or holds anything but finite draws of a run."""
        names = names_in(path)
        unknown = [name for name in names if _kind_or_none(name) is None]
        if unknown or not names:
            content = f"tensors that are not draws of a run: {', '.join(unknown[:3])}" if unknown else "no tensors"
            raise LtxError(f"{path} has {content}", "give a file that --save-noise wrote")
        for name in names:  # one at a time: all draws of a long run take gigabytes
            read_tensors(path, (name,))
        self._path = path

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Raises LtxError if the file lacks the key, or its tensor has another shape or is not floating-point."""
        tensor = read_tensors(self._path, (), (key,)).get(key)
        expected = f"this run draws {key} {shape}"
        if tensor is None:
            raise LtxError(f"{self._path} has no noise {key}; {expected}", "record noise with the same settings")
        if tensor.shape != shape or tensor.dtype != np.float32:
            content = f"{key} {tensor.shape} of {tensor.dtype}"
            raise LtxError(
                f"{self._path} holds {content}; {expected} of float32", "record noise with the same settings"
            )
        return tensor


class GivenNoise:
    """Noise with some draws given in advance; another source draws the rest and never sees the given keys."""

    def __init__(self, noise: Noise, given: Mapping[str, NDArray[np.float32]]) -> None:
        """Takes the source of all other draws, and the given draws by key."""
        self._noise = noise
        self._given = given

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Raises ValueError if the given draw of the key has another shape."""
        if key not in self._given:
            return self._noise.draw(key, shape)
        if self._given[key].shape != shape:
            raise ValueError(f"{key} has shape {self._given[key].shape}, but the run draws {shape}")
        return self._given[key]


class RecordingNoise:
    """Noise that passes on the draws of another source and records them."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._drawn: dict[str, NDArray[np.float32]] = {}

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Raises ValueError if the key was drawn before, since a file holds one tensor per key."""
        if key in self._drawn:
            raise ValueError(f"{key} was drawn before")
        self._drawn[key] = self._noise.draw(key, shape)
        return self._drawn[key]

    def save(self, path: Path, *, replace: bool = True) -> Path:
        """Writes the recorded draws to a file for `FileNoise` and returns it, see `write_tensors`.

        Raises:
            LtxError: the path cannot be written.
        """
        return write_tensors(path, self._drawn, replace=replace)


RNGS: dict[str, Callable[[int], Noise]] = {"numpy": SeededNoise, "torch": TorchNoise, "diffusers": DiffusersNoise}


def _kind_of(key: str) -> str:
    """Returns the kind of a draw, `image` for the key `pass2/image_7`. Raises ValueError if no run draws the key."""
    kind = _kind_or_none(key)
    if kind is None:
        raise ValueError(f"unknown draw {key}")
    return kind


def _kind_or_none(key: str) -> str | None:
    kind = key.rpartition("/")[2].partition("_")[0]
    return kind if kind in _STREAMS else None


def _draw_maps(stream: TorchGenerator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns normals of shape (count, h, w), with a separate draw for each map."""
    count, *size = shape
    return np.stack([stream.normals(tuple(size)) for _ in range(count)])
