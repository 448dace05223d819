"""The Hugging Face hub -> a release's weights folder: fetches missing files and checks the existing ones.

The export reads that folder. This module knows which files a release needs and which of them the folder has;
`ltx_runtime/hub` fetches and checks them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ltx_export.sources.find import has_checkpoint, has_text_encoder, has_tokenizer
from ltx_export.sources.upscalers import has_upscaler, temporal_upscaler_of
from ltx_runtime.errors import LtxError
from ltx_runtime.hub.environment import influences, prepare
from ltx_runtime.hub.folder import Report, complete, filling, is_available_offline
from ltx_runtime.hub.remote import Published, RemoteFile, UnreachableError, ask
from ltx_runtime.spec.versions import Version
from ltx_runtime.weights.checkpoint import open_safetensors

TOKENIZER = "tokenizer/spiece.model"
TEXT_ENCODER_INDEX = "text_encoder/model.safetensors.index.json"
GGUF_REPOSITORY = "city96/t5-v1_1-xxl-encoder-gguf"
_QUANTIZATIONS = ("Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "f16", "f32")
# Text encoder -> its file: the index of the shards in the release's text repository, or a file of GGUF_REPOSITORY.
T5_CHOICES = {"bf16": TEXT_ENCODER_INDEX} | {name: f"t5-v1_1-xxl-encoder-{name}.gguf" for name in _QUANTIZATIONS}
NO_T5 = "none"

# SHA-256 of published files, by repository and name, where several independent projects state the same one. Those of
# other files are known from the hub alone.
PINNED = {
    ("Lightricks/LTX-Video", "ltxv-2b-0.9.8-distilled.safetensors"): (
        "76aa8c4786af752fa6f951947129d5290c3c6c0b2fadcadea6b5e114ae2cad8f"
    ),
    ("Lightricks/LTX-Video", "ltxv-spatial-upscaler-0.9.8.safetensors"): (
        "5b076031c6f860db9037a54f3bb819f10bfb5532ea26a6d30062292428a0c208"
    ),
}

_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_PRECISIONS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def files_of(version: Version, t5: str, *, temporal_upscaler: bool = False) -> list[RemoteFile]:
    """Returns the files of a release's weights folder; for a sharded text encoder, only the index of its shards.

    Raises:
        LtxError: the release is not published, the text encoder is unknown, or there is no temporal upscaler.
    """
    if version.repository is None:
        raise LtxError(
            f"the weights of {version.name} come with this program", command=f"ltx-export onnx {version.name}"
        )
    if t5 not in (*T5_CHOICES, NO_T5):
        raise LtxError(f"unknown text encoder {t5!r}", f"use one of {', '.join(T5_CHOICES)} or {NO_T5}")
    temporal = temporal_upscaler_of(version) if temporal_upscaler else None
    if temporal_upscaler and temporal is None:
        raise LtxError(f"no upscalers were published for {version.name}", "leave --temporal-upscaler out")
    names = (version.checkpoint, version.upscaler, temporal)
    places = [(version.repository, name) for name in names if name is not None]
    places.append((version.text_repository, TOKENIZER))
    if t5 != NO_T5:
        encoder = T5_CHOICES[t5]
        places.append((version.text_repository if encoder == TEXT_ENCODER_INDEX else GGUF_REPOSITORY, encoder))
    return [RemoteFile(repository, name, target=name) for repository, name in places]


def download(
    version: Version,
    folder: Path,
    t5: str,
    report: Report,
    *,
    only_missing: bool = False,
    temporal_upscaler: bool = False,
) -> None:
    """Completes a release's weights folder. If the hub cannot be reached, a folder that has every file is accepted.

    Args:
        version: the release.
        folder: its weights folder, created if missing; files keep the paths they have in their repositories.
        t5: a key of `T5_CHOICES`, or NO_T5.
        report: called with each line of progress.
        only_missing: accept existing files in any format and under any name, without comparing checksums, and fetch
            only the files that the folder lacks.
        temporal_upscaler: whether to fetch the temporal upscaler too.

    Raises:
        LtxError: a file cannot be fetched, the disk is full, a checksum is wrong, or the hub has another file than the
            one that is known to be published. A partial file is kept, unless its checksum is wrong.
    """
    files = files_of(version, t5, temporal_upscaler=temporal_upscaler)
    if only_missing:
        files = [file for file in files if not _folder_has(version, file, folder)]
        if not files:
            report(f"{folder} has every file")
            return
    prepare()
    with filling(folder, "download"):
        try:
            shards = _complete_with_hub(files, folder, report)
        except UnreachableError as error:
            shards = _complete_without_hub(files, folder, str(error), report)
        if shards:
            _report_precision(shards, folder, report)


def _folder_has(version: Version, file: RemoteFile, folder: Path) -> bool:
    """Returns whether the folder has this file, or another one that the export can use in its place."""
    if file.name == version.checkpoint:
        return has_checkpoint(version, folder)
    if file.name in T5_CHOICES.values():
        return has_text_encoder(folder)
    if (folder / file.target).is_file():
        return True
    if file.name == TOKENIZER:
        return has_tokenizer(folder)
    return has_upscaler(folder, "spatial" if file.name == version.upscaler else "temporal")


def _complete_with_hub(files: Sequence[RemoteFile], folder: Path, report: Report) -> list[RemoteFile]:
    """Completes the folder from the hub, and returns the text encoder's shards.

    The hub is asked for the metadata of all files before the first large one is fetched.
    """
    all_published = [_pinned(ask(file)) for file in files]
    index = [published for published in all_published if published.file.name == TEXT_ENCODER_INDEX]
    complete(index, folder, report)
    shards = [shard for published in index for shard in _shards(published.file, folder)]
    complete(
        [published for published in all_published if published not in index] + [ask(shard) for shard in shards],
        folder,
        report,
    )
    return shards


def _pinned(published: Published) -> Published:
    """Returns what the hub says of a file, if it is the file that is known to be published.

    Raises:
        LtxError: its checksum is another one than that in PINNED.
    """
    file = published.file
    expected = PINNED.get((file.repository, file.name), published.checksum)
    if published.checksum != expected:
        raise LtxError(
            f"{file.repository}/{file.name} has SHA-256 {published.checksum}, but the file that was published has "
            f"{expected}",
            "check HF_ENDPOINT; if its owner has replaced the file, update this program, or export a copy of the first "
            "one with ltx-export onnx --weights FILE",
        )
    return published


def _complete_without_hub(files: Sequence[RemoteFile], folder: Path, reason: str, report: Report) -> list[RemoteFile]:
    """Completes the folder from the shared cache, without checking existing files; returns the text encoder's shards.

    Raises:
        LtxError: a file is neither in the folder nor in the cache.
    """
    missing = [file for file in files if not is_available_offline(file, folder, report)]
    index = [file for file in files if file.name == TEXT_ENCODER_INDEX and file not in missing]
    shards = [shard for file in index for shard in _shards(file, folder)]
    missing += [shard for shard in shards if not is_available_offline(shard, folder, report)]
    if missing:
        names = ", ".join(file.target for file in missing)
        raise LtxError(f"{reason}, and {folder} lacks {names}", f"check {influences()}")
    report(f"{reason}: the {len(files) + len(shards)} files in {folder} could not be checked against the hub")
    return shards


def _shards(index: RemoteFile, folder: Path) -> list[RemoteFile]:
    """Returns the shards that an index in the folder names; they lie beside the index.

    Raises:
        LtxError: the file is not an index of shards, or names something other than plain .safetensors files.
    """
    path = folder / index.target
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        if not names or not all(_SHARD.fullmatch(name) for name in names):
            raise ValueError(f"names {names}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LtxError(
            f"{path} is not an index of safetensors files ({error!r})",
            "delete it; check HF_ENDPOINT if the error returns",
        ) from None
    parent = index.name.rpartition("/")[0]
    return [RemoteFile(index.repository, f"{parent}/{name}", f"{parent}/{name}") for name in names]


def _report_precision(shards: Sequence[RemoteFile], folder: Path, report: Report) -> None:
    dtypes = {tensor.dtype for shard in shards for tensor in open_safetensors(folder / shard.target).tensors.values()}
    names = ", ".join(sorted(_PRECISIONS.get(dtype, dtype) for dtype in dtypes))
    report(f"the text encoder is stored in {names}, as {shards[0].repository} has it; the export converts it")
