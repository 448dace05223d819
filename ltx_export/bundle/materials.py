"""The bill of materials of a bundle: every distribution in it with version, checksum and licence (CycloneDX 1.6)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ltx_export.bundle.wheel_file import Wheel
from ltx_runtime.folder.manifest import Manifest
from ltx_runtime.packages import DISTRIBUTION, RELEASE
from ltx_runtime.spec.versions import Version

_HUB = "https://huggingface.co/{}"


def bill_of_materials(version: Version, manifest: Manifest, wheels: Iterable[Wheel]) -> str:
    """Returns the bill of materials as JSON: libraries, and the networks with the place of their licence.

    Libraries that were compiled into a wheel are not listed; their licences lie inside the wheel. There is neither a
    date nor a serial number in it, so the same contents give the same text.
    """
    networks: dict[str, Any] = {
        "type": "machine-learning-model",
        "name": f"LTX-Video {version.name}",
        "version": manifest.version,
        "description": ", ".join(manifest.components),
    }
    if version.repository is not None:
        networks["description"] += "; the licence of the weights lies in their repository"
        networks["externalReferences"] = [{"type": "license", "url": _HUB.format(version.repository)}]
    return json.dumps(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": {"type": "application", "name": DISTRIBUTION, "version": RELEASE}},
            "components": [*map(_library, wheels), networks],
        },
        indent=1,
    )


def _library(wheel: Wheel) -> dict[str, Any]:
    library: dict[str, Any] = {
        "type": "library",
        "name": wheel.name,
        "version": wheel.version,
        "purl": f"pkg:pypi/{wheel.name}@{wheel.version}",
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
    }
    if wheel.licence:
        stated = {"expression": wheel.licence} if wheel.is_expression else {"license": {"name": wheel.licence}}
        library["licenses"] = [stated]
    return library
