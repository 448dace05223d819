"""Presets that say how a video is sampled, in place of a version's own passes, and the official files of presets.

The files are `configs/*.yaml` of Lightricks/LTX-Video; their fields mean what its `inference.py` and
`pipeline_ltx_video.py` do with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError, explaining, shown
from ltx_runtime.planning.choices import check_number, stg_mode_of
from ltx_runtime.spec.presets import LINEAR_QUADRATIC, SAMPLERS, SHIFTINGS, Guidance, Pass, Schedule

_MAX_BYTES = 1_000_000
_MAX_VALUES = 10_000
_MAX_DEPTH = 4  # nesting: the file, a pass, a list, and a list inside it
_LARGEST_NUMBER = 1e6

# Fields that select files and number formats, which the export has already decided, or that rewrite the prompt.
_IGNORED = (
    *("checkpoint_path", "spatial_upscaler_model_path", "text_encoder_model_name_or_path", "precision"),
    *("prompt_enhancement_words_threshold", "prompt_enhancer_image_caption_model_name_or_path"),
    "prompt_enhancer_llm_model_name_or_path",
)
_OF_PASS = (
    *("num_inference_steps", "timesteps", "skip_initial_inference_steps", "skip_final_inference_steps"),
    *("guidance_timesteps", "guidance_scale", "stg_scale", "rescaling_scale", "skip_block_list", "cfg_star_rescale"),
    *("stochastic_sampling", "tone_map_compression_ratio"),
)
_PASSES = ("first_pass", "second_pass")
_OF_TWO_PASSES = ("downscale_factor", *_PASSES)
_OF_FILE = ("pipeline_type", "sampler", "stg_mode", "decode_timestep", "decode_noise_scale", *_OF_TWO_PASSES)
_TWO_PASSES, _ONE_PASS = "multi-scale", "base"
# None is the checkpoint's own schedule. For every other name, the official code builds a schedule without a shift.
_SAMPLERS = {"from_checkpoint": None, "uniform": Schedule("Uniform"), "linear-quadratic": LINEAR_QUADRATIC}


@dataclass(frozen=True)
class Preset:
    """How a video is sampled, in place of the version's settings; None means the version's default.

    Attributes:
        passes: one pass, or two if the second refines upsampled latents.
        first_pass_scale: height and width of the first of two passes, relative to the video.
        stg_mode: the part of a layer that STG skips: attention_values, attention_skip or transformer_block.
        decode_timestep, decode_noise_scale: noise level passed to the decoder, and how much noise is mixed into the
            latents before decoding.
        schedule: schedule of the passes that have a number of steps instead of a list of sigmas.
    """

    passes: tuple[Pass, ...]
    first_pass_scale: float | None = None
    stg_mode: str | None = None
    decode_timestep: float | None = None
    decode_noise_scale: float | None = None
    schedule: Schedule | None = None


def check_preset(preset: Preset) -> None:
    """Checks everything that can be checked without a version and a size.

    Raises:
        LtxError: there are no passes or more than two, a pass has no guidance, or a number is out of its limits.
    """
    if len(preset.passes) not in (1, 2):
        raise LtxError(f"a preset has one pass or two; got {len(preset.passes)}", "give passes=(Pass(...),)")
    for number, one in enumerate(preset.passes, start=1):
        if not one.guidance:
            raise LtxError(f"pass {number} of the preset has no guidance", "give guidance=(Guidance(),)")
        where = f"of pass {number} of the preset"
        check_number("tone_map_compression_ratio", one.tone_map, f"tone_map {where}")
        for guidance in one.guidance:
            check_number("from_sigma", guidance.from_sigma, f"from_sigma {where}")
            check_number("guidance_scale", guidance.cfg_scale, f"cfg_scale {where}")
            check_number("stg_scale", guidance.stg_scale, f"stg_scale {where}")
            check_number("rescaling_scale", guidance.rescale, f"rescale {where}")
    schedule = preset.schedule or LINEAR_QUADRATIC
    if schedule.sampler not in SAMPLERS or schedule.shifting not in SHIFTINGS:
        raise LtxError(
            f"the preset has the schedule {schedule.sampler!r} with shifting {schedule.shifting!r}",
            f"use {' or '.join(SAMPLERS)}, with shifting SD3 or None",
        )
    check_number("downscale_factor", preset.first_pass_scale, "first_pass_scale of the preset")
    check_number("decode_timestep", preset.decode_timestep, "decode_timestep of the preset")
    check_number("decode_noise_scale", preset.decode_noise_scale, "decode_noise_scale of the preset")


def read_preset(path: Path | str) -> Preset:
    """Reads a preset file in the format of the official `configs/*.yaml`.

    Raises:
        LtxError: the file cannot be read, or has an unknown field or a field whose value cannot be used.
    """
    given = _loaded(Path(path))
    if not isinstance(given, dict):
        raise LtxError(
            f"{path} is not a mapping of fields; got {_shown(given)}", "give a file like the official configs/*.yaml"
        )
    _check_names(given, (*_OF_FILE, *_OF_PASS, *_IGNORED), str(path))
    top = _Fields(str(path), "", {name: value for name, value in given.items() if value is not None})
    stg_mode = top.text("stg_mode")
    return Preset(
        passes=tuple(map(_pass, _levels(top))),
        first_pass_scale=top.number("downscale_factor"),
        stg_mode=None if stg_mode is None else stg_mode_of(stg_mode),
        decode_timestep=top.number("decode_timestep"),
        decode_noise_scale=top.number("decode_noise_scale"),
        schedule=_SAMPLERS[top.one_of("sampler", _SAMPLERS, "from_checkpoint")],
    )


@dataclass(frozen=True)
class _Fields:
    """The fields of a preset file, or of one pass in it, which inherits the file's fields that it does not set itself.

    Attributes:
        file: name of the file, for messages.
        place: prefix of a pass's own fields in messages, such as `first_pass.`; empty for the file itself.
        own: the fields that are set here, by name.
        shared: the fields of the file that a pass inherits; None for the file itself.
    """

    file: str
    place: str
    own: Mapping[str, Any]
    shared: Mapping[str, Any] | None = None

    def get(self, name: str) -> Any:
        """Returns the value of a field, or None if it is not set."""
        value = self.own.get(name)
        return (self.shared or {}).get(name) if value is None else value

    def said(self, name: str) -> str:
        """Returns the field's name for a message, with the file and the pass that sets it."""
        return f"{self.place if name in self.own else ''}{name} of {self.file}"

    def wrong(self, name: str, must: str, value: object, advice: str = "see the official configs/*.yaml") -> LtxError:
        return LtxError(f"{self.said(name)} must be {must}; got {_shown(value)}", advice)

    def missing(self, name: str, advice: str) -> LtxError:
        place = f"{self.place.rstrip('.')} of " if self.place else ""
        return LtxError(f"{place}{self.file} has no {name}", advice)

    def text(self, name: str) -> str | None:
        """Returns a text field in lower case, because the official code ignores case; None if it is not set."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a name", value)
        return None if value is None else value.lower()

    def one_of(self, name: str, names: Collection[str], default: str) -> str:
        value = self.text(name) or default
        if value not in names:
            raise LtxError(f"unknown {self.said(name)}: {value!r}", f"use one of {', '.join(names)}")
        return value

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return bool(value)

    def number(self, name: str) -> float | None:
        """Returns a number within the limits of its name; None if it is not set."""
        value = self.get(name)
        return None if value is None else self._limited(name, value)

    def _limited(self, name: str, value: object) -> float:
        number = self._number(name, value)
        check_number(name, number, self.said(name))
        return number

    def _number(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST_NUMBER:
            raise self.wrong(name, "a number", value)
        return float(value)

    def whole(self, name: str) -> int | None:
        value = self.get(name)
        return None if value is None else self._whole(name, value)

    def _whole(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST_NUMBER:
            raise self.wrong(name, "a whole number of at least 0", value)
        return value

    def levels(self, name: str) -> tuple[float, ...]:
        """Returns noise levels that descend within 1..0; an empty tuple if the field is not set."""
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not value:
            raise self.wrong(name, "a list of numbers from 0 to 1 in descending order", value)
        levels = tuple(self._number(name, one) for one in value)
        falls = all(above > below for above, below in pairwise(levels))
        if not (falls and levels[0] <= 1 and levels[-1] >= 0):
            raise self.wrong(name, "a list of numbers from 0 to 1 in descending order", value)
        return levels

    def per_level(self, name: str, levels: tuple[float, ...]) -> list[float]:
        """Returns a number for each entry of guidance_timesteps, from a list of as many or from one number for all."""
        value = self.get(name)
        if value is None:
            raise self.missing(name, f"add {name}, which every official file has")
        entries = self._entries(name, value, levels) if isinstance(value, list) else [value] * max(1, len(levels))
        return [self._limited(name, one) for one in entries]

    def blocks(self, name: str, levels: tuple[float, ...]) -> list[tuple[int, ...]]:
        """Returns the blocks to skip for each entry of guidance_timesteps, from a list for each or one list for all."""
        value = self.get(name)
        value = [] if value is None else value
        if not isinstance(value, list):
            raise self.wrong(name, "a list of blocks, or a list of such lists", value)
        nested = bool(value) and isinstance(value[0], list)
        entries = self._entries(name, value, levels) if nested else [value] * max(1, len(levels))
        for entry in entries:
            if not isinstance(entry, list):
                raise self.wrong(name, "a list of blocks, or a list of such lists", value)
        return [tuple(self._whole(name, block) for block in entry) for entry in entries]

    def _entries(self, name: str, value: list[Any], levels: tuple[float, ...]) -> list[Any]:
        if not levels:
            raise LtxError(f"{self.said(name)} is a list and needs guidance_timesteps", "add them, or give one number")
        if len(value) != len(levels):
            raise LtxError(
                f"{self.said(name)} has {len(value)} entries for {len(levels)} guidance_timesteps",
                "give the same number of both",
            )
        return value


def _levels(top: _Fields) -> list[_Fields]:
    """Returns the fields of each pass. Raises LtxError if pipeline_type is unknown or the passes do not match it."""
    if top.one_of("pipeline_type", (_TWO_PASSES, _ONE_PASS), _ONE_PASS) == _ONE_PASS:
        for name in _OF_TWO_PASSES:
            if top.get(name) is not None:
                raise LtxError(
                    f"{top.said(name)} needs pipeline_type {_TWO_PASSES}", f"add that, or leave {name} out for one pass"
                )
        return [top]
    passes = []
    for name in _PASSES:
        own = top.get(name)
        if own is None:
            raise top.missing(name, f"add {name}, or use pipeline_type {_ONE_PASS}")
        if not isinstance(own, dict):
            raise top.wrong(name, "a mapping of fields", own)
        _check_names(own, _OF_PASS, f"{name} of {top.file}")
        passes.append(_Fields(top.file, f"{name}.", own, top.own))
    return passes


def _pass(of_pass: _Fields) -> Pass:
    sigmas, steps = of_pass.levels("timesteps"), of_pass.whole("num_inference_steps")
    initial = of_pass.whole("skip_initial_inference_steps") or 0
    final = of_pass.whole("skip_final_inference_steps") or 0
    if sigmas and steps not in (None, len(sigmas)):
        raise LtxError(
            f"{of_pass.said('num_inference_steps')} is {steps} for {len(sigmas)} timesteps", "leave one of them out"
        )
    if sigmas and initial + final:  # the official code silently skips no steps of a list
        raise LtxError(
            f"steps cannot be skipped with a list of timesteps: {of_pass.said('timesteps')}", "shorten the list instead"
        )
    if not sigmas and steps is None:
        raise of_pass.missing("num_inference_steps", "add it, or timesteps")
    return Pass(
        steps=steps or len(sigmas),
        guidance=_guidance(of_pass),
        sigmas=sigmas,
        skip_initial_steps=initial,
        skip_final_steps=final,
        stochastic=of_pass.flag("stochastic_sampling"),
        tone_map=of_pass.number("tone_map_compression_ratio") or 0.0,
    )


def _guidance(of_pass: _Fields) -> tuple[Guidance, ...]:
    """Returns one Guidance per entry of guidance_timesteps; a single one applies to every step.

    A pass without STG gets no blocks to skip: the distilled files list a block that the 2B release does not have.
    """
    levels = of_pass.levels("guidance_timesteps")
    cfg, stg, rescale = (of_pass.per_level(name, levels) for name in ("guidance_scale", "stg_scale", "rescaling_scale"))
    blocks = of_pass.blocks("skip_block_list", levels)
    if not any(stg):
        blocks = [()] * len(blocks)
    star = of_pass.flag("cfg_star_rescale")
    starts = levels if len(levels) > 1 else (0.0,)
    return tuple(
        Guidance(scale, skip_scale, back, skipped, star, start)
        for scale, skip_scale, back, skipped, start in zip(cfg, stg, rescale, blocks, starts, strict=True)
    )


def _check_names(given: Mapping[Any, Any], known: Collection[str], place: str) -> None:
    for name in given:
        if name not in known:
            raise LtxError(f"unknown field {_shown(name)} in {place}", f"use one of {', '.join(known)}")


def _shown(value: object) -> str:
    """Returns a value from a file in words that keep a message short and on one line, whatever the value is."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:  # Python refuses to print the longest
        return "a huge number"
    return shown(value)


def _loaded(path: Path) -> Any:
    """Reads a YAML file as plain data.

    Raises:
        LtxError: the file cannot be read, is not valid YAML, is too large or nested too deeply, or has an alias (by
            which a small file could expand to a huge one) or a tag.
    """
    import yaml  # noqa: PLC0415  (only --preset needs this library)

    with explaining(f"read {path}"), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise LtxError(f"{path} is larger than {_MAX_BYTES / 1e6:g} MB", "give a file like the official configs/*.yaml")
    depth = 0
    try:
        for count, event in enumerate(yaml.parse(data, Loader=yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
                raise LtxError(f"{path} has an alias or a tag, which no preset needs", "write the values out")
            if depth > _MAX_DEPTH or count > _MAX_VALUES:
                raise LtxError(f"{path} has too many values or is nested too deeply", "shorten it")
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise LtxError(f"{path} cannot be read as YAML{line}", "correct it") from None
    except ValueError:  # impossible dates, and numbers of thousands of digits
        raise LtxError(f"{path} has a number or a date that cannot be read", "correct it") from None
