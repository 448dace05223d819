"""Makes the same videos in many ways on every backend of this machine, and says where their bytes differ.

    python tests/soak/equal_bytes.py engines/demo [--backend cpu]

Ends with exit code 1 if a way that docs/reproducibility.md promises to make the same bytes has made others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf, log10
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from samples.clips import noisy, save_clip, save_image
from samples.loras import shapes_of, write_lora
from soak.ways import Case, Circumstances, Result, Way, by_command, by_library, by_server, in_batch

from ltx_runtime import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import BACKENDS, find
from ltx_runtime.tensors import names_in, read_tensors

TEXT = {"prompt": "A red fox", "seed": 7, "height": 128, "width": 192, "num_frames": 17}
GUIDED = {"negative_prompt": "blurry", "guidance_scale": 3, "stg_scale": 1, "skip_blocks": [1]}
WITHOUT_LORAS = ("openvino_int8", "openvino_q8")  # into whose integers none can be merged
FORMATS = (".mp4", ".webm", ".gif", ".png")


def around(*options: str, **more: Any) -> Way:
    return by_command(Circumstances(options, **more))


def with_variables(**variables: str) -> Way:
    return by_command(Circumstances(environment=variables))


def after(first: Mapping[str, Any], way: Way) -> Way:
    """Returns a way that first makes another video, which fills the cache."""

    def make(case: Case, folder: Path) -> Result:
        by_command(Circumstances(name="first"))(replace(case, wishes={**case.wishes, **first}), folder)
        return way(case, folder)

    return make


# What must not change a bit on any backend.
SAME: dict[str, Way] = {
    "another process": around(),
    "without a cache": with_variables(LTX_CACHE=""),
    "a warm cache": after({}, around()),
    "a cache with the prompt alone": after({"guidance_scale": 1}, around()),
    "another locale": with_variables(LC_ALL="tr_TR.UTF-8", LANG="tr_TR.UTF-8"),
    "another time zone": with_variables(TZ="Asia/Kolkata"),
    "other hashes": with_variables(PYTHONHASHSEED="1"),
    "three threads for OpenMP": with_variables(OMP_NUM_THREADS="3"),
    "another folder": around(elsewhere=True),
    "another mask": around(mask="077"),
    "another name": around(name="Füchse 12:30"),
    "more memory": around("--memory", "20"),
    "the library": by_library(),
    "kept loaded, the second time": by_library(2, keep_loaded=True),
    "a limit to what is kept loaded": by_library(2, keep_loaded=0.001),
    "with previews": by_library(previews=True),
    "resumed after a step": by_library(interrupted_at=2),
    "resumed in the second pass": by_library(interrupted_at=9),
    "in a batch": in_batch,
}
# What may change the order of a sum.
OTHER_SUMS: dict[str, Way] = {
    "one thread": around("--threads", "1"),
    "two threads": around("--threads", "2"),
    "three threads": around("--threads", "3"),
    "sixteen threads": around("--threads", "16"),
    "one core": around(cores="0"),
    "--low-memory": around("--low-memory"),
}


def distance(one: Result, other: Result) -> str:
    """Returns how far two results are apart: relative L2 of the last latents, and PSNR of the frames."""
    told = []
    if one.latents is not None and other.latents is not None:
        name = sorted(names_in(one.latents))[-1]
        first, second = (read_tensors(path, (name,))[name] for path in (one.latents, other.latents))
        told.append(f"latents {float(np.linalg.norm(first - second) / np.linalg.norm(first)):.1e}")
    squares = float(((one.frames().astype(float) - other.frames()) ** 2).mean())
    told.append(f"frames {inf if squares == 0 else 10 * log10(255**2 / squares):.1f} dB")
    return ", ".join(told)


def is_same(one: Result, other: Result) -> bool:
    """Returns whether files and latents are the same byte for byte; of what a server made, with a record, frames."""
    if one.latents is not None and other.latents is not None and one.latents.read_bytes() != other.latents.read_bytes():
        return False
    return one.digest() == other.digest() or (other.latents is None and np.array_equal(one.frames(), other.frames()))


def compared(case: Case, ways: Mapping[str, Way], folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the name of each way, and how far its video is from that of the first process; empty for not at all."""
    results = []
    for number, way in enumerate((by_command(), *ways.values())):
        place = folder / str(number)
        place.mkdir(parents=True)
        results.append(way(case, place))
        if number:
            yield [*ways][number - 1], "" if is_same(results[0], results[-1]) else distance(results[0], results[-1])


def backends_of(engines: Path) -> list[str]:
    """Returns the backends that can run the transformer on the CPU of this machine."""
    names = []
    for name, backend in BACKENDS.items():
        if backend.on_cpu:
            try:
                found = find(open_engines(engines), "transformer", name)
            except LtxError:
                continue
            names += [name] if found.precision == backend.precisions[0] else []
    return names


def cases_of(engines: Path, folder: Path, backend: str) -> dict[str, Case]:
    """Returns the videos that are made in all ways."""
    image = save_image(folder / "image.png", noisy(80, 120))
    clip = save_clip(folder / "clip.mp4", [noisy(64, 96, seed) for seed in range(9)])
    lora = write_lora(folder / "lora.safetensors", shapes_of(engines))
    loras = {} if backend in WITHOUT_LORAS else {"loras": [{"file": str(lora), "scale": 1.0}]}
    conditions = [
        {"media": str(image), "frame": 0, "strength": 1.0},
        {"media": str(clip), "frame": 8, "strength": 0.7},
    ]
    return {
        "text": Case(engines, TEXT, backend),
        f"guided, with an image, a clip{' and a LoRA' if loras else ''}": Case(
            engines, {**TEXT, **GUIDED, "conditions": conditions, **loras}, backend
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for every case, backend and way whose bytes differ, and at the end how many were the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--backend", action="append")
    typed = parser.parse_args(arguments)
    engines, broken = typed.engines.absolute(), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = [
            (f"{backend}, {name}", case, ways, ways is SAME)
            for backend in typed.backend or backends_of(engines)
            for name, case in cases_of(engines, folder, backend).items()
            for ways in (SAME, OTHER_SUMS)
        ]
        for suffix in FORMATS:
            of_format = {"one core": around(cores="0"), **({"the server": by_server} if suffix == ".mp4" else {})}
            rows.append((f"cpu, text, {suffix}", Case(engines, TEXT, "cpu", suffix), of_format, True))
        for number, (name, case, ways, promised) in enumerate(rows):
            same, made = 0, 0
            for way, apart in compared(case, ways, folder / f"case{number}"):
                made, same = made + 1, same + (not apart)
                broken += promised and bool(apart)
                if apart:
                    sys.stdout.write(f"{name}: {way}: {apart}\n")
            sys.stdout.write(f"{name}: {same} of {made} ways made the same bytes\n")
            sys.stdout.flush()
    raise SystemExit(broken > 0)


if __name__ == "__main__":
    main()
