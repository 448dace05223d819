"""Holds signatures that a file gives against the ports of the components, so that a run can rely on both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from ltx_runtime.errors import shown
from ltx_runtime.spec import components
from ltx_runtime.spec.components import Axis, Component, ComponentName, Port

# Most channels, layers and noise maps: several times those of the largest release, and small beside any memory.
_MOST_CHANNELS, _MOST_WIDTH, _MOST_LAYERS, _MOST_MAPS, _MOST_SCALE = 1024, 16_384, 256, 1024, 32
_NOISE_MAPS = re.compile(r"noise_([0-9]{1,2})", re.ASCII)
_SCALED_ROWS = re.compile(r"([1-9][0-9]?)\*rows", re.ASCII)


def check_signatures(signatures: Iterable[Component]) -> None:
    """Checks that signatures of components have the ports of these components, and fit each other.

    The sizes that a fine-tune may change are taken from a signature itself: channels, widths and numbers of layers and
    noise maps. All else must be as `components` says, with these sizes.

    Raises:
        ValueError: a port is missing, unknown, or another one, a size is out of range, or two components have another
            number of channels for latents or text that one hands to the other.
    """
    latents: dict[int, str] = {}
    text: dict[int, str] = {}
    for signature in signatures:
        name = signature.name
        _refuse_difference(signature, _PORTS_OF[name](signature))
        for port in (*signature.inputs, *signature.outputs):
            if port.name in ("latents", "posterior", "text"):
                axis = port.axes[1] if "frames" in port.axes else port.axes[-1]
                assert isinstance(axis, int)
                count = axis // 2 if port.name == "posterior" else axis  # means, and as many standard deviations
                (text if port.name == "text" else latents).setdefault(count, name)
    for what, sizes in (("latents", latents), ("text", text)):
        if len(sizes) > 1:
            listed = " and ".join(f"{count} in {name}" for count, name in sizes.items())
            raise ValueError(f"{what} have {listed} channels")


def _refuse_difference(signature: Component, expected: Component) -> None:
    """Raises ValueError with the first port of a signature that is not the expected one."""
    for kind, ports, right in (
        ("input", signature.inputs, expected.inputs),
        ("output", signature.outputs, expected.outputs),
    ):
        if [port.name for port in ports] != [port.name for port in right]:
            names = ", ".join(port.name for port in right)
            raise ValueError(f"{signature.name} has the {kind}s {shown([port.name for port in ports])}, not {names}")
        for port, other in zip(ports, right, strict=True):
            if port != other:
                described = f"{shown(port.dtype)} {shown([*port.axes])}, not {other.dtype} {shown([*other.axes])}"
                raise ValueError(f"{signature.name} has the {kind} {port.name} as {described}")


def _text_encoder(signature: Component) -> Component:
    return components.text_encoder(_size(signature, signature.outputs, "text", -1, _MOST_WIDTH))


def _vae_encoder(signature: Component) -> Component:
    return components.vae_encoder(_size(signature, signature.outputs, "posterior", 1, 2 * _MOST_CHANNELS) // 2)


def _transformer(signature: Component) -> Component:
    def size(port: str, axis: int, most: int) -> int:
        return _size(signature, signature.inputs, port, axis, most)

    layers = size("skip_mask", 0, _MOST_LAYERS) if _has(signature, "skip_mask") else 0
    channels, text_channels = size("latents", -1, _MOST_CHANNELS), size("text", -1, _MOST_WIDTH)
    return components.transformer(channels, text_channels, 2 * size("cosines", -1, _MOST_WIDTH // 2), layers)


def _upsampler(signature: Component) -> Component:
    make = components.upsampler if signature.name == "upsampler" else components.temporal_upsampler
    return make(_size(signature, signature.inputs, "latents", 1, _MOST_CHANNELS))


def _vae_decoder(signature: Component) -> Component:
    maps = {}
    for port in signature.inputs:
        number = _NOISE_MAPS.fullmatch(port.name)
        scale = _SCALED_ROWS.fullmatch(str(port.axes[1])) if len(port.axes) > 1 else None
        if number is not None and scale is not None and int(scale[1]) <= _MOST_SCALE:
            count = _size(signature, signature.inputs, port.name, 0, _MOST_MAPS)
            maps[int(number[1])] = count, int(scale[1])
    channels = _size(signature, signature.inputs, "latents", 1, _MOST_CHANNELS)
    return components.vae_decoder(channels, timestep=_has(signature, "sinusoid"), noise_maps=maps)


_PORTS_OF: dict[ComponentName, Callable[[Component], Component]] = {
    "text_encoder": _text_encoder,
    "vae_encoder": _vae_encoder,
    "transformer": _transformer,
    "upsampler": _upsampler,
    "temporal_upsampler": _upsampler,
    "vae_decoder": _vae_decoder,
}


def _has(signature: Component, port: str) -> bool:
    return port in {each.name for each in signature.inputs}


def _size(signature: Component, ports: Sequence[Port], name: str, axis: int, most: int) -> int:
    """Returns the fixed size of an axis of a port. Raises ValueError if it has none from 1 to `most`."""
    axes: tuple[Axis, ...] = next((port.axes for port in ports if port.name == name), ())
    size = axes[axis] if -len(axes) <= axis < len(axes) else None
    if not isinstance(size, int) or not 1 <= size <= most:
        raise ValueError(f"axis {axis} of {name} of {signature.name} is {shown(size)}, not a number from 1 to {most}")
    return size
