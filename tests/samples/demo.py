"""The demo version with random weights and with its own, each exported once for all tests that run it."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from samples import shared
from samples.tiny import export, sources_of

from ltx_export.build import ExportOptions
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.layouts import weights_folder
from ltx_runtime.spec.versions import VERSIONS, UpsamplerSize, VaeSize

# With fewer layers and a smaller VAE than the demo's own, since many tests run it, and an upsampler whose norms are
# over all frames: over the few numbers of one small frame, they would make roundings large.
DEMO = replace(
    VERSIONS["demo"],
    transformer=replace(VERSIONS["demo"].transformer, layers=4),
    vae_size=VaeSize(base_channels=4, layers_per_block=1),
    upsampler_size=UpsamplerSize(mid_channels=32, blocks_per_stage=1),
)


@cache
def folder_with_demo() -> Path:
    """Returns a folder with weights, and engines/demo in fp32, which tests must not change."""

    def make(folder: Path) -> None:
        write_random_weights(DEMO, folder / "weights")
        export(DEMO, sources_of(DEMO, folder / "weights"), folder / "engines" / "demo")

    return shared.folder_of("with-demo", make)


@cache
def folder_of_trained_demo() -> Path:
    """Returns a version folder of the demo with its own weights, in fp32, which tests must not change."""
    demo = VERSIONS["demo"]

    def make(folder: Path) -> None:
        export(demo, sources_of(demo, weights_folder(demo)), folder / "demo")

    return shared.folder_of("with-trained-demo", make) / "demo"


@cache
def folder_with_quantized_demo() -> Path:
    """Returns a version folder of the demo with graphs in fp32 and q8, which tests must not change."""

    def make(folder: Path) -> None:
        sources = sources_of(DEMO, folder_with_demo() / "weights")
        export(DEMO, sources, folder / "demo", options=ExportOptions(("fp32", "q8")))

    return shared.folder_of("with-quantized-demo", make) / "demo"
