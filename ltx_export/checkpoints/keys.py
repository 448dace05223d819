"""State dict keys in files -> our parameter names, which are the official ones; renames those of diffusers and GGUF.

Every name has to match. This module knows nothing of models, and the caller passes the names and shapes it expects; it
does not import torch. Sources: diffusers' conversion of the official files, and llama.cpp's names of a T5 encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from ltx_export.checkpoints.checkpoint import Checkpoint, StoredTensor
from ltx_runtime.errors import LtxError

NetworkName = Literal["transformer", "vae", "text_encoder", "upsampler"]
Tensors = dict[str, StoredTensor]

# Prefixes of names in files that hold several networks, or that say which network they hold.
_PREFIXES: tuple[tuple[str, NetworkName], ...] = (
    ("model.diffusion_model.", "transformer"),
    ("diffusion_model.", "transformer"),
    ("transformer.", "transformer"),
    ("vae.", "vae"),
)
# Names that identify the network of a file without prefixes.
_MARKS: tuple[tuple[re.Pattern[str], NetworkName], ...] = (
    (re.compile(r"(patchify_proj|proj_in)\.weight"), "transformer"),
    (re.compile(r"encoder\.block\.0\.|enc\.blk\.0\."), "text_encoder"),
    (re.compile(r"(decoder|encoder)\.conv_in\.conv\.weight"), "vae"),
    (re.compile(r"initial_conv\.weight"), "upsampler"),
)
# Tensors in files that no network of ours has: unused statistics, a T5's decoder, the tokenizer in some repacked files.
_UNUSED: dict[NetworkName, tuple[str, ...]] = {
    "transformer": (),
    "vae": ("per_channel_statistics.channel", "per_channel_statistics.mean-of-stds"),
    "text_encoder": ("decoder.", "dec.", "lm_head.", "output.weight", "spiece_model"),
    "upsampler": (),
}

DIFFUSERS_WORDS = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}
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
_GGUF_T5 = {
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
_SCALES = (".scale_weight", ".scale_input", "scaled_fp8")  # names in files whose fp8 values need a scale
_MAX_SHOWN = 4
_ADVICE = "check that the file is for this version"


def networks_in(checkpoint: Checkpoint) -> dict[NetworkName, Tensors]:
    """Returns the networks in a checkpoint, with their tensors under our names.

    Raises:
        LtxError: the checkpoint has tensors of no known network, or two tensors for one name.
    """
    parts: dict[NetworkName, Tensors] = {}
    default_part = _network_by_marks(checkpoint.tensors)
    unknown_names: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        prefix, part = next((row for row in _PREFIXES if name.startswith(row[0])), ("", default_part))
        if part is None:
            unknown_names.append(name)
        else:
            parts.setdefault(part, {})[name.removeprefix(prefix)] = tensor
    if unknown_names:
        raise LtxError(
            f"{checkpoint.path} has {some(unknown_names)} not belonging to any known network",
            "give an LTX-Video or T5 file",
        )
    return {part: _renamed(checkpoint, part, tensors) for part, tensors in parts.items()}


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


def _network_by_marks(names: Iterable[str]) -> NetworkName | None:
    for name in names:
        for mark, part in _MARKS:
            if mark.match(name):
                return part
    return None


def _renamed(checkpoint: Checkpoint, part: NetworkName, tensors: Tensors) -> Tensors:
    rename = _renamer(part, tensors)
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(_UNUSED[part]):
            continue
        new_name = rename(name)
        if new_name in renamed and (new_name != _EMBEDDING or renamed[new_name].shape != tensor.shape):
            raise LtxError(f"{checkpoint.path} has two tensors for {new_name}", "give a file in one layout")
        renamed.setdefault(new_name, tensor)
    return renamed


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
        return f"encoder.block.{block[1]}.{_GGUF_T5.get(stem, stem)}{rest}"
    return _replaced(name, _GGUF_T5)


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
    if any(name.endswith(_SCALES) for name in extra):
        raise LtxError(
            f"{file} is scaled fp8 ({first(extra)}), which is not supported", "give plain fp8, fp16, bf16 or GGUF"
        )
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


def first(names: Sequence[str]) -> str:
    """Returns the first few names and the number of the others, for error messages."""
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more
