"""Inspects the weights at a path: kind, possible versions and reasons, networks, files that an export lacks, memory.

`ltx-export inspect` prints the result. The files are opened by the export's own readers, without torch; only headers
and a LoRA's alphas are read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ltx_export.checkpoints.blocks import BLOCK_FORMATS
from ltx_export.checkpoints.checkpoint import Checkpoint
from ltx_export.checkpoints.keys import NetworkName, Tensors, networks_in
from ltx_export.checkpoints.readers import has_shards, kind_of, open_weights, variants_in, weights_file
from ltx_export.checkpoints.shapes import RESAMPLED, transformer_part, vae_part
from ltx_export.checkpoints.values import FLOAT_DTYPES, float32_of
from ltx_export.inspection.facts import KINDS, Facts, File, Inspection
from ltx_export.inspection.needs import memory_of, missing_for
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import MANIFEST, read_manifest
from ltx_runtime.spec.versions import VERSIONS, Version

_FOLDERS = ("transformer", "vae", "text_encoder", "latent_upsampler")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "vae.")
_SCALED = {(True, False): "spatial", (False, True): "temporal", (True, True): "spatial and temporal"}
_FIELDS = {  # field of a header -> its name in the results
    **{"num_layers": "layers", "num_attention_heads": "heads", "attention_head_dim": "head_dim"},
    **{"cross_attention_dim": "width", "caption_channels": "text_channels", "latent_channels": "latent_channels"},
    **{"decoder_base_channels": "base_channels", "causal_temporal_positioning": "causal_positions"},
}
_RELEASES: dict[str, Facts] = {
    name: {**asdict(one.transformer), **asdict(one.vae_size), "width": one.transformer.width}
    | {"vae_generation": one.vae, "causal_positions": one.causal_positions}
    | {"is_distilled": not any(rule.uses_cfg or rule.uses_stg for each in one.passes for rule in each.guidance)}
    for name, one in VERSIONS.items()
}
# First and last components of all known tensor names; matrices rewritten by the export have scales and minimums.
_NAME = re.compile(
    r"(transformer_blocks|patchify_proj|proj_out|caption_projection|adaln_single|encoder|decoder|per_channel_statistics"
    r"|shared|upsampler|(post_upsample_)?res_blocks|(initial|final)_(conv|norm))\.(.+\.)?(weight(\.scales|\.minimums)?|bias"
    r"|(last_)?scale_shift_table|\w+-of-means|per_channel_scale[12]|timestep_scale_multiplier)|scale_shift_table"
)
# Key of a LoRA's down factor (rank, in): the trainer's prefix, the module, and the factor's suffix.
_LORA_DOWN = re.compile(r"((?:\w*model\.|transformer\.|lora_[a-z]+_)*).+?([._]lora[._](?:A.*|down)\.weight)")


def inspect(path: Path) -> Inspection:
    """Inspects a weights file, an index of shards, a folder of either, or a version folder.

    Damaged files in a folder do not raise an error, but are part of the results.

    Raises:
        LtxError: the path does not exist, is a damaged file or a single shard, or holds no known weights.
    """
    path = path.parent if path.name in (MANIFEST, "model_index.json") else path
    if not path.exists():
        raise LtxError(f"{path} not found", "check the path")
    if (path / MANIFEST).exists() or any(path.glob("[!.]*.onnx")):
        return _version_folder(path)
    if path.is_file() and _SHARD.search(path.name):
        raise LtxError(f"{path} is one shard of several", "give their index or folder")
    files = [_file(path, [])] if path.is_file() else [_file_or_problem(*place) for place in _places(path)]
    known = [file for file in files if file.kind not in ("unknown", "unreadable")]
    if not known and not any(file.problem for file in files):
        held = ", ".join(name for file in files for name in file.unknown_names[:2])
        below = ", ".join(sorted(place.name for place in path.glob("[!.]*") if place.is_dir())[:8])
        fit = f"one of its folders: {below}" if below else "LTX-Video's weights, a T5, an upscaler or a LoRA"
        raise LtxError(f"{path} holds no known weights{f' ({held})' if held else ''}", f"give {fit}")
    kind = (known or files)[0].kind
    if path.is_dir():
        whole = "diffusers folder" if (path / "transformer").is_dir() else "weights folder"
        kind = f"component folder: {kind}" if len(files) == 1 and files[0].variants else whole
    # Several checkpoints in a folder may belong to different releases, so that each is guessed separately.
    mains = [file for file in known if any(one["name"] == "transformer" for one in file.networks)]
    rest = [file for file in known if file not in mains]
    guesses = [_guess(path, [main, *rest]) for main in mains] or [_guess(path, rest)]
    versions = list(dict.fromkeys(name for names, _ in guesses for name in names))
    reasons = list(dict.fromkeys(reason for _, why in guesses for reason in why))
    return Inspection(
        str(path), kind, versions, reasons, files, {}, missing_for(path, known, versions), memory_of(known)
    )


def _places(path: Path) -> Iterator[tuple[Path, list[str]]]:
    told: list[Path] = []
    for folder in filter(Path.is_dir, (path, *(path / name for name in _FOLDERS))):
        found = variants_in(folder)
        told += [file for files in found.values() for file in files]
        if found or has_shards(folder):
            yield folder, sorted(found)
    for file in sorted((*path.glob("[!.]*.safetensors"), *path.glob("[!.]*.gguf"))):
        if not _SHARD.search(file.name) and file not in told:
            yield file, []


def _file_or_problem(path: Path, variants: list[str]) -> File:
    try:
        return _file(path, variants)
    except LtxError as error:
        return File(str(path), "unreadable", 0, variants, {}, [], {}, [], str(error))


def _file(path: Path, variants: list[str]) -> File:
    """Inspects a weights file, or the first variant in a component's folder."""
    path = weights_file(path, "".join(variants[:1])) if path.is_dir() else path
    checkpoint = open_weights(path)
    tensors, lora = checkpoint.tensors, _lora(checkpoint)
    strangers = {name for name in tensors if lora and not re.search(r"[._]lora[._](up|down|[AB])\.|\.alpha$", name)}
    try:
        parts = {} if lora else networks_in(checkpoint)
    except LtxError:
        strangers = {name for name in tensors if not name.startswith(_PREFIXES)}
        parts = networks_in(replace(checkpoint, tensors={n: tensors[n] for n in tensors if n not in strangers}))
    odd = {id(tensor) for part in parts.values() for name, tensor in part.items() if not _NAME.fullmatch(name)}
    unknown = [name for name, tensor in tensors.items() if name in strangers or id(tensor) in odd]
    networks = [_network(part, ours) for part, ours in parts.items()]
    kinds = " and ".join(f"{one['sizes'].get('resamples', '')} {KINDS[one['name']]}".strip() for one in networks)
    kind = f"GGUF {kinds}" if kind_of(path) == ".gguf" else kinds
    kind = "official single file" if {"transformer", "vae"} <= parts.keys() else kind
    kind = "LoRA" if lora else kind if len(unknown) < len(tensors) else "unknown"
    size_bytes = sum(file.stat().st_size for file in {tensor.file for tensor in tensors.values()})
    header = _said(checkpoint.config) if {"transformer", "vae"} & parts.keys() else {}
    return File(str(path), kind, size_bytes, variants, header, networks, lora, unknown)


def _network(part: NetworkName, tensors: Tensors) -> Facts:
    dtypes = Counter(tensor.dtype for tensor in tensors.values()).most_common()
    packed = {dtype: " matrices" for dtype, _ in dtypes if dtype in BLOCK_FORMATS or dtype.startswith("F8")}
    quantization = ", ".join(f"{dtype} {count}{packed.get(dtype, '')}" for dtype, count in dtypes if packed)
    elements = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    return {
        **{"name": part, "tensors": len(tensors), "parameters": sum(elements.values())},
        "size_bytes": sum(tensor.length for tensor in tensors.values()),
        # T5's embedding table does not count: its rows are looked up, not multiplied.
        "largest_elements": max((count for name, count in elements.items() if name != "shared.weight"), default=0),
        **{"dtypes": dict(dtypes), "quantization": quantization, "sizes": _sizes(part, tensors)},
    }


def _sizes(part: NetworkName, tensors: Tensors) -> Facts:
    try:
        if part == "transformer":
            return _said({part: {k: v for k, v in transformer_part(tensors, heads=1).items() if "head" not in k}})
        if part == "vae":
            return _said({part: vae_part(tensors)})
        if part == "text_encoder":
            blocks = sum(name.endswith(".q.weight") for name in tensors)
            return {"blocks": blocks, "text_channels": tensors["shared.weight"].shape[1]}
        unfolded, channels, *_ = tensors["upsampler.0.weight"].shape
        scaled = RESAMPLED.get(unfolded // channels, (False, False))
        return {"resamples": _SCALED.get(scaled, "unknown"), "mid_channels": channels}
    except (LtxError, LookupError, ValueError, ZeroDivisionError) as error:
        return {"problem": str(error)}


def _said(config: Mapping[str, Any]) -> Facts:
    """Returns the facts that distinguish releases, from a header or from shapes in the form of a header."""
    parts = (config.get(name) for name in ("transformer", "vae", "scheduler"))
    transformer, vae, scheduler = (part if isinstance(part, dict) else {} for part in parts)
    said: Facts = {_FIELDS[k]: v for k, v in (vae | transformer).items() if k in _FIELDS and isinstance(v, int)}
    said |= {k: v for k, v in scheduler.items() if k in ("sampler", "shifting") and isinstance(v, str)}
    if blocks := vae.get("decoder_blocks", vae.get("blocks")):
        late = "B" if "'inject_noise': True" in str(blocks) else "C"
        said["vae_generation"] = late if vae.get("timestep_conditioning") else "A"
    if steps := config.get("allowed_inference_steps"):
        said |= {"is_distilled": True, "allowed_inference_steps": str(steps)}
    return said


def _guess(path: Path, files: Sequence[File]) -> tuple[list[str], list[str]]:
    """Returns the releases that agree with all headers, shapes and (if any fits) file names, and the reasons."""
    left, reasons = list(VERSIONS), []
    said = [(f"header of {Path(file.path).name}", file.header) for file in files]
    said += [
        (f"shapes of the {one['name']} in {Path(file.path).name}", one["sizes"])
        for file in files
        for one in file.networks
    ]
    for source, facts in said:
        facts = {name: value for name, value in facts.items() if name in _RELEASES["demo"]}
        if facts:
            left = [name for name in left if facts.items() <= _RELEASES[name].items()]
            told = ", ".join(f"{name} {value}" for name, value in facts.items())
            reasons.append(f"{source}: {told}; this leaves {', '.join(left) or 'no release'}")
    left = left if reasons else [name for file in files for name in file.lora.get("versions", ())]
    names = [Path(file.path).name for file in files if file.networks]
    named = [one.name for one in VERSIONS.values() if _is_named(one, names, path if path.is_dir() else path.parent)]
    fits = [name for name in left if name in named]
    if named and left:
        reasons.append(f"names: {', '.join(named)}{'' if fits else ', which does not fit'}")
    if len(fits or left) > 1:
        reasons.append("nothing else distinguishes these; dev and distilled weights of one size have the same shapes")
    return fits or left, reasons


def _is_named(version: Version, files: Sequence[str], folder: Path) -> bool:
    """Returns whether file or folder names identify a release.

    These are the name of its official file, with any ending such as -fp8 or -Q8_0, or a folder with the name or an
    alias of the release, or with that of its diffusers repository.
    """
    names = (version.name, *version.aliases, (version.diffusers_repository or "?").rpartition("/")[2])
    stem = re.compile(re.escape(Path(version.checkpoint).stem) + r"(?!\w|\.\d)")
    return folder.absolute().name in names or any(stem.match(file) for file in files)


def _lora(checkpoint: Checkpoint) -> Facts:
    """Returns keys, ranks and alphas of a LoRA, and the releases that its widths fit; empty for another file."""
    matrices = {name: tensor for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 2}
    downs = {name: match for name in matrices if (match := _LORA_DOWN.fullmatch(name))}
    scalars = [one for name, one in checkpoint.tensors.items() if name.endswith(".alpha") and one.dtype in FLOAT_DTYPES]
    alphas = [str(float32_of(one).item()) for one in scalars if math.prod(one.shape) == 1]
    alphas += re.findall(r'lora_alpha": ([\d.]+)', str(checkpoint.metadata.get("lora_adapter_metadata")))
    widths = {tensor.shape[name in downs] for name, tensor in matrices.items()}  # columns of down, rows of up
    fits = {
        n: {256, r["channels"], r["text_channels"], *(r["width"] * k for k in (1, 4, 6))} for n, r in _RELEASES.items()
    }
    return downs and {
        "keys": sorted({f"{match[1]}*{match[2]}" for match in downs.values()}),
        "modules": len(downs),
        "ranks": dict(Counter(str(matrices[name].shape[0]) for name in downs)),
        "alphas": dict(Counter(alphas)),
        "versions": [name for name, one in _RELEASES.items() if one["width"] in widths <= fits[name]],
    }


def _version_folder(path: Path) -> Inspection:
    manifest = read_manifest(path)
    places = {name: manifest.place(path, name) for name in manifest.files}
    weights = dict.fromkeys(name for entry in manifest.components.values() for name in entry.weights)
    files = [_file_or_problem(places[name], []) for name in weights if places[name].is_file()]
    engines = {
        **{"causal_positions": manifest.causal_positions, "linked": manifest.linked, "loras": [*manifest.loras]},
        "precisions": {name: [*one.graphs] for name, one in manifest.components.items()},
        "weights": {name: [*one.weights] for name, one in manifest.components.items()},
        "size_bytes": {name: one.size_bytes for name, one in manifest.files.items()},
    }
    gone = [str(place) for place in places.values() if not place.is_file()]
    return Inspection(
        str(path), "version folder", [manifest.version], [MANIFEST], files, engines, gone, memory_of(files)
    )
