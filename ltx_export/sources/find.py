"""Paths that the user gives -> the files of every network, and their opened tensors and configurations; without torch.

A weights folder holds an official single file, a diffusers layout, or a GGUF transformer, and beside it a T5, its
tokenizer, and optional upscalers; each of these can also be given by its own path. The VAE of a lone transformer lies
beside it. An all-in-one file holds its T5 itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltx_export.checkpoints.keys import NetworkName, Tensors, averages_in, networks_in, tensors_of
from ltx_export.checkpoints.readers import is_whole, kind_of, open_weights
from ltx_export.sources.layouts import Places, places_beside, places_in, snapshot_of
from ltx_export.sources.matching import matching, only, only_match
from ltx_export.sources.upscalers import Upscaler, UpscalerKind, find_upscaler, open_upscaler
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.spec.versions import VERSIONS, Version
from ltx_runtime.trust.pointers import refuse_pointer
from ltx_runtime.weights.checkpoint import Checkpoint
from ltx_runtime.weights.names import first

TEXT_ENCODER_FILE = "text_encoder.safetensors"
TOKENIZER_FILE = "tokenizer.model"

_T5_NAMES = ("text_encoder.safetensors", "text_encoder", "t5*.safetensors", "*t5*.gguf")
_TOKENIZER_NAMES = (TOKENIZER_FILE, "tokenizer/spiece.model", "spiece.model")
_TRANSFORMER_NAMES = ("*ltx*.gguf",)
_VAE_NAMES = ("vae", "*[vV][aA][eE]*.safetensors")
# Names of our files among those of other models.
_MIXED_TRANSFORMER_NAMES = ("*[lL][tT][xX]*.safetensors", "*[lL][tT][xX]*.gguf")
_MIXED_VAE_NAMES = ("*[lL][tT][xX]*.safetensors",)
# Component of the files that an option names.
_COMPONENTS = {
    **{"t5": "text_encoder", "tokenizer": "text_encoder"},
    **{"upscaler": "upsampler", "temporal-upscaler": "temporal_upsampler"},
}
_FP8 = "-fp8"
_LAYOUT_FOLDERS = ("transformer", "vae", "text_encoder")
_ARCHITECTURES: dict[NetworkName, tuple[str, ...]] = {"transformer": ("ltxv",), "text_encoder": ("t5", "t5encoder")}
# Architectures that stable-diffusion.cpp and gguf-org's converter write for any network; tensor names decide instead.
_GENERIC_ARCHITECTURES = ("", "pig")


@dataclass(frozen=True)
class Sources:
    """The files that an export reads.

    Attributes:
        checkpoint: an official single file, a folder in diffusers' layout, or the transformer alone.
        text_encoder: a file, an index of shards, or the folder that holds them; the checkpoint if it holds a T5 too.
        tokenizer: T5's SentencePiece model. Both are None for no text encoder.
        vae: file or folder of the VAE; None for the VAE in the checkpoint or, if it has none, the one beside it.
        variant: which weights of folders to open, e.g. `bf16`.
        upscaler, temporal_upscaler: upscalers that double height and width, and the frame rate; None for no upscaler.
    """

    checkpoint: Path
    text_encoder: Path | None
    tokenizer: Path | None
    vae: Path | None = None
    variant: str = ""
    upscaler: Path | None = None
    temporal_upscaler: Path | None = None


@dataclass(frozen=True)
class Opened:
    """Tensors of all networks under our names, and the configuration in their files.

    Attributes:
        config: configuration from the headers of the checkpoint and of the VAE's file.
        heads: number of attention heads from a diffusers configuration of the transformer, if there is one.
        notes: lines that say which tensors of the files are not used, where that is a choice.
        text_encoder, upscaler, temporal_upscaler: None if there is none.
    """

    transformer: Tensors
    vae: Tensors
    text_encoder: Tensors | None
    config: dict[str, Any] = field(default_factory=dict)
    heads: int | None = None
    upscaler: Upscaler | None = None
    temporal_upscaler: Upscaler | None = None
    notes: tuple[str, ...] = ()


def find_sources(
    version: Version,
    weights: Path,
    *,
    vae: Path | None = None,
    t5: Path | None = None,
    tokenizer: Path | None = None,
    variant: str = "",
    upscaler: Path | None = None,
    temporal_upscaler: Path | None = None,
    without: Collection[str] = (),
) -> Sources:
    """Finds the files of a version in a weights folder, or beside a weights file.

    Args:
        version: the release.
        weights: the folder or file.
        vae, t5, tokenizer, upscaler, temporal_upscaler: files or folders that are used instead of those found.
        variant: which weights of folders to open, e.g. `bf16`.
        without: components that are not exported, whose files are not looked for.

    Raises:
        LtxError: a file cannot be found, there are several candidates, or a given file would not be exported.
    """
    given = {"t5": t5, "tokenizer": tokenizer, "upscaler": upscaler, "temporal-upscaler": temporal_upscaler}
    _refuse_left_out(given, without)
    for path in (weights, vae, t5, tokenizer, upscaler, temporal_upscaler):
        if path is not None and not path.exists():
            raise LtxError(f"{path} not found", "check the path", _command(version) if path is weights else "")
    vae, t5 = vae and _network_in(vae, "vae"), t5 and _network_in(t5, "text_encoder")
    if weights.is_file():
        kind_of(weights)  # reports an unknown format before files missing beside it
    places = places_in(version, weights) if weights.is_dir() else places_beside(weights)
    checkpoint = _checkpoint_in(version, places) if weights.is_dir() else weights
    _refuse_other_release(version, checkpoint)
    if "text_encoder" not in without:
        t5 = t5 or _text_encoder_in(version, places, checkpoint)
        tokenizer = tokenizer or _tokenizer_near(version, places, t5)
    if "upsampler" not in without:
        upscaler = upscaler or _upscaler_in(version, places, "spatial")
    if "temporal_upsampler" not in without:
        temporal_upscaler = temporal_upscaler or _upscaler_in(version, places, "temporal")
    return Sources(checkpoint, t5, tokenizer, vae, variant, upscaler, temporal_upscaler)


def _refuse_left_out(given: Mapping[str, Path | None], without: Collection[str]) -> None:
    """Raises LtxError if a file was given, by the name of its option, of a component that is not exported."""
    for option, path in given.items():
        component = _COMPONENTS[option]
        if path is not None and component in without:
            raise LtxError(f"--{option} {path} has no effect with --without {component}", "leave one of them out")


def _refuse_other_release(version: Version, checkpoint: Path) -> None:
    """Raises LtxError if a checkpoint has the name of another release's official file."""
    release = _release_by_file_name(checkpoint)
    if release is not None and release.name != version.name:
        raise LtxError(
            f"{checkpoint} has the file name of {release.name}, not of {version.name}",
            "use the checkpoint's own version name",
        )


def has_checkpoint(version: Version, folder: Path) -> bool:
    """Returns whether a weights folder has a transformer that can be opened, in any format.

    Several transformers count as well: the export asks the user to choose, whereas a downloaded official file beside
    them would be taken without asking. A file with the official name counts even if it is damaged, because a download
    would overwrite it.

    Raises:
        LtxError: a folder that should hold a transformer cannot be read.
    """
    official, fp8 = _official_in(version, folder)
    candidates = (fp8, folder / "transformer", *matching(folder, _TRANSFORMER_NAMES))
    return official.is_file() or any(is_whole(path) for path in candidates)


def has_text_encoder(folder: Path) -> bool:
    """Returns whether a weights folder has a T5 that can be opened.

    Raises:
        LtxError: a folder that should hold a T5 cannot be read.
    """
    return any(is_whole(path) for path in matching(folder, _T5_NAMES))


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a weights folder has a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_NAMES)


def _network_in(path: Path, name: str) -> Path:
    """Returns the folder of one network if a path is a diffusers layout or a cached repository, or else the path."""
    folder = snapshot_of(path)
    return folder / name if (folder / name).is_dir() else folder


def _text_encoder_in(version: Version, places: Places, checkpoint: Path) -> Path:
    if _holds_text_encoder(checkpoint):
        return checkpoint
    not_found = LtxError(
        f"no T5 encoder in {places.text_encoders[0]}",
        "name one with --t5, or leave it out with --without text_encoder",
        _command(version),
    )
    return _required_match(places.text_encoders, _T5_NAMES, not_found, "--t5")


def _holds_text_encoder(checkpoint: Path) -> bool:
    """Returns whether a file holds a T5; what is wrong with a file is told when it is opened for the export."""
    if checkpoint.is_dir():
        return False
    try:
        return "text_encoder" in networks_in(open_weights(checkpoint))
    except LtxError:
        return False


def _checkpoint_in(version: Version, places: Places) -> Path:
    folder = places.checkpoints[0]
    for path in (path for place in places.checkpoints for path in _official_in(version, place)):
        if path.is_file():
            return path
    if places.is_mixed:
        return _transformer_among(version, places.checkpoints)
    if (folder / "transformer").is_dir():
        return folder
    resolved = folder.resolve()
    if resolved.name in _LAYOUT_FOLDERS and (resolved.parent / "transformer").is_dir():
        not_found = LtxError(
            f"{folder} is one network of a diffusers layout",
            f"give --weights the folder above, {resolved.parent}, or a file",
        )
    else:
        official = _official_in(version, folder)[0]
        not_found = LtxError(
            f"{official} not found, and no diffusers layout beside it",
            "give --weights the file itself if it has another name",
            _command(version),
        )
    return _required_match((folder,), _TRANSFORMER_NAMES, not_found, "--weights")


def _transformer_among(version: Version, folders: Sequence[Path]) -> Path:
    """Returns the only transformer in folders that also hold other models, and other releases of this one."""
    paths = [path for folder in folders for path in matching(folder, _MIXED_TRANSFORMER_NAMES)]
    releases = {path: _release_by_file_name(path) for path in paths}
    others = {path for path, release in releases.items() if release is not None and release.name != version.name}
    path = only([path for path in paths if path not in others], "--weights")
    if path is None:
        places = ", ".join(map(str, folders))
        advice = "give --weights the file itself if it has another name"
        raise LtxError(f"{version.checkpoint} is not in {places}", advice, _command(version))
    return path


def _official_in(version: Version, folder: Path) -> tuple[Path, Path]:
    """Returns the paths of a release's official file and of its fp8 sibling in a weights folder."""
    official = Path(version.checkpoint)
    return folder / official.name, folder / f"{official.stem}{_FP8}{official.suffix}"


def _release_by_file_name(checkpoint: Path) -> Version | None:
    """Returns the release whose official file has this name, also with the suffix of an fp8 or GGUF quantization."""
    stem = checkpoint.stem
    stems = {stem, stem.removesuffix(_FP8)}
    if checkpoint.suffix == ".gguf":
        stems.add(stem.rpartition("-")[0])  # `ltxv-13b-0.9.7-dev-Q4_K_M.gguf`
    return next((version for version in VERSIONS.values() if Path(version.checkpoint).stem in stems), None)


def _tokenizer_near(version: Version, places: Places, t5: Path) -> Path:
    for place in (*places.tokenizers, t5, t5.parent):
        for name in _TOKENIZER_NAMES:
            if (place / name).is_file():
                return place / name
    place = places.tokenizers[0]
    raise LtxError(f"no {' or '.join(_TOKENIZER_NAMES)} in {place}", "name it with --tokenizer", _command(version))


def _upscaler_in(version: Version, places: Places, kind: UpscalerKind) -> Path | None:
    return next(filter(None, (find_upscaler(version, place, kind) for place in places.upscalers)), None)


def _required_match(folders: Sequence[Path], patterns: tuple[str, ...], not_found: LtxError, option: str) -> Path:
    path = only_match(folders, patterns, option)
    if path is None:
        raise not_found
    return path


def _command(version: Version) -> str:
    return f"ltx-export download {version.name}" if version.repository else ""


def open_sources(sources: Sources) -> Opened:
    """Opens every file, reading headers only, and finds its networks.

    Raises:
        LtxError: a file is damaged, has an unknown format or another architecture, or lacks its network; or a variant
            is named but nothing is a folder.
    """
    _refuse_unused_variant(sources)
    is_layout = sources.checkpoint.is_dir()
    main = _open(sources.checkpoint / "transformer" if is_layout else sources.checkpoint, sources.variant)
    _check_architecture(main, "transformer")
    transformer = tensors_of(main, "transformer")
    holds_vae = "vae" in networks_in(main)
    vae = main if holds_vae and sources.vae is None else _open(_vae_path(sources, is_layout), sources.variant)
    text_encoder = None if sources.text_encoder is None else main
    if sources.text_encoder not in (None, sources.checkpoint):
        text_encoder = _open(sources.text_encoder, sources.variant)
        _check_architecture(text_encoder, "text_encoder")
    config = dict(main.config)
    if vae is not main:
        if holds_vae:
            config.pop("vae", None)  # it describes the checkpoint's own VAE, which is not used
        config |= {name: part for name, part in vae.config.items() if name == "vae"}
    heads = _heads(sources.checkpoint / "transformer" / "config.json") if is_layout else None
    upscaler, temporal_upscaler = (
        open_upscaler(path, sources.variant) if path else None for path in (sources.upscaler, sources.temporal_upscaler)
    )
    return Opened(
        transformer,
        tensors_of(vae, "vae"),
        None if text_encoder is None else tensors_of(text_encoder, "text_encoder"),
        config,
        heads,
        upscaler,
        temporal_upscaler,
        notes=tuple(_notes({file.path: file for file in (main, vae, text_encoder) if file}.values())),
    )


def _refuse_unused_variant(sources: Sources) -> None:
    paths = (sources.checkpoint, sources.vae, sources.text_encoder, sources.upscaler, sources.temporal_upscaler)
    if sources.variant and not any(path is not None and path.is_dir() for path in paths):
        raise LtxError(
            f"--variant {sources.variant} chooses among the files of a folder, but all weights are single files",
            "leave it out, or give a folder in diffusers' layout",
        )


def _notes(files: Iterable[Checkpoint]) -> Iterator[str]:
    for file in files:
        if averages := averages_in(file):
            yield f"{file.path}: moving averages beside the weights are not used ({first(averages)})"


def _open(path: Path, variant: str) -> Checkpoint:
    return open_weights(path, variant if path.is_dir() else "")


def _vae_path(sources: Sources, is_layout: bool) -> Path:
    if sources.vae is not None:
        return sources.vae
    if is_layout and not (sources.checkpoint / "vae").is_dir():
        raise LtxError(f"{sources.checkpoint / 'vae'} is missing", "download it too, or name a VAE with --vae")
    if is_layout:
        return sources.checkpoint / "vae"
    not_found = LtxError(
        f"{sources.checkpoint} holds no VAE, and there is none beside it", "name its file or folder with --vae"
    )
    places = places_beside(sources.checkpoint)
    if places.is_mixed:
        beside = only_match(places.vaes[:1], _VAE_NAMES, "--vae")
        return beside or _required_match(places.vaes[1:], _MIXED_VAE_NAMES, not_found, "--vae")
    return _required_match(places.vaes, _VAE_NAMES, not_found, "--vae")


def _check_architecture(checkpoint: Checkpoint, part: NetworkName) -> None:
    architecture = checkpoint.metadata.get("architecture") if kind_of(checkpoint.path) == ".gguf" else ""
    if architecture not in (*_GENERIC_ARCHITECTURES, *_ARCHITECTURES[part]):
        expected = " or ".join(_ARCHITECTURES[part])
        raise LtxError(
            f"{checkpoint.path} is a GGUF of architecture {architecture!r}, not {expected}", f"give the {part}'s file"
        )


def _heads(path: Path) -> int | None:
    """Returns the number of attention heads in a diffusers configuration of a transformer; None if it has none.

    The scheduler's configuration beside it is meant for diffusers' pipelines and not read: the schedule of a release
    comes from its version.

    Raises:
        LtxError: the file is damaged, or its number of heads is not a positive integer.
    """
    heads = _json(path).get("num_attention_heads")
    if heads is not None and (type(heads) is not int or heads < 1):
        raise LtxError(f"{path} has num_attention_heads {heads!r}, not a positive integer", "download it again")
    return heads


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    refuse_pointer(path)
    with explaining(f"read {path}"):
        raw = path.read_bytes()
    try:
        data = json.loads(raw)
        if not isinstance(data, dict | None):
            raise ValueError("not an object")
    except (ValueError, RecursionError):
        raise LtxError(f"{path} is not a JSON object", "download it again") from None
    return data or {}
