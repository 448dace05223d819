"""Makes hundreds of demo videos of every kind in one process, and says whether anything grows. Linux only.

    python tests/soak/many_videos.py engines/demo [--videos 500]

The same request must make the same bytes every time. What grows by more than noise from the second fifth of the
videos to the last one ends it with exit code 1; see usage.py for the limits.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from soak.requests import KINDS, REFUSED, Given, drawn, refused
from soak.usage import Usage, grown, growth_of, table_of, usage_of

from ltx_runtime import Pipeline
from ltx_runtime.outputs.plain import request_from_fields

SUFFIXES = (".mp4", ".mp4", ".webm", ".gif", ".png")
REFUSED_SHARE, ITERATED_SHARE, LEFT_SHARE = 0.1, 0.3, 0.1


class Maker:
    """Makes videos with one pipeline, and remembers the bytes of each.

    Args:
        engines: the version folder.
        folder: where inputs and outputs are.
        seed: of the choice of requests.
        options: arguments of Pipeline.
    """

    def __init__(self, engines: Path, folder: Path, seed: int = 0, **options: Any) -> None:
        self.given, self.outputs = Given(folder / "given"), folder / "outputs"
        self.outputs.mkdir()
        self.kinds: Counter[str] = Counter()
        self._random = Random(seed)
        self._pipe = Pipeline(engines, note=lambda line: None, **options)
        self._digests: dict[tuple[str, ...], str] = {}

    def close(self) -> None:
        self._pipe.close()

    def make(self) -> None:
        """Makes one video, or has one refused."""
        random = self._random
        if random.random() < REFUSED_SHARE:
            kind, fields, _ = drawn(self.given, random, REFUSED)
            refused(lambda: self._pipe(request_from_fields(fields, self.given.folder)).save(self.outputs / "no.mp4"))
            self.kinds["refused"] += 1
            return
        kind, fields, preset = drawn(self.given, random, KINDS)
        request = replace(request_from_fields(fields, self.given.folder), preset=preset)
        video, suffix = self._pipe(request, metadata=False), random.choice(SUFFIXES)
        self.kinds[kind] += 1
        if random.random() < LEFT_SHARE:
            for _ in video.steps():
                break
            self.kinds["left"] += 1
        elif random.random() < ITERATED_SHARE:
            frames = hashlib.sha256()
            for frame in video:
                frames.update(frame.tobytes())
            self._compare((kind, "frames", repr(fields)), frames.hexdigest())
        else:
            target = video.save(self.outputs / f"video{suffix}")
            files = sorted(target.iterdir()) if target.is_dir() else [target]
            saved = b"".join(path.read_bytes() for path in files)
            self._compare((kind, suffix, repr(fields)), hashlib.sha256(saved).hexdigest())
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        assert not [*self.outputs.iterdir()], [*self.outputs.iterdir()]

    @property
    def repeated(self) -> int:
        """Number of videos that were made before."""
        return sum(self.kinds.values()) - self.kinds["refused"] - self.kinds["left"] - len(self._digests)

    def _compare(self, key: tuple[str, ...], digest: str) -> None:
        assert self._digests.setdefault(key, digest) == digest, f"other bytes than before: {key}"


def soaked(engines: Path, folder: Path, videos: int, every: int, **options: Any) -> list[tuple[int, Usage]]:
    """Makes videos, and returns what the process held after every so many of them."""
    os.environ["LTX_CACHE"], os.environ["TMPDIR"] = str(folder / "cache"), str(folder / "temporary")
    tempfile.tempdir = None  # to be read again
    (folder / "temporary").mkdir()
    maker, usages, began = Maker(engines, folder, **options), [], time.perf_counter()
    places = (folder / "temporary", folder / "outputs")
    for count in range(1, videos + 1):
        maker.make()
        if count % every == 0:
            gc.collect()
            usages.append((count, usage_of(places=places)))
            sys.stderr.write(f"{count} videos, {time.perf_counter() - began:.0f} s: {usages[-1][1]}\n")
    maker.close()
    sys.stderr.write(f"{dict(maker.kinds)}; {maker.repeated} were made before, with the same bytes\n")
    return usages


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of what the process held, and what has grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--keep-loaded", action="store_true")
    typed = parser.parse_args(arguments)
    options = {"backend": typed.backend, "keep_loaded": typed.keep_loaded}
    with tempfile.TemporaryDirectory() as folder:
        usages = soaked(typed.engines.absolute(), Path(folder), typed.videos, max(1, typed.videos // 50), **options)
    sys.stdout.write(table_of(usages[:: max(1, len(usages) // 10)]) + "\n")
    sys.stdout.write(f"growth: {growth_of(usages)}\n")
    raise SystemExit(", ".join(grown(usages)) or 0)


if __name__ == "__main__":
    main()
