"""Names in files -> our parameter names, strictly. Modules bear the official names, so only prefixes go.

Knows nothing of models: the caller brings the names and shapes it expects. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from ltx_export.checkpoint import Checkpoint, StoredTensor
from ltx_runtime.components import ComponentName
from ltx_runtime.errors import LtxError

_TRANSFORMER = "model.diffusion_model."
_VAE = "vae."
_VAE_DECODER = ("vae.decoder.", "vae.per_channel_statistics.")

# In every official file, used by no network of ours: the encoder has no graph, the other statistics no use.
_UNUSED = (
    "vae.encoder.",
    "vae.per_channel_statistics.channel",
    "vae.per_channel_statistics.mean-of-stds",
)
_EMBEDDING_ALIAS = "encoder.embed_tokens.weight"
_EMBEDDING = "shared.weight"
_SHOWN = 4


def component_tensors(checkpoint: Checkpoint, component: ComponentName) -> dict[str, StoredTensor]:
    """The tensors of one component under our names.

    Raises:
        LtxError: the file holds none of them.
    """
    if component == "text_encoder":
        found = _text_encoder_tensors(checkpoint)
    else:
        prefixes, strip = ((_TRANSFORMER,), _TRANSFORMER) if component == "transformer" else (_VAE_DECODER, _VAE)
        found = {
            name.removeprefix(strip): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(prefixes) and not name.startswith(_UNUSED)
        }
    if not found:
        wanted = "a T5 encoder as one file" if component == "text_encoder" else "an official single-file checkpoint"
        raise LtxError(f"{checkpoint.file} holds no {component} - give {wanted}")
    return found


def _text_encoder_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    found = {name: t for name, t in checkpoint.tensors.items() if name.startswith(("encoder.", "shared."))}
    alias = found.pop(_EMBEDDING_ALIAS, None)
    if alias is not None:
        found.setdefault(_EMBEDDING, alias)
    return found


def refuse_unknown(checkpoint: Checkpoint) -> None:
    """Raises LtxError if a unified checkpoint has tensors that belong to no component."""
    known = (_TRANSFORMER, *_VAE_DECODER, *_UNUSED)
    strangers = [name for name in checkpoint.tensors if not name.startswith(known)]
    if strangers:
        raise LtxError(f"{checkpoint.file} has {_some(strangers)} of no known component - give an official file")


def check_names(
    component: ComponentName, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, StoredTensor]
) -> None:
    """Checks that every expected tensor is there in its shape, and no other.

    Raises:
        LtxError: lists the first missing, unexpected or misshapen names.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise LtxError(f"{component} lacks {_some(missing)} - is it the right version?")
    extra = [name for name in found if name not in expected]
    if extra:
        raise LtxError(f"{component} has unexpected {_some(extra)} - is it the right version?")
    misshapen = [
        f"{name} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if found[name].shape != shape
    ]
    if misshapen:
        raise LtxError(f"{component} has {_some(misshapen)} - is it the right version?")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:_SHOWN])}{more})"
