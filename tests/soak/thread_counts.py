"""Runs networks at the width of a real release with several numbers of threads, and says how far results differ.

    python tests/soak/thread_counts.py [VERSION_FOLDER]

Without a folder, a release of two layers is exported for it (2.5 GB; see samples/wide_release.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from samples.shared import FOLDER as SHARED
from soak.equal_bytes import backends_of

from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import Session, find, open_session
from ltx_runtime.spec.components import Component

THREADS = (1, 2, 3, 16, 32)
# 9 frames of 64x96, and 25 frames of 256x384; 5 and 128 tokens of text.
SIZES = (
    {"batch": 2, "tokens": 12, "timesteps": 1, "text_tokens": 5, "frames": 2, "rows": 2, "columns": 3},
    {"batch": 2, "tokens": 384, "timesteps": 1, "text_tokens": 128, "frames": 2, "rows": 4, "columns": 6},
)
NETWORKS = ("text_encoder", "transformer", "vae_decoder")


def feeds_of(component: Component, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Returns inputs of a component: normal numbers, token ids, and masks that keep every token."""
    random, feeds = np.random.RandomState(0), {}
    for port in component.inputs:
        shape = port.shape(sizes)
        if port.dtype == "int64":
            feeds[port.name] = np.ones(shape, np.int64) if "mask" in port.name else random.randint(3, 300, shape)
        elif port.name == "skip_mask":
            feeds[port.name] = np.ones(shape, np.float32)
        else:
            feeds[port.name] = random.standard_normal(shape).astype(np.float32)
    return feeds


def alone(component: Component, feeds: Mapping[str, NDArray[Any]], session: Session) -> NDArray[Any]:
    """Returns the output for every sample of a batch, computed one after another as with --low-memory."""
    batched = {port.name: port.axes.index("batch") for port in component.inputs if "batch" in port.axes}
    (output,) = component.outputs
    rows = []
    for index in range(2):
        one = {name: array.take([index], batched[name]) if name in batched else array for name, array in feeds.items()}
        rows.append(session.run(one)[output.name])
    return np.concatenate(rows)


def distances(engines: Engines, name: str, backend: str, sizes: Mapping[str, int]) -> dict[str, float]:
    """Returns the relative L2 of a network's output to that with two threads, by what differs."""
    component: Any = engines.component(name).signature
    if name == "vae_decoder":
        sizes = {**sizes, "batch": 1}
    feeds, outputs = feeds_of(component, sizes), {}
    for threads in THREADS:
        with open_session(replace(find(engines, component.name, backend), threads=threads)) as session:
            (outputs[f"{threads} threads"],) = session.run(feeds).values()
            if threads == 2 and name == "transformer":
                outputs["one by one"] = alone(component, feeds, session)
    usual = outputs["2 threads"]
    return {what: float(np.linalg.norm(other - usual) / np.linalg.norm(usual)) for what, other in outputs.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for every network, backend and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path, nargs="?")
    typed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault(SHARED, folder)
        if typed.engines is None:
            from samples.wide_release import write_wide_release

            typed.engines = write_wide_release(Path(folder))
        engines = open_engines(typed.engines)
        for backend in backends_of(typed.engines):
            for name in NETWORKS:
                for sizes in SIZES:
                    apart = distances(engines, name, backend, sizes)
                    told = ", ".join(f"{what} {distance:.1e}" for what, distance in apart.items() if distance)
                    size = "small" if sizes is SIZES[0] else "usual"
                    sys.stdout.write(f"{backend}, {name}, {size}: {told or 'all the same bytes'}\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
