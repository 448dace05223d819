"""Times one step of the transformer and one decode on this CPU: every way to run them here, against diffusers in bf16.

    python benchmarks/cpu.py [--version 0.9.8-2b-distilled] [--size 256x384x25] [--rounds 5] [--compiled] [--plot FILE]

Both sides have the same random weights, which are made on the fly. In every round each side runs once, so that what
else the machine does hits all of them; medians and least times are printed, with the ratio of the medians to diffusers.
Errors are relative L2 to our exact fp32 graphs. With --outliers, four channels of the input of every self-attention and
feed-forward are so many times as large as the others, as trained transformers have them. The int8 graph is calibrated
with prompts on the same weights, which takes a few minutes. Private memory is by how much the process grew when a side
was loaded and ran once, without memory-mapped files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import gpu_reference as reference
import numpy as np
import torch
from gpu_ours import Array, Inputs, inputs_of
from gpu_weights import with_small_text_encoder
from plot import draw

from ltx_export.build import ExportOptions, export_version
from ltx_export.calibration.calibrate import PROMPTS, calibrate
from ltx_export.random_weights import write_random_weights
from ltx_export.recorded import relative_l2
from ltx_export.sources.find import find_sources
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session
from ltx_runtime.sessions.processor import memory_bytes, processor_name
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import grid_of
from ltx_runtime.spec.versions import Version, find_version
from ltx_runtime.weights.checkpoint import open_safetensors

COMPONENTS: tuple[ComponentName, ...] = ("transformer", "vae_decoder")
CALIBRATED_PROMPTS = 4
PARTS, SCALES, OUTLIERS = 6, (1, 4), 4  # parts of a modulation, which of them are scales, and channels with outliers
EXACT, DIFFUSERS = "exact: ONNX Runtime, fp32", "diffusers, bf16"
# Our ways to run a component: name, backend, and the precision of its graph.
OURS = (
    (EXACT, "cpu", "fp32"),
    ("bf16: OpenVINO", "openvino", "bf16"),
    ("q8: OpenVINO", "openvino_q8", "q8"),
    ("int8: OpenVINO, calibrated", "openvino_int8", "int8"),
)


@dataclass
class Side:
    """One way to run a component; `seconds` are those of its timed runs."""

    name: str
    run: Callable[[], Array]
    load_s: float
    first_s: float
    private_bytes: int
    output: Array
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", default="0.9.8-2b-distilled")
    parser.add_argument("--size", default="256x384x25", help="height x width x frames")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="also time diffusers after torch.compile")
    parser.add_argument("--outliers", type=int, default=1, metavar="FACTOR", help="plant channels that are larger")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the times, as a PNG")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder for weights and graphs")
    asked = parser.parse_args()
    version, grid = find_version(asked.version), grid_of(*map(int, asked.size.split("x")))
    engines, checkpoint = folder_of(version, asked.work, asked.outliers)
    say(f"{heading()}\n{version.name}, {asked.size}, {asked.rounds} rounds, outliers {asked.outliers}x")
    say(f"load average {os.getloadavg()[0]:.1f}\n")
    drawn: dict[str, list[tuple[str, float, float]]] = {}
    for component in COMPONENTS:
        with ExitStack() as held:
            inputs = inputs_of(engines, component, version, grid)
            sides = [side for way in OURS for side in ours(*way, engines, component, inputs, held)]
            sides += diffusers_sides(component, version, checkpoint, inputs, asked.compiled)
            for _ in range(asked.rounds):
                for side in sides:
                    side.seconds.append(timed(side.run)[0])
            say("\n".join(table(component, sides)))
            drawn[component] = [(side.name, statistics.median(side.seconds), min(side.seconds)) for side in sides]
        say(f"load average {os.getloadavg()[0]:.1f}\n")
    if asked.plot is not None:
        draw(asked.plot, f"{version.name}, {asked.size}: {heading()}, {date.today()}", drawn, DIFFUSERS)


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def folder_of(version: Version, work: Path, outliers: int) -> tuple[Engines, Path]:
    """Makes random weights and exports them, unless that has been done; returns the version folder and checkpoint."""
    small, work = with_small_text_encoder(version), work if outliers == 1 else work / f"outliers-{outliers}"
    weights, folder = work / "weights" / version.name, work / version.name
    if not (weights / version.checkpoint).exists():
        write_random_weights(small, weights)
        if outliers != 1:
            plant_outliers(weights / version.checkpoint, outliers)
    try:
        open_engines(folder)
    except LtxError:
        options = ExportOptions(
            of_component={"transformer": ("fp32", "bf16", "q8")},
            without=("vae_encoder", "upsampler", "temporal_upsampler"),
        )
        export_version(small, find_sources(small, weights), folder, options, say)
    if "int8" not in open_engines(folder).component("transformer").graphs:
        try:
            calibrate(open_engines(folder), say, prompts=PROMPTS[-CALIBRATED_PROMPTS:])
        except LtxError as error:
            say(f"there is no int8 graph: {error}")
    return open_engines(folder), weights / version.checkpoint


def plant_outliers(checkpoint: Path, factor: int) -> None:
    """Makes the modulation of every block multiply a few channels by a factor, in a file of bf16 weights."""
    for name, tensor in open_safetensors(checkpoint).tensors.items():
        if name.endswith("scale_shift_table") and tensor.shape[0] == PARTS:
            table = np.memmap(checkpoint, "<u2", "r+", tensor.offset, tensor.shape)
            value = torch.tensor(factor - 1.0).to(torch.bfloat16).view(torch.int16).item()
            for scale in SCALES:
                table[scale, :: tensor.shape[1] // OUTLIERS] = value
            table.flush()


def ours(
    name: str,
    backend: str,
    precision: str,
    engines: Engines,
    component: ComponentName,
    inputs: Inputs,
    held: ExitStack,
) -> Iterator[Side]:
    """Yields our side on a backend, if it can run the component here."""
    before, started = private_bytes(), time.perf_counter()
    try:
        found = find(engines, component, backend)
        if found.precision != precision:  # a wider graph, which has a row of its own
            return
        session = held.enter_context(open_session(found))
    except LtxError as error:
        say(f"{name} does not run {component}: {error}")
        return
    load_s, output = time.perf_counter() - started, session.component.outputs[0].name

    def run() -> Array:
        return session.run(inputs.feeds, [output])[output]

    first_s, result = timed(run)
    yield Side(name, run, load_s, first_s, private_bytes() - before, result)


def diffusers_sides(
    component: str, version: Version, checkpoint: Path, inputs: Inputs, compiled: bool
) -> Iterator[Side]:
    """Yields diffusers' model with the same weights, as it is and, if wanted, compiled."""
    before, started = private_bytes(), time.perf_counter()
    model = reference.load(component, version, checkpoint, "cpu", torch.bfloat16)
    load_s, feeds = time.perf_counter() - started, reference.inputs(component, inputs.plain, "cpu", torch.bfloat16)
    yield from _diffusers_side(DIFFUSERS, lambda: reference.run(model, component, feeds), load_s, before)
    if compiled:
        faster = reference.compiled(model, component, "full")
        whole, decoder = (faster, None) if component == "transformer" else (model, faster)
        name = f"{DIFFUSERS}, compiled"
        yield from _diffusers_side(name, lambda: reference.run(whole, component, feeds, decoder), load_s, before)


def _diffusers_side(name: str, forward: Callable[[], torch.Tensor], load_s: float, before: int) -> Iterator[Side]:
    def run() -> Array:
        return np.asarray(forward().float())

    first_s, result = timed(run)
    yield Side(name, run, load_s, first_s, private_bytes() - before, result)


def timed(run: Callable[[], Array]) -> tuple[float, Array]:
    """Returns the seconds of a run, and its result."""
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def private_bytes() -> int:
    """Returns the memory that this process has allocated, without memory-mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def table(component: str, sides: list[Side]) -> Iterator[str]:
    """Yields the lines of a table in Markdown."""
    exact = next(side.output for side in sides if side.name == EXACT)
    eager = statistics.median(next(side.seconds for side in sides if side.name == DIFFUSERS))
    yield f"| {component} | median (least), s | of diffusers | error | load + first run, s | private memory, GB |"
    yield "|---|---|---|---|---|---|"
    for side in sides:
        median = statistics.median(side.seconds)
        yield (
            f"| {side.name} | {median:.2f} ({min(side.seconds):.2f}) | {median / eager:.2f} | "
            f"{relative_l2(side.output, exact):.1e} | {side.load_s:.1f} + {side.first_s:.1f} | "
            f"{side.private_bytes / 1e9:.2f} |"
        )


def heading() -> str:
    """Returns the machine, for the reader of a figure."""
    memory = memory_bytes()[0] / 1e9
    threads = torch.get_num_threads()
    return f"{processor_name()}, {os.cpu_count()} cores, {memory:.0f} GB, torch {torch.__version__}, {threads} threads"


if __name__ == "__main__":
    main()
