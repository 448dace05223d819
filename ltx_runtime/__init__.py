"""Makes a video from a folder of engines and a prompt. Never imports torch.

The public names are loaded on first use, and a backend only when a network is opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltx_runtime.errors import LtxError as LtxError
    from ltx_runtime.media.video import TakenError as TakenError
    from ltx_runtime.outputs.plain import fields_of_request as fields_of_request
    from ltx_runtime.outputs.plain import request_from_fields as request_from_fields
    from ltx_runtime.outputs.record import read_record as read_record
    from ltx_runtime.pipeline import Pipeline as Pipeline
    from ltx_runtime.planning.preset import Preset as Preset
    from ltx_runtime.planning.preset import read_preset as read_preset
    from ltx_runtime.planning.request import Condition as Condition
    from ltx_runtime.planning.request import Request as Request
    from ltx_runtime.sampling.step import Step as Step
    from ltx_runtime.spec.presets import Guidance as Guidance
    from ltx_runtime.spec.presets import Pass as Pass
    from ltx_runtime.spec.versions import VERSIONS as VERSIONS
    from ltx_runtime.video import Result as Result
    from ltx_runtime.video import Video as Video
    from ltx_runtime.weights.lora import LoraFile as LoraFile

    __version__: str

_PLACES = {
    "Pipeline": "pipeline",
    "Video": "video",
    "Result": "video",
    "fields_of_request": "outputs.plain",
    "request_from_fields": "outputs.plain",
    "read_record": "outputs.record",
    "TakenError": "media.video",
    "Step": "sampling.step",
    "Request": "planning.request",
    "Condition": "planning.request",
    "LoraFile": "weights.lora",
    "Preset": "planning.preset",
    "read_preset": "planning.preset",
    "Pass": "spec.presets",
    "Guidance": "spec.presets",
    "LtxError": "errors",
    "VERSIONS": "spec.versions",
}
__all__ = [
    *("VERSIONS", "Condition", "Guidance", "LoraFile", "LtxError", "Pass", "Pipeline", "Preset", "Request", "Result"),
    *("Step", "TakenError", "Video", "fields_of_request", "read_preset", "read_record", "request_from_fields"),
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("ltx_runtime.packages").RELEASE
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__, "__version__"))
