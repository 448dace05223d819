"""A release at full width and miniature depth, whose products are as large as those of the real one."""

from dataclasses import replace
from pathlib import Path

from samples.tiny import export, sources_of

from ltx_export.random_weights import write_random_weights
from ltx_runtime.spec.versions import VERSIONS, TextEncoderSize

LAYERS = 2
WIDE = replace(
    VERSIONS["0.9.6-distilled"],
    transformer=replace(VERSIONS["0.9.6-distilled"].transformer, layers=LAYERS),
    text_encoder=TextEncoderSize(layers=1, vocabulary=330),
)


def write_wide_release(folder: Path) -> Path:
    """Exports the release, 2.5 GB, in every precision of a CPU; returns its version folder."""
    write_random_weights(WIDE, folder / "weights")
    target = folder / "engines" / WIDE.name
    export(WIDE, sources_of(WIDE, folder / "weights"), target, ("fp32", "bf16", "q8"))
    return target
