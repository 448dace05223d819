"""Networks of a tiny release in torch alone, with its checkpoint's weights in float32."""

from dataclasses import dataclass

from safetensors.torch import load_file
from samples.tiny import Exported
from torch import Tensor, nn

from ltx_export.models.dit import Transformer
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.models.upsampler import LatentUpsampler, Statistics
from ltx_export.models.vae import VaeDecoder
from ltx_export.models.vae_encoder import VaeEncoder
from ltx_export.networks.header import header_config, transformer_config, vae_config
from ltx_export.networks.upsampler import upsampler_config, upsampler_header
from ltx_export.networks.vae_encoder import encoder_config

# The components of every release; an upsampler comes in a file of its own.
NETWORKS = ("text_encoder", "vae_encoder", "transformer", "vae_decoder")


@dataclass(frozen=True)
class Networks:
    """Modules of a release; the upsampler is None if the release has none."""

    text_encoder: nn.Module
    vae_encoder: nn.Module
    transformer: nn.Module
    upsampler: nn.Module | None
    vae_decoder: nn.Module


def networks_of(release: Exported) -> Networks:
    header, text = header_config(release.version), release.version.text_encoder
    sizes = (text.layers, text.width, text.heads, text.head_dim, text.hidden, text.vocabulary)
    checkpoint = load_file(release.sources.checkpoint)
    return Networks(
        text_encoder=_loaded(TextEncoder(T5Config(*sizes)), load_file(release.sources.text_encoder), ""),
        vae_encoder=_loaded(VaeEncoder(encoder_config(header["vae"])), checkpoint, "vae."),
        transformer=_loaded(
            Transformer(transformer_config(header["transformer"])), checkpoint, "model.diffusion_model."
        ),
        upsampler=_upsampler_of(release, checkpoint),
        vae_decoder=_loaded(VaeDecoder(vae_config(header["vae"])), checkpoint, "vae."),
    )


def _upsampler_of(release: Exported, checkpoint: dict[str, Tensor]) -> nn.Module | None:
    if release.sources.upscaler is None:
        return None
    prefix = "vae.per_channel_statistics."
    statistics = Statistics(*(checkpoint[f"{prefix}{of}-of-means"].float().numpy() for of in ("mean", "std")))
    module = LatentUpsampler(upsampler_config(upsampler_header(release.version)), statistics)
    return _loaded(module, load_file(release.sources.upscaler), "")


def _loaded(module: nn.Module, stored: dict[str, Tensor], prefix: str) -> nn.Module:
    module.load_state_dict({name: stored[prefix + name].float() for name, _ in module.named_parameters()})
    return module.eval().requires_grad_(False)
