"""peft's configuration of a LoRA -> the alpha of every layer; refuses every configuration but that of a plain LoRA.

diffusers stores the configuration in the header of the LoRA file, peft itself in adapter_config.json beside that file.
This module is used between opening a LoRA file and merging it; it does not know how files name the layers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown  # shortens long and deeply nested values
from typing import Any

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.trust.pointers import refuse_pointer
from ltx_runtime.weights.checkpoint import Checkpoint

FACTORS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_HEADER_FIELD = "lora_adapter_metadata"
_COMPONENT = "transformer."
_PEFT_PREFIX = "base_model.model."
_MAX_CONFIG_BYTES = 1 << 20
_TOO_LARGE = 3.4e38  # just below the largest float32; weights are merged in float32

# Fields of peft's LoraConfig that change what is merged, and the values (beside empty ones) that a plain LoRA may have.
_PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract the initial up @ down from the model's own weights.
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica"),
}
_EMPTY: tuple[str, ...] = ("use_dora", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config")
_EMPTY += ("fan_in_fan_out", "lora_bias", "layer_replication", "megatron_config", "alora_invocation_tokens")
_EMPTY += ("modules_to_save", "target_parameters", "trainable_token_indices")
_PLAIN_VALUES |= dict.fromkeys(_EMPTY, ())


@dataclass(frozen=True)
class AdapterConfig:
    """Fields of peft's LoraConfig for the transformer.

    Attributes:
        place: where the configuration was read from, as error messages name it.
        fields: name of each field, without diffusers' component prefix, and its value.
    """

    place: str
    fields: Mapping[str, Any]

    def alpha(self, layer: str, modules: Sequence[str], rank: int) -> float | None:
        """Returns a layer's alpha, so that the change is scaled by alpha / rank; None if the configuration has none.

        Args:
            layer: name of the layer in error messages.
            modules: module names of the layer that the patterns are matched with.
            rank: rank of the layer's factors.

        Raises:
            LtxError: the configuration's rank or alpha for the layer is not a number, or its rank is not `rank`.
        """
        config_rank = _number(self, "r", "rank_pattern", modules)
        if config_rank not in (None, rank):
            problem = f"{self.place} says rank {config_rank:g} for {layer}, which has {rank}"
            raise LtxError(f"{problem}", "give a LoRA and the configuration that it was saved with")
        alpha = _number(self, "lora_alpha", "alpha_pattern", modules)
        if alpha is None or not self.fields.get("use_rslora"):
            return alpha
        return alpha * math.sqrt(rank)  # rank-stabilized LoRA divides by the square root of the rank (arXiv:2312.03732)


def find_factors(path: Path) -> Path:
    """Returns the LoRA file of a folder saved by peft, or `path` itself if it is not a folder.

    `~` at the start of a path is the home folder, if there is no such file.

    Raises:
        LtxError: the folder holds no such file.
    """
    if not path.exists():
        with suppress(RuntimeError):  # a user without a home
            path = path.expanduser()
    if not path.is_dir():
        return path
    if not (path / FACTORS_FILE).is_file():
        raise LtxError(f"{path} is a folder without {FACTORS_FILE}", "give a LoRA's file, or a folder saved by peft")
    return path / FACTORS_FILE


def open_adapter_config(file: Checkpoint, has_alphas: bool) -> AdapterConfig:
    """Returns peft's configuration of a LoRA; it has no fields if the LoRA has no configuration and needs none.

    Args:
        file: the opened LoRA file. With the state dict keys of peft, alpha is known from the configuration only.
        has_alphas: whether every layer stores its alpha beside its factors.

    Raises:
        LtxError: the configuration is missing, damaged, or not that of a plain LoRA.
    """
    config = _parsed(f"the {_HEADER_FIELD} of {file.path}", file.metadata.get(_HEADER_FIELD, "{}"))
    is_alpha_known = has_alphas or config.fields.get("lora_alpha") is not None
    if is_alpha_known or not any(key.startswith(_PEFT_PREFIX) for key in file.tensors):
        return config
    config_path = file.path.with_name(CONFIG_FILE)
    if not config_path.is_file():
        problem = f"{file.path} has peft keys but no alpha, so its strength is unknown"
        raise LtxError(f"{problem}", f"put the {CONFIG_FILE} it was saved with beside it")
    refuse_pointer(config_path)
    with explaining(f"read {config_path}"), config_path.open("rb") as stream:
        raw = stream.read(_MAX_CONFIG_BYTES + 1)
    if len(raw) > _MAX_CONFIG_BYTES:
        raise _damaged(str(config_path), f"it is larger than {_MAX_CONFIG_BYTES} bytes")
    config = _parsed(str(config_path), raw)
    if config.fields.get("lora_alpha") is None:
        raise _damaged(str(config_path), "it has no lora_alpha")
    return config


def _parsed(place: str, raw: str | bytes) -> AdapterConfig:
    """Parses the JSON of a configuration and checks that it describes a plain LoRA.

    Fields may have a component prefix: diffusers' `LTXPipeline.save_lora_weights` writes it, the transformer's own
    `save_lora_adapter` does not.
    """
    try:
        entries = json.loads(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(place, str(error)) from None
    if not isinstance(entries, dict):
        raise _damaged(place, f"it is {shown(entries)}, not a JSON object")
    fields = {field.removeprefix(_COMPONENT): value for field, value in entries.items()}
    for field, plain_values in _PLAIN_VALUES.items():
        value = fields.get(field)
        if value and value not in plain_values:
            problem = f"{place} sets {field} to {shown(value)}, which a plain LoRA does not have"
            raise LtxError(f"{problem}", "convert it to one with peft, or give another")
    if fields.get("use_rslora") not in (None, False, True):
        raise _damaged(place, f"use_rslora is {shown(fields['use_rslora'])}")
    return AdapterConfig(place, fields)


def _number(config: AdapterConfig, field: str, pattern_field: str, modules: Sequence[str]) -> float | None:
    """Returns a layer's value of a field: that of the first matching pattern, or else the one for all layers."""
    value = config.fields.get(field)
    patterns = config.fields.get(pattern_field) or {}
    if not isinstance(patterns, dict):
        raise _damaged(config.place, f"{pattern_field} is {shown(patterns)}")
    for pattern, number in patterns.items():
        try:
            # As in peft's `get_pattern_key`: the first pattern wins that matches whole components at the name's end.
            is_match = any(re.match(rf"(.*\.)?({pattern})$", module) for module in modules)
        except (re.error, OverflowError, RecursionError) as error:
            raise _damaged(config.place, f"{pattern_field} has {shown(pattern)}: {error}") from None
        if is_match:
            field, value = f"{pattern_field} of {shown(pattern)}", number
            break
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < _TOO_LARGE:
        raise _damaged(config.place, f"{field} is {shown(value)}, not a valid number")
    return float(value)


def _damaged(place: str, why: str) -> LtxError:
    return LtxError(f"{place} is damaged ({why})", "download it again")
