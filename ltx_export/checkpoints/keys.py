"""State dict keys in files -> our parameter names, which are the official ones; renames those of diffusers and GGUF.

What stands before a network's names is found, not listed: it is what precedes a name that only this network has. Every
name has to match. This module knows nothing of models, and the caller passes the names and shapes it expects; it does
not import torch. Sources: diffusers' conversion of the official files, and llama.cpp's names of a T5 encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ltx_export.checkpoints.values import with_scales
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import Checkpoint, StoredTensor
from ltx_runtime.weights.names import DIFFUSERS_WORDS, WRAPPERS, first

NetworkName = Literal["transformer", "vae", "text_encoder", "upsampler"]
Tensors = dict[str, StoredTensor]

# Prefixes of names in files that hold several networks, for networks that lack the names they are known by.
_PREFIXES: tuple[tuple[str, NetworkName], ...] = (
    ("model.diffusion_model.", "transformer"),
    ("diffusion_model.", "transformer"),
    ("transformer.", "transformer"),
    ("vae.", "vae"),
)
# Names that only one network has. What precedes them in a file, if anything, precedes all names of this network.
_MARKS: tuple[tuple[re.Pattern[str], NetworkName], ...] = (
    (re.compile(r"(.+\.)?(patchify_proj|proj_in)\.weight"), "transformer"),
    (re.compile(r"(.+\.)?(encoder\.block|enc\.blk)\.0\..+"), "text_encoder"),
    (re.compile(r"(.+\.)?(decoder|encoder)\.conv_in\.conv\.weight"), "vae"),
    (re.compile(r"(.+\.)?initial_conv\.weight"), "upsampler"),
)
# A moving average of the weights beside them, which trainers keep under a name of its own.
_AVERAGE = re.compile(r"(.+\.)?([a-z]+_)*ema(_[a-z]+)*\..+")
# Tensors of repacked files that no network of ours has: a number that ComfyUI stores with T5, and T5's tokenizer.
_STRAYS = re.compile(r"(.+\.)?(logit_scale|spiece_model)")
# Tensors in files that no network of ours has: unused statistics, a T5's decoder.
_UNUSED: dict[NetworkName, tuple[str, ...]] = {
    "transformer": (),
    "vae": ("per_channel_statistics.channel", "per_channel_statistics.mean-of-stds"),
    "text_encoder": ("decoder.", "dec.", "lm_head.", "output.weight"),
    "upsampler": (),
}

_VAE_WORDS = {
    "resnets": "res_blocks",
    "conv_shortcut.conv": "conv_shortcut",
    "latents_mean": "per_channel_statistics.mean-of-means",
    "latents_std": "per_channel_statistics.std-of-means",
}
_VAE_STARTS = {
    "decoder.time_embedder.": "decoder.last_time_embedder.",
    "decoder.scale_shift_table": "decoder.last_scale_shift_table",
}
# diffusers' paths of the blocks that official files number in the order of execution; by VAE generation.
_ENCODER_PLACES = {
    "AB": (
        *("down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.0.conv_out"),
        *("down_blocks.1", "down_blocks.1.downsamplers.0", "down_blocks.1.conv_out"),
        *("down_blocks.2", "down_blocks.2.downsamplers.0", "down_blocks.3", "mid_block"),
    ),
    "C": (
        *("down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.1", "down_blocks.1.downsamplers.0"),
        *("down_blocks.2", "down_blocks.2.downsamplers.0", "down_blocks.3", "down_blocks.3.downsamplers.0"),
        "mid_block",
    ),
}
_DECODER_PLACES = {
    "A": (
        *("mid_block", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1", "up_blocks.2.conv_in"),
        *("up_blocks.2.upsamplers.0", "up_blocks.2", "up_blocks.3.conv_in", "up_blocks.3.upsamplers.0", "up_blocks.3"),
    ),
    "BC": (
        *("mid_block", "up_blocks.0.upsamplers.0", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1"),
        *("up_blocks.2.upsamplers.0", "up_blocks.2"),
    ),
}
# Parts of the names of a T5's tensors in GGUF -> those in transformers.
GGUF_T5 = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
    "attn_norm": "layer.0.layer_norm",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    **{f"attn_{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
_GGUF_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)")
_EMBEDDING, _EMBEDDING_ALIAS = "shared.weight", "encoder.embed_tokens.weight"
_ADVICE = "check that the file is for this version"


def networks_in(checkpoint: Checkpoint) -> dict[NetworkName, Tensors]:
    """Returns the networks in a checkpoint, with their tensors under our names, and with their scales.

    Raises:
        LtxError: the checkpoint has tensors of no known network, a network twice, two tensors for one name, or weights
            in a quantized format that is not read.
    """
    split = _split(checkpoint)
    if split.unknown:
        raise LtxError(
            f"{checkpoint.path} has {some(split.unknown)} not belonging to any known network",
            "give an LTX-Video or T5 file",
        )
    return {part: _renamed(checkpoint, part, tensors) for part, tensors in split.parts.items()}


def names_of_no_network(checkpoint: Checkpoint) -> list[str]:
    """Returns the names of tensors that belong to no known network.

    Raises:
        LtxError: the checkpoint has a network twice, or weights in a quantized format that is not read.
    """
    return _split(checkpoint).unknown


def averages_in(checkpoint: Checkpoint) -> list[str]:
    """Returns the names of moving averages (EMA) of weights that are in the checkpoint too; they are not used.

    Raises:
        LtxError: the checkpoint has a network twice, or weights in a quantized format that is not read.
    """
    return _split(checkpoint).averages


@dataclass
class _Split:
    """Tensors of a file by network, without prefixes; names of no network; names of averages beside the weights."""

    parts: dict[NetworkName, Tensors] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    averages: list[str] = field(default_factory=list)


def _split(checkpoint: Checkpoint) -> _Split:
    tensors = with_scales(checkpoint)
    names = {name: WRAPPERS.sub("", name) for name in tensors}
    roots, averaged = _roots(checkpoint, names.values())
    prefixes = sorted({**dict(_PREFIXES), **roots}.items(), key=lambda row: len(row[0]), reverse=True)
    split = _Split()
    for original, name in names.items():
        if averaged and _AVERAGE.fullmatch(name):
            split.averages.append(original)
            continue
        if _STRAYS.fullmatch(name):
            continue
        prefix, part = next((row for row in prefixes if name.startswith(row[0])), ("", None))
        if part is None:
            split.unknown.append(original)
            continue
        network = split.parts.setdefault(part, {})
        if name.removeprefix(prefix) in network:
            raise _twice(checkpoint, name)
        network[name.removeprefix(prefix)] = tensors[original]
    return split


def _roots(checkpoint: Checkpoint, names: Iterable[str]) -> tuple[dict[str, NetworkName], bool]:
    """Returns what precedes the names of each network, and whether a network's moving averages are beside it.

    Raises:
        LtxError: the checkpoint has a network twice.
    """
    roots: dict[str, NetworkName] = {}
    for name in names:
        for mark, part in _MARKS:
            if match := mark.fullmatch(name):
                roots.setdefault(match[1] or "", part)
    averages = {root for root in roots if _AVERAGE.fullmatch(f"{root}x")}
    plain = {root: part for root, part in roots.items() if root not in averages}
    for part in dict.fromkeys(plain.values()):
        places = sorted(root for root in plain if plain[root] == part)
        if len(places) > 1:
            listed = " and ".join(repr(root) if root else "no prefix" for root in places)
            raise LtxError(f"{checkpoint.path} holds a {part} under {listed}", "give a file with one of them")
    lone = {root: part for root, part in roots.items() if part not in plain.values()}
    return plain | lone, not lone and bool(plain)


def tensors_of(checkpoint: Checkpoint, part: NetworkName) -> Tensors:
    """Returns the tensors of one network under our names.

    Raises:
        LtxError: the checkpoint does not hold this network.
    """
    networks = networks_in(checkpoint)
    if part not in networks:
        names = ", ".join(networks) or "nothing"
        raise LtxError(f"{checkpoint.path} holds no {part} (it holds {names})", "give the file that does")
    return networks[part]


def _renamed(checkpoint: Checkpoint, part: NetworkName, tensors: Tensors) -> Tensors:
    rename = _renamer(part, tensors)
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(_UNUSED[part]):
            continue
        new_name = rename(name)
        if new_name in renamed and (new_name != _EMBEDDING or renamed[new_name].shape != tensor.shape):
            raise _twice(checkpoint, new_name)
        renamed.setdefault(new_name, tensor)
    return renamed


def _twice(checkpoint: Checkpoint, name: str) -> LtxError:
    return LtxError(f"{checkpoint.path} has two tensors for {name}", "give a file in one layout")


def _renamer(part: NetworkName, names: Iterable[str]) -> Callable[[str], str]:
    if part == "transformer":
        return lambda name: _replaced(name, DIFFUSERS_WORDS)
    if part == "vae":
        return _vae_renamer(set(names))
    return _t5_name if part == "text_encoder" else lambda name: name


def _replaced(name: str, words: Mapping[str, str]) -> str:
    for theirs, ours in words.items():
        name = re.sub(rf"(?<![^.]){re.escape(theirs)}(?![^.])", ours, name)
    return name


def _vae_renamer(names: set[str]) -> Callable[[str], str]:
    """Returns the function that renames a VAE's tensors.

    Official names are kept. diffusers' names are recognized by `resnets`, and the VAE generation by a name that only
    this generation has.
    """
    if not any(".resnets." in name for name in names):
        return lambda name: name
    encoder = _ENCODER_PLACES["C" if "encoder.down_blocks.0.downsamplers.0.conv.conv.weight" in names else "AB"]
    decoder = _DECODER_PLACES["BC" if "decoder.time_embedder.timestep_embedder.linear_1.weight" in names else "A"]
    places = {f"encoder.{place}.": f"encoder.down_blocks.{i}." for i, place in enumerate(encoder)}
    places |= {f"decoder.{place}.": f"decoder.up_blocks.{i}." for i, place in enumerate(decoder)}
    longest_first = sorted(places, key=len, reverse=True)

    def rename(name: str) -> str:
        for theirs, ours in _VAE_STARTS.items():
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        for place in longest_first:
            if name.startswith(place):
                name = places[place] + name.removeprefix(place)
                break
        return _replaced(name, _VAE_WORDS).replace(".norm3.", ".norm3.norm.")

    return rename


def _t5_name(name: str) -> str:
    if name == _EMBEDDING_ALIAS:
        return _EMBEDDING
    block = _GGUF_BLOCK.match(name)
    if block:
        stem, rest = block[2], name[block.end() :]
        return f"encoder.block.{block[1]}.{GGUF_T5.get(stem, stem)}{rest}"
    return _replaced(name, GGUF_T5)


def check_names(network: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, StoredTensor]) -> None:
    """Checks that the tensors are exactly the expected ones, in the expected shapes.

    Raises:
        LtxError: tensors are missing, unexpected or have another shape; the error lists the first few names.
    """
    file = next((str(tensor.file) for tensor in found.values()), "the file")
    missing = [name for name in expected if name not in found]
    if missing:
        raise LtxError(f"{network} lacks {some(missing)} in {file}", _ADVICE)
    extra = [name for name in found if name not in expected]
    if extra:
        raise LtxError(f"{network} has {some(extra, 'unexpected tensor')} in {file}", _ADVICE)
    misshapen = [
        f"{name} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if found[name].shape != shape
    ]
    if misshapen:
        raise LtxError(f"{network} has {some(misshapen, 'wrongly shaped tensor')} in {file}", _ADVICE)


def some(names: Sequence[str], noun: str = "tensor") -> str:
    """Returns the number of tensors, called `noun`, and the first few names, for error messages."""
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} ({first(names)})"
