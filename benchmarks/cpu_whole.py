"""Times whole programs on this CPU, from the command to the .mp4: `ltx-run` against diffusers, in fresh processes.

    python benchmarks/cpu_whole.py [--size 256x384x25] [--rounds 2]

Both have the same random weights of 0.9.6-distilled, T5-XXL included: 16 GB here, and 8 GB more for diffusers. Sides
alternate. Prompts are new in every round, but for the rows that repeat one, whose embeddings are in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from cpu import DIFFUSERS, heading, say
from peak_memory import sizes_of

from ltx_export.build import ExportOptions, export_version
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, find_sources
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.spec.versions import Version, find_version

ROOT = Path(__file__).parents[1]
VERSION, STEPS = "0.9.6-distilled", 8
PROMPT = "A red fox runs through deep snow at dawn, the camera follows from behind, take {}"
_INTERVAL_S = 0.05
# What users of diffusers and of our library write: a video of each prompt. They print the seconds of each.
_DIFFUSERS = """
import sys, time, av, torch
from diffusers import LTXPipeline
folder, height, width, frames, steps, output, *prompts = sys.argv[1:]
pipe = LTXPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
for prompt in prompts:
    started = time.perf_counter()
    video = pipe(prompt, height=int(height), width=int(width), num_frames=int(frames), num_inference_steps=int(steps),
                 guidance_scale=1.0, generator=torch.Generator().manual_seed(0)).frames[0]
    with av.open(output, "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = int(width), int(height), "yuv420p"
        for image in video:
            file.mux(stream.encode(av.VideoFrame.from_image(image)))
        file.mux(stream.encode())
    print(time.perf_counter() - started, flush=True)
"""
_OURS = """
import sys, time
from ltx_runtime import Pipeline
folder, height, width, frames, output, *prompts = sys.argv[1:]
with Pipeline(folder, keep_loaded=True) as pipe:
    for prompt in prompts:
        started = time.perf_counter()
        video = pipe(prompt, height=int(height), width=int(width), num_frames=int(frames), overwrite=True)
        video.save(output)
        print(time.perf_counter() - started, flush=True)
"""
WHOLE, SECOND = "command to file", "second prompt of a process that stays"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="256x384x25", help="height x width x frames")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/bench-whole"), help="folder for weights and graphs")
    asked = parser.parse_args()
    rows: dict[tuple[str, str], list[Run]] = {}
    say(f"{heading()}\n{VERSION}, {asked.size}, {STEPS} steps, {asked.rounds} rounds\n")
    commands = partial(commands_of, *prepared(find_version(VERSION), asked.work), asked.size.split("x"))
    for number in range(asked.rounds + 1):  # the first round fills the page cache and is not counted
        for (what, name), command in commands(f"{number} {time.time()}").items():
            run = measured(command, asked.work, second=what == SECOND)
            say(f"  {what}, {name}: {run.seconds:.1f} s, {run.private:.2f} GB private, {run.resident:.2f} GB resident")
            if number:
                rows.setdefault((what, name), []).append(run)
    say("\n| what | program | median (least), s | of diffusers | peak private (resident) memory, GB |")
    say("|---|---|---|---|---|")
    for (what, name), runs in rows.items():
        median = statistics.median(run.seconds for run in runs)
        theirs = statistics.median(run.seconds for run in rows[what, DIFFUSERS])
        say(
            f"| {what} | {name} | {median:.1f} ({min(run.seconds for run in runs):.1f}) | {median / theirs:.2f} | "
            f"{max(run.private for run in runs):.2f} ({max(run.resident for run in runs):.2f}) |"
        )


def commands_of(engines: Path, theirs: Path, size: list[str], take: str) -> dict[tuple[str, str], list[str]]:
    """Returns every program's command for a prompt that is new in this round, by what it shows and its name."""
    python, folder = str(Path(sys.executable).absolute()), str(engines.absolute())
    diffusers = [python, "-c", _DIFFUSERS, str(theirs.absolute()), *size, str(STEPS), "theirs.mp4"]
    height, width, frames = size
    run = [str(Path(python).with_name("ltx-run")), "--engines", folder, "--height", height, "--width", width]
    run += ["--num-frames", frames, "--output", "ours.mp4", "--overwrite", PROMPT.format(take)]
    kept = [python, "-c", _OURS, folder, *size, "kept.mp4"]
    return {
        (WHOLE, DIFFUSERS): [*diffusers, PROMPT.format(take)],
        (WHOLE, "ltx-run"): run,
        (WHOLE, "ltx-run, prompt used before"): run,
        (WHOLE, "ltx-run --cpu-mode exact"): [*run, "--cpu-mode", "exact", "--no-cache"],
        (SECOND, DIFFUSERS): [*diffusers, *(PROMPT.format(f"{take} {part}") for part in "ab")],
        (SECOND, "Pipeline(keep_loaded=True)"): [*kept, *(PROMPT.format(f"{take} {part}") for part in "cd")],
        (SECOND, "Pipeline(keep_loaded=True), prompt used before"): [*kept, *[PROMPT.format(f"{take} d")] * 2],
    }


def prepared(version: Version, work: Path) -> tuple[Path, Path]:
    """Makes random weights, a version folder, and the same weights as a folder of diffusers, unless they are there."""
    weights, engines, theirs = work / "weights", work / "engines" / version.name, work / "diffusers"
    if not (weights / TOKENIZER_FILE).exists():
        write_random_weights(version, weights)
    try:
        open_engines(engines)
    except LtxError:
        options = ExportOptions(of_component={"transformer": ("fp32", "bf16", "q8")}, without=("vae_encoder",))
        export_version(version, find_sources(version, weights), engines, options, say)
    if not (theirs / "model_index.json").exists():
        shutil.rmtree(theirs, ignore_errors=True)
        _write_diffusers(version, weights, theirs)
    return engines, theirs


def _write_diffusers(version: Version, weights: Path, folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from diffusers import FlowMatchEulerDiscreteScheduler
    from oracles.networks import diffusers_dit, diffusers_vae, transformers_t5
    from safetensors.torch import load_file
    from samples.layouts import diffusers_transformer_state, diffusers_vae_state
    from transformers import T5TokenizerFast

    state = load_file(weights / version.checkpoint)
    size = version.vae_size
    with torch.device("meta"):
        transformer, t5 = diffusers_dit(version.transformer), transformers_t5(version.text_encoder)
        vae = diffusers_vae(version.vae, size.base_channels, size.latent_channels, size.layers_per_block)
    transformer.load_state_dict(diffusers_transformer_state(state), assign=True)
    vae.load_state_dict(diffusers_vae_state(version.vae, state), assign=True)
    folder.mkdir(parents=True)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    (folder / "text_encoder").mkdir()
    t5.config.dtype = torch.bfloat16
    t5.config.save_pretrained(folder / "text_encoder")
    os.link((weights / TEXT_ENCODER_FILE).resolve(), folder / "text_encoder" / "model.safetensors")
    T5TokenizerFast.from_pretrained(str(weights), vocab_file=str(weights / TOKENIZER_FILE)).save_pretrained(
        folder / "tokenizer"
    )
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    names = {"scheduler": FlowMatchEulerDiscreteScheduler, "transformer": type(transformer), "vae": type(vae)}
    index = {name: ["diffusers", kind.__name__] for name, kind in names.items()}
    index |= {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "LTXPipeline", **index}))


@dataclass(frozen=True)
class Run:
    """Seconds of a run, and its peak private and resident memory in GB."""

    seconds: float
    private: float
    resident: float


def measured(command: list[str], folder: Path, *, second: bool) -> Run:
    """Runs a program in a folder; its seconds are those from start to end, or those of the second video it made."""
    started, private, resident = time.perf_counter(), 0, 0
    environment = {**os.environ, "LTX_CACHE": str(folder.absolute() / "cache")}
    with (folder / "log.txt").open("w") as log, (folder / "out.txt").open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=log, env=environment)
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            sizes = sizes_of(status.read_text())
            private, resident = max(private, sizes.get("RssAnon", 0)), max(resident, sizes.get("VmHWM", 0))
            time.sleep(_INTERVAL_S)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit((folder / "log.txt").read_text()[-2000:])
    if second:
        seconds = float((folder / "out.txt").read_text().split()[-1])
    return Run(seconds, private / 1e9, resident / 1e9)


if __name__ == "__main__":
    main()
