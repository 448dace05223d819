"""Decodes random latents in tiles with a version's VAE decoder on the CPU and prints how much memory that took; with
--compare also the PSNR against an untiled decode, which has to fit in memory. Linux only.

    python benchmarks/tiling.py engines/0.9.8-2b-distilled --height 256 --width 384 --frames 73 --tile 8 - -
    python benchmarks/tiling.py engines/0.9.8-2b-distilled --height 704 --width 1216 --frames 121 --budget 2 --every 21

Memory means private (anonymous) memory above that of the loaded session. Latents have unit variance.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.sessions.onnxruntime_cpu import CpuRunner
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.spec.geometry import Grid, grid_of
from ltx_runtime.spec.versions import find_version
from ltx_runtime.vae.tile_sizes import activation_bytes, peak_bytes, tiling_for
from ltx_runtime.vae.tiling import Tiling, decode_tiled

_INTERVAL_S = 0.01
Array = NDArray[np.float32]


def main() -> None:
    asked = _arguments()
    grid = grid_of(asked.height, asked.width, asked.frames)
    tiling = tiling_for(grid, asked.budget * 1e9) if asked.tile is None else Tiling(*asked.tile, *asked.overlap)
    tiling = tiling or Tiling()
    decode = _each(_decoder(asked.engines, grid, asked.steadiness), asked.every)
    _say(f"{tiling}, expected peak {peak_bytes(grid, tiling) / 1e9:.2f} GB")
    whole = activation_bytes(grid)
    untiled = None
    if asked.compare:
        with _Measured("untiled", whole):
            untiled = decode(slice(0, grid.frames), slice(0, grid.rows), slice(0, grid.columns))
    with _Measured("tiled", peak_bytes(grid, tiling)):
        ratios = [
            np.inf if untiled is None else _psnr(frame, untiled[:, n])
            for n, frame in enumerate(_some(decode_tiled(grid, decode, tiling), asked.first))
        ]
    if untiled is not None:
        _say(
            f"PSNR of {len(ratios)} frames: least {min(ratios):.1f} dB (frame {int(np.argmin(ratios))}), "
            f"median {np.median(ratios):.1f} dB; deviation of the untiled pixels {untiled.std() / 2:.2f} of 0..1"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path, help="a version folder")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--budget", type=float, default=4.0, help="GB; what tiles are chosen for")
    parser.add_argument("--tile", nargs=3, type=_size, help="frames, rows and columns in latents instead; - = all")
    parser.add_argument("--overlap", nargs=2, type=int, default=(4, 4), help="latents in time and in space")
    parser.add_argument("--steadiness", type=float, default=0.0, help="correlation of latents of neighbouring frames")
    parser.add_argument("--first", type=int, help="stop after so many frames, for memory alone")
    parser.add_argument("--every", type=int, default=1, help="decode each N-th window, others are grey: memory alone")
    parser.add_argument("--compare", action="store_true", help="decode untiled too")
    return parser.parse_args()


def _size(given: str) -> int | None:
    return None if given == "-" else int(given)


def _decoder(folder: Path, grid: Grid, steadiness: float) -> Callable[[slice, slice, slice], Array]:
    """Returns a function that decodes windows of random latents with the noise maps of the same place."""
    manifest = read_manifest(folder)
    component = manifest.components["vae_decoder"]
    version = find_version(manifest.version)
    session = CpuRunner(folder / component.graphs["fp32"], folder, arena=False)
    sizes = {"batch": 1, "frames": grid.frames, "rows": grid.rows, "columns": grid.columns}
    random = np.random.RandomState(0)
    feeds = {
        port.name: random.standard_normal(port.shape(sizes)).astype(np.float32) for port in component.signature.inputs
    }
    feeds["latents"] = latents = _steady(feeds["latents"], steadiness)
    if "sinusoid" in feeds:
        feeds["sinusoid"] = sinusoid_of(np.full(1, version.decode_timestep, np.float32))

    def decode(frames: slice, rows: slice, columns: slice) -> Array:
        window = {"latents": np.ascontiguousarray(latents[:, :, frames, rows, columns])}
        for name, values in feeds.items():
            if name.startswith("noise_"):
                scale = values.shape[1] // grid.rows
                down, across = (slice(scale * one.start, scale * one.stop) for one in (rows, columns))
                values = np.ascontiguousarray(values[:, down, across])
            window.setdefault(name, values)
        video: Array = session.run(window, ["video"])["video"][0]
        return video

    return decode


def _each(decode: Callable[[slice, slice, slice], Array], every: int) -> Callable[[slice, slice, slice], Array]:
    """Decodes each window whose number is a multiple of `every`, and returns grey for the others."""
    number = 0

    def window(frames: slice, rows: slice, columns: slice) -> Array:
        nonlocal number
        number += 1
        if number % every == 0:
            return decode(frames, rows, columns)
        size = Grid(frames.stop - frames.start, rows.stop - rows.start, columns.stop - columns.start)
        return np.full((3, size.num_frames, size.height, size.width), 0.5, np.float32)

    return window


def _steady(latents: Array, correlation: float) -> Array:
    """Mixes each latent frame with the previous one, at unit variance."""
    for i in range(1, latents.shape[2]):
        latents[:, :, i] *= np.sqrt(1 - correlation**2)
        latents[:, :, i] += correlation * latents[:, :, i - 1]
    return latents


def _some(frames: Iterator[Array], count: int | None) -> Iterator[Array]:
    for n, frame in enumerate(frames, 1):
        yield frame
        if n == count:
            return


def _psnr(frame: Array, reference: Array) -> float:
    """Returns the PSNR in decibels of pixels clamped to 0..1, as they are shown."""
    shown, wanted = (np.clip(one / 2 + 0.5, 0, 1) for one in (frame, reference))
    error = float(np.square(shown - wanted, dtype=np.float64).mean())
    return float("inf") if error == 0 else -10 * np.log10(error)


class _Measured:
    """Prints the duration of a block and its peak private memory above that at its start."""

    def __init__(self, what: str, expected: int) -> None:
        self._what, self._expected, self._running = what, expected, True

    def __enter__(self) -> None:
        self._base = self._peak = _private_bytes()
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()
        took = time.perf_counter() - self._started
        peak = (self._peak - self._base) / 1e9
        _say(f"{self._what}: peak {peak:.2f} GB (expected {self._expected / 1e9:.2f}), {took:.0f} s")

    def _watch(self) -> None:
        while self._running:
            self._peak = max(self._peak, _private_bytes())
            time.sleep(_INTERVAL_S)


def _private_bytes() -> int:
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(row[1]) << 10 for row in rows if row[0] == "RssAnon:")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
