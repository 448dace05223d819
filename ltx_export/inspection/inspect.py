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
from ltx_export.checkpoints.keys import NetworkName, Tensors, averages_in, names_of_no_network, networks_in
from ltx_export.checkpoints.readers import has_shards, kind_of, open_weights, variants_in, weights_file
from ltx_export.checkpoints.shapes import RESAMPLED, transformer_part, vae_part
from ltx_export.checkpoints.values import float32_of
from ltx_export.inspection.facts import KINDS, Facts, File, Inspection
from ltx_export.inspection.needs import memory_of, missing_for
from ltx_export.sources.layouts import snapshot_of
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import MANIFEST, Engines
from ltx_runtime.folder.reading import listed_path, read_manifest
from ltx_runtime.spec.versions import VERSIONS, Version
from ltx_runtime.weights.checkpoint import Checkpoint
from ltx_runtime.weights.floats import FLOAT_DTYPES

_FOLDERS = ("transformer", "vae", "text_encoder", "latent_upsampler")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_RESAMPLING_NAMES = {(True, False): "spatial", (False, True): "temporal", (True, True): "spatial and temporal"}
_FIELDS = {  # field of a header -> its name in the results
    **{"num_layers": "layers", "num_attention_heads": "heads", "attention_head_dim": "head_dim"},
    **{"cross_attention_dim": "width", "caption_channels": "text_channels", "latent_channels": "latent_channels"},
    **{"decoder_base_channels": "base_channels", "causal_temporal_positioning": "causal_positions"},
}
_RELEASES: dict[str, Facts] = {
    name: {**asdict(version.transformer), **asdict(version.vae_size), "width": version.transformer.width}
    | {"vae_generation": version.vae, "causal_positions": version.causal_positions}
    | {
        "is_distilled": not any(
            rule.uses_cfg or rule.uses_stg for sampling_pass in version.passes for rule in sampling_pass.guidance
        )
    }
    for name, version in VERSIONS.items()
}
# First and last components of all known tensor names; matrices rewritten by the export have scales and minimums.
_KNOWN_NAME = re.compile(
    r"(transformer_blocks|patchify_proj|proj_out|caption_projection|adaln_single|encoder|decoder|per_channel_statistics"
    r"|shared|upsampler|(post_upsample_)?res_blocks|(initial|final)_(conv|norm))\.(.+\.)?(weight(\.scales|\.minimums)?|bias"
    r"|(last_)?scale_shift_table|\w+-of-means|per_channel_scale[12]|timestep_scale_multiplier)|scale_shift_table"
)
# Key of a LoRA's down factor (rank, in): the trainer's prefix, the module, and the factor's suffix.
_LORA_NAME = re.compile(r"[._]lora[._](up|down|[AB])\.|\.(alpha|diff|diff_b)$")
_LORA_DIFFERENCE = re.compile(r".+\.diff(_b)?")
_LORA_DOWN = re.compile(r"((?:\w*model\.|transformer\.|lora_[a-z]+_)*).+?([._]lora[._](?:A.*|down)\.weight)")


def inspect(path: Path, *, trust: bool = False) -> Inspection:
    """Inspects a weights file, an index of shards, a folder of either, or a version folder.

    Damaged files in a folder do not raise an error, but are part of the results.

    Args:
        path: the file or folder.
        trust: whether files are looked at to which a version folder links, and the user has not made the link.

    Raises:
        LtxError: the path does not exist, is a damaged file or a single shard, holds no known weights, or is a version
            folder that names files outside it.
    """
    path = path.parent if path.name in (MANIFEST, "model_index.json") else path
    if not path.exists():
        raise LtxError(f"{path} not found", "check the path")
    path = snapshot_of(path)
    if (path / MANIFEST).exists() or any(path.glob("[!.]*.onnx")):
        return _version_folder(path, trust)
    if path.is_file() and _SHARD.search(path.name):
        raise LtxError(f"{path} is one shard of several", "give their index or folder")
    files = [_file(path, [])] if path.is_file() else [_file_or_problem(*place) for place in _places(path)]
    known_files = [file for file in files if file.kind not in ("unknown", "unreadable")]
    if not known_files and not any(file.problem for file in files):
        unknown_names = ", ".join(name for file in files for name in file.unknown_names[:2])
        folders = ", ".join(sorted(child.name for child in path.glob("[!.]*") if child.is_dir())[:8])
        choices = f"one of its folders: {folders}" if folders else "LTX-Video's weights, a T5, an upscaler or a LoRA"
        raise LtxError(
            f"{path} holds no known weights{f' ({unknown_names})' if unknown_names else ''}", f"give {choices}"
        )
    kind = (known_files or files)[0].kind
    if path.is_dir():
        folder_kind = "diffusers folder" if (path / "transformer").is_dir() else "weights folder"
        kind = f"component folder: {kind}" if len(files) == 1 and files[0].variants else folder_kind
    # Several checkpoints in a folder may belong to different releases, so that each is guessed separately.
    transformers = [file for file in known_files if any(network["name"] == "transformer" for network in file.networks)]
    rest = [file for file in known_files if file not in transformers]
    guesses = [_guess(path, [transformer, *rest]) for transformer in transformers] or [_guess(path, rest)]
    versions = list(dict.fromkeys(name for names, _ in guesses for name in names))
    reasons = list(dict.fromkeys(reason for _, why in guesses for reason in why))
    return Inspection(
        str(path), kind, versions, reasons, files, {}, missing_for(path, known_files, versions), memory_of(known_files)
    )


def _places(path: Path) -> Iterator[tuple[Path, list[str]]]:
    variant_files: list[Path] = []
    for folder in filter(Path.is_dir, (path, *(path / name for name in _FOLDERS))):
        variants = variants_in(folder)
        variant_files += [file for files in variants.values() for file in files]
        if variants or has_shards(folder):
            yield folder, sorted(variants)
    for file in sorted((*path.glob("[!.]*.safetensors"), *path.glob("[!.]*.gguf"))):
        if not _SHARD.search(file.name) and file not in variant_files:
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
    foreign_names = {name for name in tensors if lora and not _LORA_NAME.search(name)}
    parts: dict[NetworkName, Tensors] = {}
    if not lora:
        foreign_names = {*names_of_no_network(checkpoint), *averages_in(checkpoint)}
        known = {name: tensor for name, tensor in tensors.items() if name not in foreign_names}
        parts = networks_in(replace(checkpoint, tensors=known))
    unknown_places = {
        (tensor.file, tensor.offset)
        for part in parts.values()
        for name, tensor in part.items()
        if not _KNOWN_NAME.fullmatch(name)
    }
    unknown_names = [
        name
        for name, tensor in tensors.items()
        if name in foreign_names or (tensor.file, tensor.offset) in unknown_places
    ]
    networks = [_network(part, part_tensors) for part, part_tensors in parts.items()]
    kinds = " and ".join(
        f"{network['sizes'].get('resamples', '')} {KINDS[network['name']]}".strip() for network in networks
    )
    kind = f"GGUF {kinds}" if kind_of(path) == ".gguf" else kinds
    kind = "official single file" if {"transformer", "vae"} <= parts.keys() else kind
    kind = "all-in-one file" if {"transformer", "vae", "text_encoder"} <= parts.keys() else kind
    kind = "LoRA" if lora else kind if len(unknown_names) < len(tensors) else "unknown"
    size_bytes = sum(file.stat().st_size for file in {tensor.file for tensor in tensors.values()})
    header = _distinguishing_facts(checkpoint.config) if {"transformer", "vae"} & parts.keys() else {}
    return File(str(path), kind, size_bytes, variants, header, networks, lora, unknown_names)


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
            return _distinguishing_facts(
                {part: {k: v for k, v in transformer_part(tensors, heads=1).items() if "head" not in k}}
            )
        if part == "vae":
            return _distinguishing_facts({part: vae_part(tensors)})
        if part == "text_encoder":
            blocks = sum(name.endswith(".q.weight") for name in tensors)
            return {"blocks": blocks, "text_channels": tensors["shared.weight"].shape[1]}
        unfolded, channels, *_ = tensors["upsampler.0.weight"].shape
        axes = RESAMPLED.get(unfolded // channels, (False, False))
        return {"resamples": _RESAMPLING_NAMES.get(axes, "unknown"), "mid_channels": channels}
    except (LtxError, LookupError, ValueError, ZeroDivisionError) as error:
        return {"problem": str(error)}


def _distinguishing_facts(config: Mapping[str, Any]) -> Facts:
    """Returns the facts that distinguish releases, from a header or from shapes in the form of a header."""
    parts = (config.get(name) for name in ("transformer", "vae", "scheduler"))
    transformer, vae, scheduler = (part if isinstance(part, dict) else {} for part in parts)
    facts: Facts = {_FIELDS[k]: v for k, v in (vae | transformer).items() if k in _FIELDS and isinstance(v, int)}
    facts |= {k: v for k, v in scheduler.items() if k in ("sampler", "shifting") and isinstance(v, str)}
    if blocks := vae.get("decoder_blocks", vae.get("blocks")):
        generation = "B" if "'inject_noise': True" in str(blocks) else "C"
        facts["vae_generation"] = generation if vae.get("timestep_conditioning") else "A"
    if steps := config.get("allowed_inference_steps"):
        facts |= {"is_distilled": True, "allowed_inference_steps": str(steps)}
    return facts


def _guess(path: Path, files: Sequence[File]) -> tuple[list[str], list[str]]:
    """Returns the releases that agree with all headers, shapes and (if any fits) file names, and the reasons."""
    candidates, reasons = list(VERSIONS), []
    evidence = [(f"header of {Path(file.path).name}", file.header) for file in files]
    evidence += [
        (f"shapes of the {network['name']} in {Path(file.path).name}", network["sizes"])
        for file in files
        for network in file.networks
    ]
    for source, facts in evidence:
        facts = {name: value for name, value in facts.items() if name in _RELEASES["demo"]}
        if facts:
            candidates = [name for name in candidates if facts.items() <= _RELEASES[name].items()]
            listed = ", ".join(f"{name} {value}" for name, value in facts.items())
            reasons.append(f"{source}: {listed}; this leaves {', '.join(candidates) or 'no release'}")
    candidates = candidates if reasons else [name for file in files for name in file.lora.get("versions", ())]
    names = [Path(file.path).name for file in files if file.networks]
    named_releases = [
        version.name
        for version in VERSIONS.values()
        if _is_named(version, names, path if path.is_dir() else path.parent)
    ]
    matches = [name for name in candidates if name in named_releases]
    if named_releases and candidates:
        reasons.append(f"names: {', '.join(named_releases)}{'' if matches else ', which does not fit'}")
    if len(matches or candidates) > 1:
        reasons.append("nothing else distinguishes these; dev and distilled weights of one size have the same shapes")
    return matches or candidates, reasons


def _is_named(version: Version, files: Sequence[str], folder: Path) -> bool:
    """Returns whether file or folder names identify a release.

    These are the name of its official file, with any ending such as -fp8 or -Q8_0, or a folder with the name or an
    alias of the release, or with that of its diffusers repository.
    """
    names = (version.name, *version.aliases, (version.diffusers_repository or "?").rpartition("/")[2])
    stem = re.compile(re.escape(Path(version.checkpoint).stem) + r"(?!\w|\.\d)")
    return folder.absolute().name in names or any(stem.match(file) for file in files)


def _lora(checkpoint: Checkpoint) -> Facts:
    """Returns keys, ranks, alphas and whole differences of a LoRA, and the releases that its widths fit.

    The result is empty for another file.
    """
    matrices = {name: tensor for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 2}
    downs = {name: match for name in matrices if (match := _LORA_DOWN.fullmatch(name))}
    scalars = [
        tensor
        for name, tensor in checkpoint.tensors.items()
        if name.endswith(".alpha") and tensor.dtype in FLOAT_DTYPES
    ]
    alphas = [str(float32_of(tensor).item()) for tensor in scalars if math.prod(tensor.shape) == 1]
    alphas += re.findall(r'lora_alpha": ([\d.]+)', str(checkpoint.metadata.get("lora_adapter_metadata")))
    widths = {tensor.shape[name in downs] for name, tensor in matrices.items()}  # columns of down, rows of up
    possible_widths = {
        name: {256, release["channels"], release["text_channels"], *(release["width"] * k for k in (1, 4, 6))}
        for name, release in _RELEASES.items()
    }
    differences = sum(_LORA_DIFFERENCE.fullmatch(name) is not None for name in checkpoint.tensors)
    if not downs and not differences:
        return {}
    return {
        "keys": sorted({f"{match[1]}*{match[2]}" for match in downs.values()}),
        "modules": len(downs),
        **({"differences": differences} if differences else {}),
        "ranks": dict(Counter(str(matrices[name].shape[0]) for name in downs)),
        "alphas": dict(Counter(alphas)),
        "versions": [
            name for name, release in _RELEASES.items() if release["width"] in widths <= possible_widths[name]
        ],
    }


def _version_folder(path: Path, trust: bool) -> Inspection:
    manifest = read_manifest(path)
    opened = Engines(path, manifest, trust)
    places = {name: listed_path(opened, name) for name in manifest.files}
    weights = {
        component: dict.fromkeys(name for precision in entry.graphs for name in entry.weights_of(precision))
        for component, entry in manifest.components.items()
    }
    names = dict.fromkeys(name for of_component in weights.values() for name in of_component)
    files = [_file_or_problem(places[name], []) for name in names if places[name].is_file()]
    engines = {
        **{"causal_positions": manifest.causal_positions, "linked": manifest.linked, "loras": [*manifest.loras]},
        "precisions": {name: [*entry.graphs] for name, entry in manifest.components.items()},
        "weights": {name: [*of_component] for name, of_component in weights.items()},
        "size_bytes": {name: file.size_bytes for name, file in manifest.files.items()},
    }
    missing = [str(place) for place in places.values() if not place.is_file()]
    return Inspection(
        str(path), "version folder", [manifest.version], [MANIFEST], files, engines, missing, memory_of(files)
    )
