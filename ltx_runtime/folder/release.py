"""The release of a version folder, with the sizes of the transformer that is in it: a fine-tune may have others."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from ltx_runtime.folder.manifest import Manifest
from ltx_runtime.spec.components import Axis
from ltx_runtime.spec.versions import TransformerSize, Version, find_version


def release_of(manifest: Manifest) -> Version:
    """Returns the release of a version folder, with the sizes that its transformer's ports show.

    The number of blocks shows only in a graph that can skip some. How the width is split into heads does not show: the
    release's number of heads is taken, or a divisor of it.

    Raises:
        LtxError: no release has the name in the manifest.
    """
    version = find_version(manifest.version)
    transformer = manifest.components.get("transformer")
    if transformer is None:
        return version
    ports = {port.name: port for port in transformer.signature.inputs}
    layers = _size(ports["skip_mask"].axes[0]) if "skip_mask" in ports else version.transformer.layers
    width = 2 * _size(ports["cosines"].axes[-1])
    heads = gcd(version.transformer.heads, width)
    channels, text_channels = (_size(ports[name].axes[-1]) for name in ("latents", "text"))
    return replace(version, transformer=TransformerSize(layers, heads, width // heads, text_channels, channels))


def _size(axis: Axis) -> int:
    assert isinstance(axis, int)  # as every export writes it
    return axis
