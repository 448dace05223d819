"""Numbers and names that a request or a preset may contain, independent of the version."""

from __future__ import annotations

from ltx_runtime.errors import LtxError
from ltx_runtime.media.prepare import CROP, PAD
from ltx_runtime.spec.presets import STG_MODES, StgMode

_LARGEST_SCALE = 100.0
# Name -> smallest value, largest value, advice for a value outside them.
_LIMITS = {
    "guidance_scale": (1.0, _LARGEST_SCALE, "use 3, or 1 to turn it off"),
    "stg_scale": (0.0, _LARGEST_SCALE, "use 1, or 0 to turn it off"),
    "rescaling_scale": (0.0, 1.0, "use 0.7, or 1 to turn it off"),
    "image_cond_noise_scale": (0.0, 1.0, "use 0.15"),
    "decode_timestep": (0.0, 1.0, "use 0.05"),
    "decode_noise_scale": (0.0, 1.0, "use 0.025"),
    "tone_map_compression_ratio": (0.0, 1.0, "use 0.6, or 0 for none"),
    "strength": (0.0, 1.0, "use 0.6"),
    "from_sigma": (0.0, 1.0, "use 0 for all steps"),
    "downscale_factor": (0.1, 1.0, "use 0.6666666"),
}
# How images and clips of another shape become that of the video, or the video becomes theirs.
FROM_IMAGE = "size-from-image"
FITS = (CROP, PAD, FROM_IMAGE)
_RESIDUAL = "stg_r"
_STG_NAMES: dict[str, StgMode] = {
    "stg_av": "attention_values",
    "stg_as": "attention_skip",
    "stg_t": "transformer_block",
    **{mode: mode for mode in STG_MODES},
}


def check_number(name: str, value: float | None, said: str | None = None) -> None:
    """Checks a number against the limits of its name.

    Args:
        name: a key of _LIMITS, spelled as in the official files.
        value: the number; None is not checked.
        said: the name for the message; by default `name` with hyphens, as an option is spelled.

    Raises:
        LtxError: the number is too small, too large or NaN.
    """
    least, most, advice = _LIMITS[name]
    if value is not None and not least <= value <= most:
        upper = f" and at most {most:g}" if most == 1 or value > most else ""
        said = said or name.replace("_", "-")
        raise LtxError(f"{said} must be at least {least:g}{upper}; got {value:g}", advice)


def stg_mode_of(name: str) -> StgMode:
    """Returns the part of a layer that STG skips, by its name or by the official code's short name such as stg_av.

    Raises:
        LtxError: the name is unknown, or is the residual mode, which has no effect on this model.
    """
    if name in (_RESIDUAL, "residual"):
        raise LtxError(
            "stg-mode residual does nothing: it skips a connection that LTX-Video's attention does not have",
            f"use one of {', '.join(STG_MODES)}",
        )
    if name not in _STG_NAMES:
        raise LtxError(f"unknown stg-mode {name!r}", f"use one of {', '.join(STG_MODES)}")
    return _STG_NAMES[name]


def check_fit(name: str) -> None:
    """Raises LtxError if there is no such way to fit images and clips into the video."""
    if name not in FITS:
        raise LtxError(f"unknown fit {name!r}", f"use one of {', '.join(FITS)}")
