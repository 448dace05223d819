"""A LoRA file -> changes to the transformer's weights, under our names; merged one weight at a time.

Most changes are of low rank; ComfyUI also stores whole differences, of biases and norms too. Opening reads headers and
alphas only; merging a weight reads its two factors or its difference. Trainers agree on the mathematics and differ in
state dict keys, so most of this file is about keys. It knows nothing of graphs, of where weights are written, or of
torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import StoredTensor, open_safetensors
from ltx_runtime.weights.floats import FLOAT_DTYPES, read_floats
from ltx_runtime.weights.lora_adapter import CONFIG_FILE, find_factors, open_adapter_config
from ltx_runtime.weights.names import DIFFUSERS_WORDS, WRAPPERS, first

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_SUFFIX = ".safetensors"

# Prefixes that trainers put before a module's path, with dots, and before a path whose dots became underscores.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "base_model.model.", "transformer.", "module.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# Keys of peft (with or without the adapter's name), kohya and Comfy, diffusers, and diffusers before it used peft.
_KEY = re.compile(r"(.+?)(?:\.lora_([AB])(?:\.\w+)?\.weight|(?:\.lora_|\.lora\.|_lora\.)(down|up)\.weight|\.(alpha))")
_PART = {"A": "down", "down": "down", "B": "up", "up": "up", "alpha": "alpha"}
# Keys of whole differences: of a module's weight, or of a parameter that is named itself; and of a module's bias.
_DIFFERENCE = re.compile(r"(.+)\.(diff|diff_b)")
_OTHER_KINDS = {
    "a LoRA of a text encoder": re.compile(r"(text_encoders?|te)\d?[._]|lora_(te|t5|clip)"),
    "DoRA scales": re.compile(r".*(\.dora_scale$|lora_magnitude_vector)"),
    "LoHa factors": re.compile(r".*\.hada_"),
    "LoKr factors": re.compile(r".*\.lokr_"),
    "LoRA biases": re.compile(r".*(lora_bias|lora_[AB](\.\w+)?\.bias$|lora[._](down|up)\.bias$)"),
    "weights that replace the model's own": re.compile(r".*\.set_weight$"),
    "a LoRA of convolutions": re.compile(r".*lora_mid"),
}

# Dtypes that some trainers store alpha in, beside those of the factors, and their numpy names.
_ALPHA_DTYPES = {"F64": "<f8", "I64": "<i8", "I32": "<i4"}
_BLOCK_BYTES = 16 << 20
_LINEAR_ADVICE = "give a LoRA of linear layers' weights"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to use.

    Attributes:
        file: a safetensors file, or a folder saved by peft.
        scale: factor of the whole change; a negative one subtracts the change.
    """

    file: Path
    scale: float = 1.0


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one weight's change: down (rank, in) and up (out, rank); alpha None means alpha = rank."""

    down: StoredTensor
    up: StoredTensor
    alpha: float | None

    @property
    def factor(self) -> float:
        """Scale alpha / rank of the change up @ down, as in arXiv:2106.09685, section 4.1."""
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]


@dataclass(frozen=True)
class Lora:
    """All changes of one LoRA file, by our name of the parameter, to be multiplied by `scale`.

    Attributes:
        pairs: changes of low rank.
        differences: whole differences, in the shapes of the parameters; no alpha applies to them.
    """

    file: Path
    scale: float
    pairs: dict[str, LoraPair]
    differences: dict[str, StoredTensor] = field(default_factory=dict)

    def changes(self, name: str) -> bool:
        """Returns whether the LoRA changes a parameter."""
        return name in self.pairs or name in self.differences


def parse_lora(text: str) -> LoraFile:
    """Splits FILE or FILE:SCALE into the path (of a file, or of a folder saved by peft) and the scale, 1 if left out.

    A colon belongs to the path unless a number follows it, so that `C:\\fox.safetensors` is a file.

    Raises:
        LtxError: the path is empty, or the scale is not a finite number.
    """
    head, colon, tail = text.rpartition(":")
    is_number = bool(_NUMBER.fullmatch(tail))
    # After a complete file name only a scale makes sense: a mistyped scale must not become part of the path.
    is_scale = head.lower().endswith(_SUFFIX) and not tail.lower().endswith(_SUFFIX) and not {"/", "\\"} & set(tail)
    if not colon or not (is_number or is_scale or _NO_NUMBER.fullmatch(tail)):
        head, tail, is_number = text, "1", True
    if not head.strip():
        raise LtxError(f"a LoRA needs a file; got {text!r}", "give FILE or FILE:SCALE")
    return LoraFile(Path(head), _finite(float(tail) if is_number else math.nan, f"the scale of {head}", tail))


def files_of(path: Path) -> list[Path]:
    """Returns every file that is read of a LoRA: the file with its factors, and a configuration of peft beside it.

    Raises:
        LtxError: the path is a folder that holds no LoRA.
    """
    factors = find_factors(path)
    config = factors.with_name(CONFIG_FILE)
    return [factors, config] if config.is_file() else [factors]


def open_lora(path: Path, scale: float, expected: Mapping[str, tuple[int, ...]]) -> Lora:
    """Opens a LoRA file and finds the weight that each of its tensors changes; reads headers and alphas only.

    An alpha stored as a tensor takes precedence over that of peft's configuration; without either, alpha is the rank.

    Args:
        path: a safetensors file with the keys of peft, diffusers, Comfy or kohya, or a folder saved by peft.
        scale: factor of the whole change; a negative one subtracts the change.
        expected: our names of the transformer's parameters, and their shapes.

    Raises:
        LtxError: the file is not a plain LoRA, was made for another transformer, or was saved by peft and lacks its
            configuration.
    """
    _finite(scale, f"the scale of {path}", scale)
    path = find_factors(path)
    file = open_safetensors(path)
    _check_keys(path, file.tensors)
    names = {spelling: name for name in expected for spelling in _spellings(name)}
    low_rank = {key: tensor for key, tensor in file.tensors.items() if not _DIFFERENCE.fullmatch(key)}
    whole = {key: tensor for key, tensor in file.tensors.items() if key not in low_rank}
    layers = _parts_by_weight(path, low_rank, expected, names)
    config = open_adapter_config(file, has_alphas=all("alpha" in parts for parts in layers.values()))
    pairs = {}
    for name, parts in layers.items():
        down, up = _factors(path, name, parts, expected[name])
        tensor = parts.get("alpha")
        alpha = config.alpha(name, _modules(name), down.shape[0]) if tensor is None else _read_alpha(path, name, tensor)
        pairs[name] = LoraPair(down, up, alpha)
    return Lora(path, scale, pairs, _differences(path, whole, expected, names))


def merge(weight: NDArray[np.float32], name: str, loras: Sequence[Lora]) -> None:
    """Adds scale * alpha / rank * up @ down of each LoRA to a weight, in place, in the order of `loras`.

    The formula is that of arXiv:2106.09685, section 4.1. Of a whole difference, scale * difference is added, as in
    ComfyUI.

    Args:
        weight: (out, in) float32, contiguous or not; may have any shape if no LoRA has factors for it.
        name: our name of the weight.
        loras: LoRAs opened for a transformer that has this weight in this shape.

    Raises:
        LtxError: a factor or difference has values that are not finite.
    """
    for lora in loras:
        difference = lora.differences.get(name)
        if difference is not None and lora.scale != 0:
            weight += np.float32(lora.scale) * _finite_values(lora, name, difference)
        pair = lora.pairs.get(name)
        factor = 0.0 if pair is None else lora.scale * pair.factor
        if pair is None or factor == 0:  # adding a change of zero would still turn -0.0 into 0.0
            continue
        down, up = _finite_values(lora, name, pair.down), _finite_values(lora, name, pair.up)
        up = up * np.float32(factor)
        rows = max(1, _BLOCK_BYTES // (4 * weight.shape[1]))  # up @ down of a whole weight of 13B would take 256 MiB
        for start in range(0, len(weight), rows):
            weight[start : start + rows] += up[start : start + rows] @ down


def _finite_values(lora: Lora, name: str, tensor: StoredTensor) -> NDArray[np.float32]:
    values = read_floats(tensor)
    if not np.isfinite(values).all():
        raise LtxError(f"{lora.file} has values for {name} that are not finite", "use another copy or training step")
    return values


def _finite(value: float, what: str, original: object, advice: str = "give one such as 0.8") -> float:
    if not math.isfinite(value):
        raise LtxError(f"{what} must be a finite number; got {str(original)!r}", advice)
    return value


def _check_keys(path: Path, keys: Mapping[str, StoredTensor]) -> None:
    for kind, pattern in _OTHER_KINDS.items():
        matches = [key for key in keys if pattern.match(_without_prefix(key))]
        if matches:
            raise LtxError(f"{path} holds {kind} ({first(matches)})", "give a plain LoRA of the transformer's layers")
    unknown_keys = [key for key in keys if not (_KEY.fullmatch(key) or _DIFFERENCE.fullmatch(key))]
    if len(unknown_keys) == len(keys):
        raise LtxError(f"{path} holds no LoRA ({first(unknown_keys) or 'no tensors'})", "give a file with LoRA keys")
    if unknown_keys:
        raise LtxError(f"{path} has keys that are not LoRA keys ({first(unknown_keys)})", "give a plain LoRA")


def _without_prefix(key: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    return key


def _parts_by_weight(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
) -> dict[str, dict[str, StoredTensor]]:
    """Groups a LoRA's tensors by our name of the weight that they change, and by part: down, up or alpha.

    Raises:
        LtxError: a part appears twice, the transformer lacks a module, or a tensor changes no linear layer's weight.
    """
    parts: dict[str, dict[str, StoredTensor]] = {}
    unknown_modules: dict[str, None] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        assert match is not None  # _check_keys has checked every key
        module, *part_names = match.groups()
        part = _PART[next(filter(None, part_names))]
        name = names.get(_plain(module))
        if name is None:
            unknown_modules[module] = None
        elif parts.setdefault(name, {}).setdefault(part, tensor) is not tensor:
            raise LtxError(f"{path} has {part} of {name} twice, the second as {key}", "give a file with one LoRA")
    if unknown_modules:
        raise _foreign_modules(path, [*unknown_modules])
    unmergeable = [name for name in parts if len(expected[name]) != 2 or not name.endswith(".weight")]
    if unmergeable:
        raise LtxError(f"{path} changes biases, norms or tables ({first(unmergeable)})", _LINEAR_ADVICE)
    return parts


def _differences(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
) -> dict[str, StoredTensor]:
    """Returns whole differences by our name of the parameter that they change.

    Raises:
        LtxError: a parameter has two, the transformer lacks it, or it has another shape or dtype.
    """
    differences: dict[str, StoredTensor] = {}
    unknown_modules: dict[str, None] = {}
    for key, tensor in tensors.items():
        match = _DIFFERENCE.fullmatch(key)
        assert match is not None  # only such keys are given
        module, kind = match.groups()
        name = names.get(_plain(module))
        if name is not None and kind == "diff_b":
            name = f"{name.removesuffix('.weight')}.bias"
        if name is None or name not in expected:
            unknown_modules[module] = None
            continue
        if tensor.dtype not in FLOAT_DTYPES:
            raise _unread_dtype(path, name, tensor)
        if tensor.shape != expected[name]:
            sizes = f"a difference {list(tensor.shape)} for {name} of {list(expected[name])}"
            raise LtxError(f"{path} has {sizes}: it was made for another model size", "give a LoRA for this version")
        if differences.setdefault(name, tensor) is not tensor:
            raise LtxError(f"{path} has a difference of {name} twice, the second as {key}", "give a file with one LoRA")
    if unknown_modules:
        raise _foreign_modules(path, [*unknown_modules])
    return differences


def _plain(module: str) -> str:
    """Returns a module's name in a file without the words that trainers and wrappers put into it."""
    return _without_prefix(WRAPPERS.sub("", module)).replace(".processor.", ".")


def _foreign_modules(path: Path, modules: Sequence[str]) -> LtxError:
    return LtxError(f"the transformer lacks modules of {path} ({first(modules)})", "give a LoRA for this version")


def _unread_dtype(path: Path, name: str, tensor: StoredTensor) -> LtxError:
    return LtxError(f"{path} stores {name} as {tensor.dtype}", f"give a LoRA in {', '.join(FLOAT_DTYPES)}")


def _spellings(name: str) -> Iterator[str]:
    """Yields the names that LoRA files may give a parameter's module, without the dotted prefixes."""
    for module in _modules(name):
        yield module
        yield from (prefix + module.replace(".", "_") for prefix in ("", *_FLAT_PREFIXES))
        if module.endswith(".to_out.0"):  # diffusers before peft wrote `to_out_lora`
            yield module.removesuffix(".0")


def _modules(name: str) -> tuple[str, str]:
    """Returns the names of a parameter's module in official checkpoints and in diffusers."""
    official = diffusers = name.removesuffix(".weight")
    for diffusers_word, official_word in DIFFUSERS_WORDS.items():
        diffusers = diffusers.replace(official_word, diffusers_word)
    return official, diffusers


def _factors(
    path: Path, name: str, parts: Mapping[str, StoredTensor], shape: tuple[int, ...]
) -> tuple[StoredTensor, StoredTensor]:
    """Returns down (rank, in) and up (out, rank) for a weight of `shape` (out, in).

    Raises:
        LtxError: a factor is missing, or has another dtype or shape than expected.
    """
    if not {"down", "up"} <= set(parts):
        missing = " and ".join(part for part in ("down", "up") if part not in parts)
        raise LtxError(f"{path} has {' and '.join(parts)} of {name} without {missing}", "download it again")
    down, up = parts["down"], parts["up"]
    for tensor in (down, up):
        if tensor.dtype not in FLOAT_DTYPES:
            raise _unread_dtype(path, name, tensor)
        if len(tensor.shape) != 2:
            raise LtxError(f"{path} has a convolution's LoRA for {name}: {list(tensor.shape)}", _LINEAR_ADVICE)
    if down.shape[0] != up.shape[1] or not down.shape[0]:
        ranks = f"{down.shape[0]} (down) and {up.shape[1]} (up)"
        raise LtxError(f"{path} has ranks {ranks} for {name}; they must be equal and positive", "download it again")
    if (up.shape[0], down.shape[1]) != shape:
        sizes = f"{up.shape[0]} x {down.shape[1]} for {name} of {' x '.join(map(str, shape))}"
        raise LtxError(f"{path} has {sizes}: it was made for another model size", "give a LoRA for this version")
    return down, up


def _read_alpha(path: Path, name: str, tensor: StoredTensor) -> float:
    if tensor.shape not in ((), (1,)) or tensor.dtype not in (*FLOAT_DTYPES, *_ALPHA_DTYPES):
        description = f"{tensor.dtype} {list(tensor.shape)}"
        raise LtxError(f"{path} has an alpha for {name} that is not a number: {description}", "download it again")
    is_factor = tensor.dtype in FLOAT_DTYPES
    alpha = float((read_floats(tensor) if is_factor else tensor.mapped().view(_ALPHA_DTYPES[tensor.dtype])).item())
    return _finite(alpha, f"alpha of {name} in {path}", alpha, "download it again")
