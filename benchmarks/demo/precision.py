"""Measures what tiles, precisions, GGUF types, STG and the posterior change of the demo's videos.

    python -m benchmarks.demo.precision [--engines engines/demo] [--scenes 12]

Weights that were trained tell what random ones cannot: how much of a picture an approximation costs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.demo.features import psnr, scenes_of, see, sharpness
from benchmarks.demo.gallery import drawn
from ltx_export.build import ExportOptions, export_version
from ltx_export.checkpoints.keys import GGUF_T5
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, Sources
from ltx_export.sources.layouts import weights_folder
from ltx_runtime import VERSIONS, Condition, Pipeline
from ltx_runtime.sessions.onnxruntime_cpu import CpuRunner
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.tiling import Tiling, decode_tiled

Floats = NDArray[np.float32]
Made = tuple[Floats, NDArray[np.uint8]]  # latents and frames
SEED = 7
TILINGS = {
    "4x5 cells of 32, overlap 2": Tiling(None, 4, 5, space_overlap=2),
    "6x8 cells, overlap 3": Tiling(None, 6, 8, space_overlap=3),
    "2 latent frames, overlap 1": Tiling(2, None, None, frame_overlap=1),
    "3 latent frames, overlap 1": Tiling(3, None, None, frame_overlap=1),
}
TYPES = ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # those whose blocks of 32 fit rows of 64 and 160


def videos(folder: Path, count: int, backend: str = "cpu", **fields: Any) -> list[Made]:
    """Returns latents and frames of the first prompts."""
    made = []
    with Pipeline(folder, backend=backend, keep_loaded=True) as pipe:
        for _, prompt in scenes_of(count):
            video = pipe(prompt, **({"seed": SEED} | fields))
            latents = video.latents()
            made.append((latents, np.stack(list(video))))
    return made


def compared(label: str, made: list[Made], exact: list[Made], count: int) -> str:
    """Returns a line about how far videos are from exact ones, and how often they show what was asked."""
    errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for (a, _), (b, _) in zip(made, exact, strict=True)]
    ratios = [psnr(a, b) for (_, a), (_, b) in zip(made, exact, strict=True)]
    right = {"colour": 0, "kind": 0}
    for (scene, _), (_, frames) in zip(scenes_of(count), made, strict=True):
        things = see(frames).things
        for name in right:
            right[name] += bool(things) and getattr(things[0], name) == getattr(scene.things[0], name)
    shown = ", ".join(f"{name} {number} of {count}" for name, number in right.items())
    return (
        f"{label}: latents {mean(errors):.1e}, frames {mean(ratios):.1f} dB, least {min(ratios):.1f} dB; {shown}; "
        f"sharpness {mean(sharpness(frames) for _, frames in made):.1f}"
    )


def tiles(folder: Path, made: list[Made]) -> Iterator[str]:
    """Tells how far tiled decodes are from whole ones, in the worst frame."""
    with Pipeline(folder) as pipe:
        manifest, release = pipe.engines.manifest, pipe.version
    runner = CpuRunner(folder / manifest.components["vae_decoder"].graphs["fp32"], folder)
    sinusoid = sinusoid_of(np.full(1, release.decode_timestep, np.float32))

    def decoded(latents: Floats, tiling: Tiling) -> list[NDArray[np.uint8]]:
        def window(frames: slice, rows: slice, columns: slice) -> Floats:
            cut = np.ascontiguousarray(latents[:, :, frames, rows, columns])
            video: Floats = runner.run({"latents": cut, "sinusoid": sinusoid}, ["video"])["video"][0]
            return video

        return [_bytes(frame) for frame in decode_tiled(Grid(*latents.shape[2:]), window, tiling)]

    whole = [decoded(latents, Tiling()) for latents, _ in made]
    for label, tiling in TILINGS.items():
        ratios = [
            [psnr(a, b) for a, b in zip(decoded(latents, tiling), frames, strict=True)]
            for (latents, _), frames in zip(made, whole, strict=True)
        ]
        yield f"tiles of {label}: {mean(map(mean, ratios)):.1f} dB, worst frame {min(map(min, ratios)):.1f} dB"


def precisions(folder: Path, count: int, exact: list[Made]) -> Iterator[str]:
    """Tells what OpenVINO changes, which computes in bf16, and its graph with integers of 8 bits."""
    yield compared("fp32", exact, exact, count)
    for backend in ("openvino", "openvino_q8"):
        yield compared(backend, videos(folder, count, backend), exact, count)


def gguf_types(count: int, exact: list[Made]) -> Iterator[str]:
    """Tells what a text encoder in GGUF's types changes."""
    version, weights = VERSIONS["demo"], weights_folder(VERSIONS["demo"])
    tensors = load_file(weights / TEXT_ENCODER_FILE)
    with tempfile.TemporaryDirectory() as temporary:
        for kind in TYPES:
            t5 = Path(temporary) / f"{kind}.gguf"
            write_gguf(t5, tensors, GGMLQuantizationType[kind])
            upscaler = None if version.upscaler is None else weights / version.upscaler
            sources = Sources(weights / version.checkpoint, t5, weights / TOKENIZER_FILE, upscaler=upscaler)
            export_version(version, sources, Path(temporary) / kind, ExportOptions(("fp32",)), lambda line: None)
            yield compared(f"text encoder in {kind}", videos(Path(temporary) / kind, count), exact, count)


def write_gguf(path: Path, tensors: dict[str, torch.Tensor], kind: GGMLQuantizationType) -> None:
    """Writes a T5 whose matrices are in a type, and whose norms and relative positions are in float32."""
    writer = GGUFWriter(path, "t5encoder")
    for name, tensor in tensors.items():
        name = name.replace("encoder.block.", "enc.blk.")
        for in_gguf, here in GGUF_T5.items():
            name = name.replace(here, in_gguf)
        of = GGMLQuantizationType.F32 if "norm" in name or "rel_b" in name else kind
        writer.add_tensor(name, quantize(tensor.float().numpy(), of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stg(folder: Path, count: int, exact: list[Made]) -> Iterator[str]:
    """Tells what STG and its ways of skipping do."""
    yield compared("without STG", videos(folder, count, stg_scale=0.0), exact, count)
    for mode in ("attention_skip", "transformer_block"):
        yield compared(f"STG by {mode}", videos(folder, count, stg_mode=mode), exact, count)


def posterior(folder: Path, count: int) -> Iterator[str]:
    """Tells how well a first image is kept by the posterior's mean, and by a sample of it."""
    with Pipeline(folder, backend="cpu", keep_loaded=True) as pipe:
        for label, sampled in (("mean", False), ("sample", True)):
            kept = []
            for scene, prompt in scenes_of(count):
                image = drawn(scene)[0]
                fields = {"seed": SEED, "conditions": (Condition(image),), "sample_posterior": sampled}
                kept.append(psnr(next(iter(pipe(prompt, **fields))), image))
            yield f"image by the posterior's {label}: {mean(kept):.2f} dB at frame 0"


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--engines", type=Path, default=Path("engines/demo"))
    parser.add_argument("--scenes", type=int, default=12)
    options = parser.parse_args()
    folder, count = options.engines, options.scenes
    exact = videos(folder, count)
    for lines in (
        tiles(folder, exact),
        precisions(folder, count, exact),
        stg(folder, count, exact),
        posterior(folder, count),
        gguf_types(count, exact),
    ):
        for line in lines:
            print(line, flush=True)


def _bytes(frame: Floats) -> NDArray[np.uint8]:
    return np.rint(255 * np.clip(frame / 2 + 0.5, 0, 1)).astype(np.uint8)


if __name__ == "__main__":
    main()
