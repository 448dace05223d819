"""Seed -> noise: every random draw of a run, asked for by its key (docs/noise.md lists them).

Four ways to the same standard normals: our own, which depends on seed and key alone; those of the official code and
of diffusers, which depend on the order of the draws as well; and a file of recorded draws.
Knows nothing of what noise is mixed into.
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

# What a key is about -> the stream of the official code it is drawn from.
_STREAMS = {
    "initial": "generator",
    "keyframe": "generator",
    "image": "generator",
    "posterior": "global",
    "step": "global",
    "decode": "global",
    "noise": "global",
}
_TOKENS_IN_MEMORY = (0, 2, 3, 4, 1)  # (B, C, F, H, W) as a view of tokens: the channels are innermost


def check_seed(seed: int) -> None:
    """Raises LtxError unless the seed is in 0 .. 2**64-1."""
    if not 0 <= seed < 2**SEED_BITS:
        raise LtxError(f"seed must be from 0 to 2^{SEED_BITS}-1; got {seed}", "use a seed in that range")


class Noise(Protocol):
    """Where a run takes its noise from."""

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The standard normals called `key`, float32. A key is drawn once, in the order of the run."""
        ...


class SeededNoise:
    """The same numbers on every machine, whatever was drawn before: each key has a stream of its own.

    Numpy's compatibility policy has frozen the streams of RandomState.
    """

    def __init__(self, seed: int) -> None:
        """Raises LtxError if the seed is not in 0 .. 2**64-1."""
        check_seed(seed)
        self._seed = seed

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        state = np.random.RandomState([self._seed & 0xFFFFFFFF, self._seed >> 32, zlib.crc32(key.encode())])
        return state.standard_normal(shape).astype(np.float32)


class TorchNoise:
    """What the official pipeline draws on a CPU in float32 if torch's global stream was seeded just before it."""

    def __init__(self, seed: int) -> None:
        """Raises LtxError if the seed is not in 0 .. 2**64-1."""
        check_seed(seed)
        self._streams = {name: TorchGenerator(seed) for name in ("generator", "global")}

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        about = _about(key)
        stream = self._streams[_STREAMS[about]]
        if about == "initial":  # drawn as tokens
            batch, channels, *cells = shape
            tokens = stream.normals((batch, math.prod(cells), channels))
            return np.asarray(np.moveaxis(tokens.reshape(batch, *cells, channels), -1, 1), order="C")
        if about == "decode":  # drawn into a view of tokens
            return stream.normals(shape, _TOKENS_IN_MEMORY)
        return _maps(stream, shape) if about == "noise" else stream.normals(shape)


class DiffusersNoise:
    """What the pipelines of diffusers draw on a CPU in float32 from one stream."""

    def __init__(self, seed: int) -> None:
        """Raises LtxError if the seed is not in 0 .. 2**64-1."""
        check_seed(seed)
        self._stream = TorchGenerator(seed)

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return _maps(self._stream, shape) if _about(key) == "noise" else self._stream.normals(shape)


class FileNoise:
    """Draws that lie in a safetensors file under their keys, as `RecordingNoise` saves them."""

    def __init__(self, path: Path) -> None:
        """Raises LtxError if the file cannot be read, or holds anything but finite draws."""
        names = names_in(path)
        strange = [name for name in names if _about_or_none(name) is None]
        if strange or not names:
            held = ", ".join(strange[:3]) or "nothing"
            raise LtxError(f"{path} holds {held}, which no run draws", "give a file that --save-noise wrote")
        for name in names:  # one at a time: all of a long run's take gigabytes
            read_tensors(path, (name,))
        self._path = path

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Raises LtxError if the file lacks the key, or holds another shape or no floats under it."""
        found = read_tensors(self._path, (), (key,)).get(key)
        wanted = f"this run draws {key} {shape}"
        if found is None:
            raise LtxError(f"{self._path} has no noise {key}; {wanted}", "record noise with the same settings")
        if found.shape != shape or found.dtype != np.float32:
            held = f"{key} {found.shape} of {found.dtype}"
            raise LtxError(f"{self._path} holds {held}; {wanted} of float32", "record noise with the same settings")
        return found


class GivenNoise:
    """Some draws that are there already; the rest is drawn by another, which never hears of the given ones."""

    def __init__(self, noise: Noise, given: Mapping[str, NDArray[np.float32]]) -> None:
        """`given`: draws by key."""
        self._noise = noise
        self._given = given

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Raises ValueError if what is given under the key has another shape."""
        if key not in self._given:
            return self._noise.draw(key, shape)
        if self._given[key].shape != shape:
            raise ValueError(f"{key} is given as {self._given[key].shape}, and drawn as {shape}")
        return self._given[key]


class RecordingNoise:
    """Hands on the draws of another and keeps them."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._drawn: dict[str, NDArray[np.float32]] = {}

    def draw(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Raises ValueError if the key was drawn before: a file has one place for it."""
        if key in self._drawn:
            raise ValueError(f"{key} was drawn before")
        self._drawn[key] = self._noise.draw(key, shape)
        return self._drawn[key]

    def save(self, path: Path) -> None:
        """Writes the file that `FileNoise` reads. Raises LtxError if the place cannot be written."""
        write_tensors(path, self._drawn)


RNGS: dict[str, Callable[[int], Noise]] = {"numpy": SeededNoise, "torch": TorchNoise, "diffusers": DiffusersNoise}


def _about(key: str) -> str:
    """`pass2/image_7` -> image. Raises ValueError for a key that no run draws."""
    about = _about_or_none(key)
    if about is None:
        raise ValueError(f"no draw is called {key}")
    return about


def _about_or_none(key: str) -> str | None:
    about = key.rpartition("/")[2].partition("_")[0]
    return about if about in _STREAMS else None


def _maps(stream: TorchGenerator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(count, h, w), each map a draw of its own."""
    count, *size = shape
    return np.stack([stream.normals(tuple(size)) for _ in range(count)])
