"""The fields of a request: what each may be, and how OpenAI's and ours become those of the library's Request.

One table describes them, for the OpenAPI document and for texts of a form. Whether values fit the model is decided by
the library's own plan. A request never names a file of the server, and never a URL: images and clips are uploaded, or
in the request itself as `data:` URLs.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile

from ltx_runtime.errors import shown
from ltx_runtime.outputs.plain import nearest
from ltx_runtime.planning.choices import FITS
from ltx_runtime.spec.geometry import LARGEST, SPATIAL_SCALE
from ltx_runtime.spec.presets import STG_MODES
from ltx_serve.http.answers import MOST_SHOWN, ApiError
from ltx_serve.jobs.folders import INPUT

Schema = dict[str, Any]

_LONGEST_PROMPT = 32_000  # characters, as in OpenAI's API; the model reads the first 256 tokens
_MOST_STEPS = 1000
MOST_INPUTS = 16
_DATA_URL = re.compile(r"data:[a-z0-9.+/-]*(?:;[a-z0-9=.+-]+)*;base64,", re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)

TEXT: Schema = {"type": "string", "maxLength": _LONGEST_PROMPT}
_NUMBER: Schema = {"type": "number"}
_PART: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_SCALE: Schema = {"type": "number", "minimum": 0, "maximum": 100}
_FLAG: Schema = {"type": "boolean"}
_SIDE: Schema = {"type": "integer", "minimum": 1, "maximum": LARGEST}
_MEDIA: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}

# Every field, in the order in which the documentation lists them.
FIELDS: dict[str, Schema] = {
    "prompt": {**TEXT, "minLength": 1, "description": "What the video shows."},
    "model": {"type": "string", "description": "A model of /v1/models; the server's first if left out."},
    "size": {"type": "string", "pattern": r"^\d{1,5}x\d{1,5}$", "description": "Width and height, such as 1216x704."},
    "seconds": {"type": "string", "pattern": r"^\d+(\.\d+)?$", "description": "Length; the nearest that can be made."},
    "input_reference": {**_MEDIA, "description": "An image or clip that the video begins with."},
    "negative_prompt": {**TEXT, "description": "What the video must not show."},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1, "description": "Same seed, same video."},
    "width": {**_SIDE, "description": "Width in pixels, in place of size."},
    "height": {**_SIDE, "description": "Height in pixels, in place of size."},
    "num_frames": {**_SIDE, "description": "Number of frames, in place of seconds."},
    "fps": {**_NUMBER, "minimum": 0.01, "maximum": 10_000, "description": "Frames per second."},
    "pad": {**_FLAG, "description": "Make a slightly larger video and crop it, so that any size can be asked for."},
    "conditions": {"type": "array", "description": "Images and clips that the video shows from a frame on."},
    "video": {**_MEDIA, "description": "A clip to start from instead of noise."},
    "strength": {**_PART, "description": "How much of `video` may change."},
    "fit": {"type": "string", "enum": [*FITS], "description": "How images get the shape of the video."},
    "image_noise_scale": {**_PART, "description": "Noise added to given images at every step."},
    "steps": {"type": "integer", "minimum": 1, "maximum": _MOST_STEPS, "description": "Steps of the first pass."},
    "timesteps": {"type": "array", "items": _NUMBER, "description": "Noise levels of the first pass, high to low."},
    "skip_initial_steps": {"type": "integer", "minimum": 0, "description": "Steps to skip at the start, of `video`."},
    "skip_final_steps": {"type": "integer", "minimum": 0, "description": "Steps to skip at the end."},
    "guidance_scale": {
        **_NUMBER,
        "minimum": 1,
        "maximum": 100,
        "description": "How closely the prompt is followed (CFG); 1 turns it off.",
    },
    "stg_scale": {
        **_NUMBER,
        "minimum": 0,
        "maximum": 100,
        "description": "Strength of spatiotemporal guidance; 0 turns it off.",
    },
    "rescaling_scale": {**_PART, "description": "Rescaling of the prediction after STG; 1 turns it off."},
    "stg_mode": {"type": "string", "enum": [*STG_MODES], "description": "The part of a layer that STG skips."},
    "skip_blocks": {"type": "array", "items": {"type": "integer"}, "description": "Blocks that STG skips."},
    "cfg_star": {**_FLAG, "description": "Scale the negative prediction to match the positive one."},
    "stochastic": {**_FLAG, "description": "Add fresh noise at every step."},
    "single_pass": {**_FLAG, "description": "Use one pass at full size instead of the model's two."},
    "temporal_upscale": {**_FLAG, "description": "Double the frame rate at the end."},
    "decode_timestep": {**_PART, "description": "Noise level that the decoder assumes."},
    "decode_noise_scale": {**_PART, "description": "How much noise is mixed in before decoding."},
    "tone_map": {**_PART, "description": "How strongly large latent values are compressed, 0 to 1."},
}
NAMES = tuple(FIELDS)
# What other programs call a field.
_INSTEAD = {
    "duration": "seconds",
    "image": "input_reference",
    "num_inference_steps": "steps",
    "frame_rate": "fps",
    "resolution": "size",
    "tone_map_compression_ratio": "tone_map",
    "image_cond_noise_scale": "image_noise_scale",
}
_FILES_OF_THE_SERVER = ("loras", "preset")
CONDITION: dict[str, Schema] = {
    "media": {"type": "string"},
    "frame": {"type": "integer"},
    "strength": {"type": "number"},
}


_EXAMPLE = {"prompt": "A red fox runs through deep snow", "seconds": "1", "seed": 7}
_DATA: Schema = {"type": "string", "pattern": "^data:", "description": "The file as data:image/png;base64,..."}


def body_schemas() -> dict[str, Schema]:
    """Returns the schemas of bodies for the OpenAPI document: in JSON and as forms, for a video and for a variation."""
    condition = {
        "type": "object",
        "required": ["media"],
        "properties": {**CONDITION, "media": _DATA},
        "additionalProperties": False,
    }
    in_json: dict[str, Schema] = {
        "seconds": {"anyOf": [FIELDS["seconds"], {"type": "number", "exclusiveMinimum": 0}]},
        "input_reference": {
            "type": "object",
            "required": ["image_url"],
            "properties": {"image_url": _DATA},
            "additionalProperties": False,
        },
        "video": _DATA,
        "conditions": {"type": "array", "items": condition, "maxItems": MOST_INPUTS},
    }
    in_form: dict[str, Schema] = {
        "conditions": {"type": "string", "description": "The conditions in JSON, with names of uploads as media."},
        "conditions[]": {"type": "array", "items": _MEDIA, "description": "Uploads that conditions name."},
    }
    optional = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in (FIELDS | in_json).items()}
    texts = {name: {"anyOf": [schema, {"const": ""}]} for name, schema in (FIELDS | in_form).items()}  # as if left out
    schemas = {
        "CreateVideo": optional | {"prompt": FIELDS["prompt"]},
        "RemixVideo": optional,
        "CreateVideoForm": texts | {"prompt": FIELDS["prompt"]},
        "RemixVideoForm": texts,
    }
    return {
        name: {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "example": _EXAMPLE,
            **({"required": ["prompt"]} if name.startswith("Create") else {}),
        }
        for name, properties in schemas.items()
    }


def body_of(name: str) -> Schema:
    """Returns what the OpenAPI document says of an operation with one of these bodies."""
    kinds = {"application/json": name, "multipart/form-data": f"{name}Form"}
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}} for kind, schema in kinds.items()}
    return {"requestBody": {"required": True, "content": content}}


@dataclass(frozen=True)
class Draft:
    """A request that was read, but not checked.

    Attributes:
        model: the model that was named; None if none was.
        fields: fields of Request by name; None for one that is to have its default. Media are names in `inputs`.
        inputs: content of each image and clip, by the name of ours that its file gets.
        labels: what messages call each image and clip, by the same name.
        sent: names of the fields that the client sent.
    """

    model: str | None
    fields: dict[str, Any]
    inputs: dict[str, UploadFile | bytes]
    labels: dict[str, str]
    sent: frozenset[str]


@dataclass
class _Inputs:
    """The images and clips of a request, which get names of ours one after another."""

    uploads: Mapping[str, UploadFile]  # those that conditions name, by the name that the client gave them
    first: int
    contents: dict[str, UploadFile | bytes] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # those of files, by the name of the upload in each

    def add(self, value: Any, param: str) -> str:
        """Returns the name of the file that an image or clip gets; an upload gets one, however often it is named.

        Args:
            value: an upload, a data: URL, or the name of an upload.
            param: the field that holds it.

        Raises:
            ApiError: it is none of these.
        """
        if isinstance(value, str) and value in self.uploads:
            if value not in self.names:
                self.names[value] = self._keep(self.uploads[value], param)
            return self.names[value]
        content = _decoded(value, param) if isinstance(value, str) else value
        if not isinstance(content, (UploadFile, bytes)):
            raise wrong(param, f"{param} must be a file or a data: URL; got {shown(value)}", "upload the file")
        return self._keep(content, param)

    def _keep(self, content: UploadFile | bytes, param: str) -> str:
        if len(self.contents) >= MOST_INPUTS:
            raise wrong(param, f"a request has at most {MOST_INPUTS} images and clips", "send fewer")
        name = f"{INPUT}{self.first + len(self.contents)}"
        self.contents[name] = content
        file_name = content.filename if isinstance(content, UploadFile) else None
        self.labels[name] = f"{param} {file_name[:MOST_SHOWN]!r}" if file_name else param
        return name

    def check_uploads(self) -> None:
        """Raises the ApiError that answers uploads which nothing names, and which would not be in the video."""
        for name in self.uploads:
            if name not in self.names:
                advice = "name it as the media of a condition, or leave it out"
                raise wrong("conditions", f"no condition names the upload {shown(name)}", advice)


def wrong(param: str | None, problem: str, advice: str = "", code: str = "invalid_value") -> ApiError:
    """Returns the answer to a request of which a field is wrong."""
    return ApiError(400, f"{problem} - {advice}" if advice else problem, code, param)


def draft_of(values: Mapping[str, Any], uploads: Mapping[str, UploadFile], first: int = 1) -> Draft:
    """Returns what a request asks for, in fields of the library.

    Args:
        values: fields of FIELDS by name, as JSON has them; uploads in the place of media.
        uploads: files that `conditions` can name, by the names that the client gave them.
        first: number of the first image or clip, for the names of their files.

    Raises:
        ApiError: a field is unknown, or has a value that cannot be read.
    """
    fields = {name: value for name, value in values.items() if name in FIELDS or _refused(name)}
    sent = frozenset(name for name, value in fields.items() if value is not None)
    model, inputs = fields.pop("model", None), _Inputs(uploads, first)
    if not isinstance(model, (str, type(None))):
        raise wrong("model", f"model must be text; got {shown(model)}", "give a name of /v1/models")
    _check_limits(fields)
    _set_size(fields)
    _set_duration(fields)
    _set_media(fields, inputs)
    inputs.check_uploads()
    return Draft(model, fields, inputs.contents, inputs.labels, sent)


def _refused(name: str) -> bool:
    """Raises the error that answers a field which there is not."""
    if name in _FILES_OF_THE_SERVER:
        raise wrong(name, f"{name} would be files of the server, which a request cannot name", "leave it out")
    advice = f"use {_INSTEAD.get(name) or nearest(name, [*FIELDS])}"
    raise wrong(name[:MOST_SHOWN], f"there is no field {shown(name)}", advice, "unknown_parameter")


def _check_limits(fields: dict[str, Any]) -> None:
    """Checks what would take long to plan before it is found to be too much."""
    for name in ("prompt", "negative_prompt"):
        text = fields.get(name)
        if isinstance(text, str) and len(text) > _LONGEST_PROMPT:
            raise wrong(name, f"{name} has {len(text)} characters; at most {_LONGEST_PROMPT} are read", "shorten it")
    steps, timesteps = fields.get("steps"), fields.get("timesteps")
    count = len(timesteps) if isinstance(timesteps, list) else steps
    if isinstance(count, (int, float)) and count > _MOST_STEPS:
        raise wrong("steps" if count is steps else "timesteps", f"there are at most {_MOST_STEPS} steps", "use fewer")


def _set_size(fields: dict[str, Any]) -> None:
    """Replaces `size` by height and width, and pads those that are no multiples of 32."""
    size = fields.pop("size", None)
    if size is None:
        return
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise wrong("size", f"size must be WIDTHxHEIGHT; got {shown(size)}", "use a size of /v1/models")
    if 0 in (int(match[1]), int(match[2])):
        raise wrong("size", f"size must be at least 1x1; got {size}", "use a size of /v1/models")
    for name, value in (("width", int(match[1])), ("height", int(match[2]))):
        if fields.get(name) is not None:
            raise wrong(name, f"size and {name} set the same thing", "leave one of them out")
        fields[name] = value
        if value % SPATIAL_SCALE and fields.get("pad") is None:
            fields["pad"] = True


def _set_duration(fields: dict[str, Any]) -> None:
    """Replaces `seconds`, a number or, as in OpenAI's API, its text, by the duration."""
    if "seconds" not in fields:
        return
    seconds = fields.pop("seconds")
    if seconds is not None and fields.get("num_frames") is not None:
        raise wrong("seconds", "seconds and num_frames set the same thing", "leave one of them out")
    try:
        fields["duration"] = None if seconds is None else number_of(seconds)
    except (TypeError, ValueError):
        raise wrong("seconds", f"seconds must be a number; got {shown(seconds)}", "use 4") from None


def number_of(value: Any) -> float:
    """Returns a finite number that is given as such or as text. Raises TypeError or ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    try:
        number = float(value)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def _set_media(fields: dict[str, Any], inputs: _Inputs) -> None:
    """Replaces images and clips by the names of their files."""
    reference, conditions = fields.pop("input_reference", None), fields.pop("conditions", None)
    if reference is not None or conditions is not None:
        first = [] if reference is None else [{"media": inputs.add(_reference(reference), "input_reference")}]
        fields["conditions"] = [*first, *_conditions(conditions or [], inputs)]
    if fields.get("video") is not None:
        fields["video"] = inputs.add(fields["video"], "video")


def _reference(value: Any) -> Any:
    """Returns the image or clip in `input_reference`, which OpenAI's API also takes as an object with a data: URL."""
    if not isinstance(value, Mapping):
        return value
    if value.keys() != {"image_url"}:
        raise wrong(
            "input_reference", f"input_reference has {', '.join(value) or 'nothing'}", "upload a file, or use image_url"
        )
    return value["image_url"]


def _conditions(value: Any, inputs: _Inputs) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(condition, Mapping) for condition in value):
        raise wrong(
            "conditions",
            f"conditions must be a list of objects; got {shown(value)}",
            'send [{"media": "last.png", "frame": 96}]',
        )
    for condition in value:
        for name in condition:
            if name not in CONDITION:
                advice = f"use {nearest(str(name), [*CONDITION])}"
                raise wrong("conditions", f"a condition has no {shown(name)}", advice, "unknown_parameter")
    return [{**condition, "media": inputs.add(condition.get("media"), "conditions")} for condition in value]


def _decoded(text: str, param: str) -> bytes:
    """Returns the content of a data: URL; any other text is refused, whatever it would lead to."""
    match = _DATA_URL.match(text)
    if match is None:
        problem = f"{param} names {shown(text)}, but no file of that name was uploaded and URLs are not fetched"
        raise wrong(param, problem, "upload the file, or send it as data:image/png;base64,...")
    try:
        return base64.b64decode(text[match.end() :].encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise wrong(param, f"{param} is no valid base64", "encode the file again") from None
