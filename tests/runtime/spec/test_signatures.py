"""Laws of signatures: those of every release are accepted, and no change of a port is."""

from dataclasses import replace

import pytest
from fakes.stages import NOISE_MAPS

from ltx_runtime.spec.components import (
    temporal_upsampler,
    text_encoder,
    transformer,
    upsampler,
    vae_decoder,
    vae_encoder,
)
from ltx_runtime.spec.signatures import check_signatures

SIGNATURES = (
    text_encoder(64),
    vae_encoder(8),
    transformer(8, 64, 12, 4),
    upsampler(8),
    temporal_upsampler(8),
    vae_decoder(8, timestep=True, noise_maps=NOISE_MAPS["B"]),
)
# Ports that only some transformers and decoders have.
OPTIONAL = {("transformer", "skip_mask"), ("vae_decoder", "sinusoid")} | {
    ("vae_decoder", f"noise_{block}") for block in NOISE_MAPS["B"]
}
EVERY_SIGNATURE = pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.name)


def changes_of(port):
    """Yields every port that differs from a port in one thing."""
    yield replace(port, name="other")
    yield replace(port, dtype="int64" if port.dtype == "float32" else "float32")
    yield replace(port, axes=(*port.axes, 1))
    yield replace(port, axes=port.axes[:-1])
    for place, axis in enumerate(port.axes):
        for other in ("other", 0, -1, 10**9, 7 if isinstance(axis, str) else f"{axis}*rows"):
            yield replace(port, axes=(*port.axes[:place], other, *port.axes[place + 1 :]))


def test_the_signatures_of_a_release_fit_each_other():
    check_signatures(SIGNATURES)
    check_signatures([transformer(8, 64, 12), vae_decoder(8, timestep=False)])


@EVERY_SIGNATURE
def test_no_port_of_a_signature_can_be_changed_left_out_or_added(signature):
    for side in ("inputs", "outputs"):
        ports = getattr(signature, side)
        for place, port in enumerate(ports):
            others = [(other,) for other in changes_of(port)]
            left_out = () if (signature.name, port.name) in OPTIONAL else ((),)
            for some in ((port, port), *left_out, *others):
                with pytest.raises(ValueError, match=signature.name):
                    check_signatures([replace(signature, **{side: (*ports[:place], *some, *ports[place + 1 :])})])


@pytest.mark.parametrize("other", [text_encoder(65), vae_encoder(4), vae_decoder(9, timestep=False), upsampler(4)])
def test_components_that_hand_on_other_numbers_of_channels_are_refused(other):
    with pytest.raises(ValueError, match=r"(latents|text) have .* and .* channels"):
        check_signatures([transformer(8, 64, 12), other])
