"""The bill of materials of a bundle: each distribution with version, checksum, licence and needs (CycloneDX 1.6)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ltx_export.bundle.wheel_file import Wheel
from ltx_runtime.folder.manifest import Manifest
from ltx_runtime.packages import DISTRIBUTION, RELEASE
from ltx_runtime.spec.versions import Version

_HUB = "https://huggingface.co/{}"
_BUNDLE, _NETWORKS = "bundle", "networks"  # how the bill refers to what is no package


def bill_of_materials(version: Version, manifest: Manifest, wheels: Sequence[Wheel]) -> str:
    """Returns the bill of materials as JSON: libraries, and the networks with the place of their licence.

    The checksums are those of the wheels; SHA256SUMS beside the bill has those of all files. Libraries that were
    compiled into a wheel are not listed; their licences lie inside the wheel. There is neither a date nor a serial
    number in it, so the same contents give the same text.
    """
    networks: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _NETWORKS,
        "name": f"LTX-Video {version.name}",
        "version": manifest.version,
        "description": ", ".join(manifest.components),
    }
    if version.repository is not None:
        networks["description"] += "; the licence of the weights lies in their repository"
        networks["externalReferences"] = [{"type": "license", "url": _HUB.format(version.repository)}]
    whole = {"type": "application", "bom-ref": _BUNDLE, "name": DISTRIBUTION, "version": RELEASE}
    return json.dumps(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": whole},
            "components": [*map(_library, wheels), networks],
            "dependencies": _needs(wheels),
        },
        indent=1,
    )


def _needs(wheels: Sequence[Wheel]) -> list[dict[str, Any]]:
    """Returns which component needs which: all in the bundle that a wheel states, for any system and extra."""
    from packaging.utils import canonicalize_name  # noqa: PLC0415  (20 ms, for bundles only)

    addresses = {wheel.name: _address(wheel) for wheel in wheels}
    needs = {_BUNDLE: [*addresses.values(), _NETWORKS], _NETWORKS: []}
    for wheel in wheels:
        names = {canonicalize_name(need.name) for need in wheel.needs} - {wheel.name}
        needs[addresses[wheel.name]] = [addresses[name] for name in sorted(names & addresses.keys())]
    return [{"ref": ref, "dependsOn": others} for ref, others in needs.items()]


def _address(wheel: Wheel) -> str:
    return f"pkg:pypi/{wheel.name}@{wheel.version}"


def _library(wheel: Wheel) -> dict[str, Any]:
    library: dict[str, Any] = {
        "type": "library",
        "bom-ref": _address(wheel),
        "name": wheel.name,
        "version": wheel.version,
        "purl": _address(wheel),
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
    }
    if wheel.licence:
        stated = {"expression": wheel.licence} if wheel.is_expression else {"license": {"name": wheel.licence}}
        library["licenses"] = [stated]
    return library
