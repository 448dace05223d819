"""Inputs and outputs of each graph as data: ports with named axes and dtypes.

The exporter's dynamic axes, the engine profiles, the check of inputs before a session runs, the random inputs of
parity checks, and the manifest's signature all come from here. This module knows nothing about sessions or files.

An axis is a fixed size, a name, or a linear function of a name: `128`, `rows`, `2*rows`, `8*frames-7`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.encodings import SINUSOID_CHANNELS
from ltx_runtime.spec.presets import STG_MODES

Axis = int | str
Dtype = Literal["float32", "int64"]
ComponentName = Literal["text_encoder", "vae_encoder", "transformer", "upsampler", "temporal_upsampler", "vae_decoder"]
COMPONENT_NAMES: tuple[ComponentName, ...] = get_args(ComponentName)  # in the order in which a run uses them
# Networks whose layers have tensors of different sizes, so that the next layer cannot reuse memory that one has freed.
UNEVEN: tuple[ComponentName, ...] = ("vae_encoder", "vae_decoder")
# Inputs that are the same for all steps of a video, and on which a large part of the transformer depends alone.
CONSTANT_INPUTS = frozenset({"text", "text_mask"})
OPTIONAL: tuple[ComponentName, ...] = ("text_encoder", "vae_encoder", "upsampler", "temporal_upsampler")

_LINE = re.compile(r"(?:(?P<factor>\d+)\*)?(?P<name>[a-z_]+)(?P<offset>[+-]\d+)?")


@dataclass(frozen=True)
class Line:
    """An axis of size `factor * sizes[name] + offset`."""

    name: str
    factor: int = 1
    offset: int = 0

    def size(self, of_name: int) -> int:
        return self.factor * of_name + self.offset


def line_of(axis: str) -> Line:
    """Parses an axis such as `rows`, `2*rows` or `8*frames-7`."""
    match = _LINE.fullmatch(axis)
    if match is None:
        raise ValueError(f"not an axis: {axis!r}")
    return Line(match["name"], int(match["factor"] or 1), int(match["offset"] or 0))


@dataclass(frozen=True)
class Port:
    """One input or output tensor of a graph."""

    name: str
    axes: tuple[Axis, ...]
    dtype: Dtype = "float32"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Returns the concrete shape for the given size of every axis name."""
        return tuple(axis if isinstance(axis, int) else _size(line_of(axis), sizes) for axis in self.axes)


def _size(line: Line, sizes: Mapping[str, int]) -> int:
    return line.size(sizes[line.name])


@dataclass(frozen=True)
class Component:
    """Signature of a graph: its input and output ports."""

    name: ComponentName
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def input(self, name: str) -> Port:
        """Returns the input port with this name; raises KeyError if there is none."""
        return {port.name: port for port in self.inputs}[name]

    def axis_names(self) -> tuple[str, ...]:
        """Returns the names of the inputs' dynamic axes, in order of appearance."""
        names = [line_of(a).name for port in self.inputs for a in port.axes if isinstance(a, str)]
        return tuple(dict.fromkeys(names))


def text_encoder(text_channels: int) -> Component:
    """Returns the ports of T5: token ids and their attention mask (1 = keep) to the last hidden state."""
    ids = ("batch", "text_tokens")
    return Component(
        "text_encoder",
        inputs=(Port("ids", ids, "int64"), Port("mask", ids, "int64")),
        outputs=(Port("text", (*ids, text_channels)),),
    )


def transformer(channels: int, text_channels: int, width: int, stg_layers: int = 0) -> Component:
    """Returns the ports of a DiT of this width: latents at a noise level to a velocity.

    `sinusoid` is that of the noise level, one for all tokens or one per token. `cosines` and `sines` are the rotation
    of every token by its position, the same for the whole batch. With `stg_layers` there is a `skip_mask` with a row
    for each of STG_MODES: where it is 0, that layer's self-attention returns each token's own value or its own input,
    or the whole block returns its input.
    """
    inputs: tuple[Port, ...] = (
        Port("latents", ("batch", "tokens", channels)),
        Port("sinusoid", ("batch", "timesteps", SINUSOID_CHANNELS)),
        Port("cosines", ("tokens", width // 2)),
        Port("sines", ("tokens", width // 2)),
        Port("text", ("batch", "text_tokens", text_channels)),
        Port("text_mask", ("batch", "text_tokens"), "int64"),
    )
    if stg_layers:
        inputs += (Port("skip_mask", (stg_layers, len(STG_MODES), "batch")),)
    return Component("transformer", inputs, (Port("velocity", ("batch", "tokens", channels)),))


def vae_decoder(channels: int, *, timestep: bool, noise_maps: Mapping[int, tuple[int, int]] | None = None) -> Component:
    """Returns the ports of the VAE decoder: normalized latents to video in about [-1, 1].

    With `timestep` it takes the `sinusoid` of the noise level of the latents. `noise_maps` gives, for every decoder
    block that injects noise, its number of maps and their scale relative to the latent grid; all samples and frames
    share the maps.
    """
    grid = ("frames", "rows", "columns")
    inputs: tuple[Port, ...] = (Port("latents", ("batch", channels, *grid)),)
    if timestep:
        inputs += (Port("sinusoid", ("batch", SINUSOID_CHANNELS)),)
    for block, (count, scale) in (noise_maps or {}).items():
        inputs += (Port(f"noise_{block}", (count, f"{scale}*rows", f"{scale}*columns")),)
    video = ("batch", 3, "8*frames-7", "32*rows", "32*columns")
    return Component("vae_decoder", inputs, (Port("video", video),))


def vae_encoder(channels: int) -> Component:
    """Returns the ports of the VAE encoder: video in [-1, 1] to the posterior of its normalized latents.

    The first half of the channels of `posterior` are means, the second half standard deviations.
    """
    grid = ("frames", "rows", "columns")
    video = ("batch", 3, "8*frames-7", "32*rows", "32*columns")
    return Component("vae_encoder", (Port("video", video),), (Port("posterior", ("batch", 2 * channels, *grid)),))


def upsampler(channels: int) -> Component:
    """Returns the ports of the spatial upsampler: normalized latents to those of twice the height and width."""
    return _upsampler("upsampler", channels, ("frames", "2*rows", "2*columns"))


def temporal_upsampler(channels: int) -> Component:
    """Returns the ports of the temporal upsampler: normalized latents to those of twice the frame rate."""
    return _upsampler("temporal_upsampler", channels, ("2*frames-1", "rows", "columns"))


def _upsampler(name: ComponentName, channels: int, upsampled: tuple[Axis, ...]) -> Component:
    latents = Port("latents", ("batch", channels, "frames", "rows", "columns"))
    return Component(name, (latents,), (Port("upsampled", ("batch", channels, *upsampled)),))


def check_feeds(component: Component, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """Checks names, dtypes and shapes of inputs against the ports, before a session runs.

    Returns:
        The size of every axis by name.

    Raises:
        ValueError: a port is missing or unknown, or has another dtype or shape; or an axis has two different sizes.
    """
    missing = {port.name for port in component.inputs} ^ feeds.keys()
    if missing:
        raise ValueError(f"{component.name}: ports {sorted(missing)} are missing or unknown")
    sizes: dict[str, int] = {}
    for port in component.inputs:
        array = feeds[port.name]
        if array.dtype != port.dtype or array.ndim != len(port.axes):
            raise ValueError(
                f"{component.name}.{port.name} is {array.dtype} {array.shape}, expected {port.dtype} {port.axes}"
            )
        for axis, size in zip(port.axes, array.shape, strict=True):
            _bind(component, port, axis, size, sizes)
    if sizes.get("timesteps") not in (None, 1, sizes.get("tokens")):
        raise ValueError(f"axis 'timesteps' is {sizes['timesteps']}, expected 1 or {sizes['tokens']}")
    return sizes


def check_outputs(component: Component, sizes: Mapping[str, int], outputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Checks dtypes and shapes of outputs against the ports, after a session ran; further outputs are left alone.

    Args:
        component: the ports.
        sizes: the size of every axis by name, as `check_feeds` returns it.
        outputs: the outputs by name.

    Raises:
        LtxError: an output has another dtype or shape than its port for inputs of these sizes.
    """
    for port in component.outputs:
        array = outputs.get(port.name)
        if array is not None and (array.dtype != port.dtype or array.shape != port.shape(sizes)):
            raise LtxError(
                f"the graph of {component.name} computes {port.name} as {array.dtype} {array.shape} instead of "
                f"{port.dtype} {port.shape(sizes)}",
                "export the version again",
            )


def _bind(component: Component, port: Port, axis: Axis, size: int, sizes: dict[str, int]) -> None:
    if isinstance(axis, int):
        expected = axis
    else:
        line = line_of(axis)
        expected = line.size(sizes.setdefault(line.name, (size - line.offset) // line.factor))
    if size != expected:
        raise ValueError(f"{component.name}.{port.name}: axis {axis!r} is {size}, expected {expected}")
