"""Files that an export of inspected weights lacks, and estimates of the networks' memory; without torch.

Uses the export's own search, so that exactly the files that the export would not find are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltx_export.inspection.facts import KINDS, File
from ltx_export.sources.find import find_sources
from ltx_export.sources.upscalers import find_upscaler
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import VERSIONS

_NEEDED = ("transformer", "vae", "text_encoder")


def missing_for(path: Path, files: Sequence[File], versions: Sequence[str]) -> list[str]:
    """Returns the files that an export of the inspected weights would lack, each with advice on how to get it.

    Args:
        path: the inspected path.
        files: results for its files.
        versions: releases that the files may belong to.
    """
    paths = {network["name"]: Path(file.path) for file in files for network in file.networks}
    if "transformer" not in paths:
        return [f"a {KINDS[part]}" for part in _NEEDED if part not in paths and paths.keys() - {"upsampler"}]
    main = paths["transformer"]
    weights, root = (path, path) if (path / "transformer").is_dir() else (main, main.parent)
    by_name = {version.checkpoint: version for version in VERSIONS.values()}
    version = by_name.get(weights.name, VERSIONS[[*versions, "demo"][0]])
    missing = [] if "vae" in paths or (root / "vae").is_dir() else ["a VAE"]
    for what, t5, tokenizer in (("a T5 text encoder", None, main), ("a tokenizer", main, None)):
        try:  # every file but the one in question is given, so that nothing else is searched
            find_sources(version, weights, t5=t5, tokenizer=tokenizer, upscaler=main, temporal_upscaler=main)
        except LtxError as error:
            missing.append(f"{what}: {error}")
    return [*missing, *_missing_upscalers(root, files, versions)]


def _missing_upscalers(root: Path, files: Sequence[File], versions: Sequence[str]) -> Iterator[str]:
    """Yields a line for every spatial upscaler that is not found; without it, only the first pass is exported."""
    upscalers = [file for file in files for network in file.networks if network["sizes"].get("resamples") == "spatial"]
    for name in {VERSIONS[version].upscaler: version for version in versions}.values():
        file_name, what = VERSIONS[name].upscaler, f"a spatial upscaler for the second pass of {name}"
        try:
            path = find_upscaler(VERSIONS[name], root, "spatial")
        except LtxError as error:
            yield f"{what}: {error}"
            continue
        if file_name is None or path is not None:
            continue
        if upscalers:
            yield f"{what} under its usual name: to take this one, give --upscaler {upscalers[0].path}"
        else:
            yield f"{what}, without which ltx-run needs --single-pass: {file_name}"


def memory_of(files: Sequence[File]) -> dict[str, Any]:
    """Estimates the memory of the largest network of each kind; returns an empty dict if there are no networks."""
    by_size = sorted(
        (network for file in files for network in file.networks), key=lambda network: network["size_bytes"]
    )
    networks = {_kind(network): network for network in by_size}.values()
    if not networks:
        return {}
    return {
        "cpu_mapped_bytes": sum(network["size_bytes"] for network in networks),
        "cpu_private_bytes": 2 * 4 * max(network["largest_elements"] for network in networks),
        "gpu_bytes": 2 * max(network["parameters"] for network in networks),
        "how": "estimates for the networks found here, which run one after another: a CPU maps the stored bytes and "
        "keeps the largest weight as float32 twice; a GPU keeps the largest network in bf16; activations come on top",
    }


def _kind(network: Mapping[str, Any]) -> tuple[str, str]:
    return network["name"], network["sizes"].get("resamples", "")
