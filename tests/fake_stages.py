"""A whole version folder in a few lines of numpy: three stages that keep a diary, and the manifest that names them."""

import numpy as np
from fakes import FunctionRunner

from ltx_runtime.components import text_encoder, transformer, vae_decoder
from ltx_runtime.manifest import ComponentEntry, Engines, Manifest
from ltx_runtime.versions import Version

CHANNELS, TEXT_CHANNELS = 4, 6
NOISE_MAPS = {"B": {2: (14, 2), 4: (12, 4), 6: (10, 8)}}


def encode(feeds):
    return {"text": np.repeat(feeds["ids"][..., None], TEXT_CHANNELS, 2).astype(np.float32)}


def velocity(feeds):
    """Depends on the text, so that another prompt or guidance makes another video."""
    said = np.sin((feeds["text"][..., 0] * feeds["text_mask"]).sum(1))[:, None, None]
    return {"velocity": (feeds["latents"] - said).astype(np.float32)}


def decode(feeds):
    """Every frame shows, as large cells, the first three channels of its latent frame."""
    latents = feeds["latents"][:, :3].repeat(8, 2)[:, :, 7:]
    return {"video": np.tanh(latents.repeat(32, 3).repeat(32, 4))}


class Stage(FunctionRunner):
    """Notes in a diary when it opens, runs and closes."""

    def __init__(self, name, diary):
        super().__init__({"text_encoder": encode, "transformer": velocity, "vae_decoder": decode}[name])
        self.name, self.diary = name, diary
        diary.append(f"open {name}")

    def run(self, feeds):
        self.diary.append(f"run {self.name} with {len(next(iter(feeds.values())))}")
        return super().run(feeds)

    def close(self):
        self.diary.append(f"close {self.name}")


def engines_of(version: Version, spiece) -> Engines:
    signatures = (
        text_encoder(TEXT_CHANNELS),
        transformer(CHANNELS, TEXT_CHANNELS, version.transformer.layers if version.uses_stg else 0),
        vae_decoder(CHANNELS, timestep=version.vae != "A", noise_maps=NOISE_MAPS.get(version.vae)),
    )
    components = {s.name: ComponentEntry(s, (f"{s.name}.data",), {"fp32": f"{s.name}.fp32.onnx"}) for s in signatures}
    return Engines(
        spiece.parent, Manifest(version.name, version.causal_positions, version.schedule, spiece.name, components)
    )
