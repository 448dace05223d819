"""Records what the official LTX-Video code computes, so that tests can compare without installing it.

Source: `ltx-video` 0.1.2 from PyPI (Lightricks), run in float32 on the CPU with torch 2.13.0 (CPU build),
diffusers 0.42.1, transformers 5.23.0, einops 0.8.2, safetensors 0.8.0 and numpy 2.4.6 on Python 3.11.
Reproduce with

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 einops==0.8.2 \
        safetensors==0.8.0 numpy==2.4.6 sentencepiece
    golden-venv/bin/pip install --no-deps ltx-video==0.1.2
    golden-venv/bin/python tests/golden/make_golden.py

A second run on the same machine writes the same bytes; another CPU may differ in the last bits. The models
are tiny and their weights follow `tests/oracles/weight_rule.py`. Tensors are called `<case>/<name>`; the metadata
holds, under the name of each case, the JSON of its settings, with configs as in a checkpoint header.
"""

import json
import sys
import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors.numpy import save

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import official  # noqa: E402

Tensors = dict[str, np.ndarray]
Cases = dict[str, tuple[dict, Tensors]]  # name -> (settings, tensors)

HEAD_DIMS = {"2b": 64, "13b": 128}
SMALL_GRID, LARGE_GRID = (2, 2, 3), (3, 4, 5)
# name: (size, causal, fps, timestep per token, batch, grid, skip strategy)
DIT_CASES = {
    "2b_non_causal_25fps": ("2b", False, 25, False, 1, SMALL_GRID, None),
    "2b_non_causal_30fps_per_token_batch": ("2b", False, 30, True, 2, LARGE_GRID, None),
    "2b_causal_25fps_per_token": ("2b", True, 25, True, 1, SMALL_GRID, None),
    "2b_causal_30fps_batch": ("2b", True, 30, False, 2, LARGE_GRID, None),
    "13b_non_causal_25fps_batch": ("13b", False, 25, False, 2, LARGE_GRID, None),
    "13b_non_causal_30fps_per_token": ("13b", False, 30, True, 1, SMALL_GRID, None),
    "13b_causal_25fps_per_token_batch": ("13b", True, 25, True, 2, LARGE_GRID, None),
    "13b_causal_30fps": ("13b", True, 30, False, 1, SMALL_GRID, None),
    "2b_skip_attention_values": ("2b", True, 25, False, 2, SMALL_GRID, "AttentionValues"),
    "2b_skip_attention": ("2b", True, 25, False, 2, SMALL_GRID, "AttentionSkip"),
    "2b_skip_block": ("2b", True, 25, False, 2, SMALL_GRID, "TransformerBlock"),
    "13b_skip_attention_values": ("13b", True, 30, False, 2, SMALL_GRID, "AttentionValues"),
}
TEXT_LENGTHS = (5, 3)  # number of unmasked tokens in each batch row; the rest is padding
TEXT_TOKENS = 8
SKIPPED_LAYER = 1

VIDEO_STRIDE = 19  # every 19th value in C order is stored: from all channels, frames, rows and columns
DECODER_LATENTS = {"pair": (2, 8, 3, 3, 2), "single": (1, 8, 2, 2, 3)}
DECODE_TIMESTEPS = (0.05, 0.3)  # one per batch row

LINEAR_QUADRATIC = {"num_train_timesteps": 1000, "sampler": "LinearQuadratic"}
SHIFTED_UNIFORM = {
    "num_train_timesteps": 1000,
    "shifting": "SD3",
    "base_resolution": None,
    "target_shift_terminal": 0.1,
}


def normal(name: str, *shape: int) -> np.ndarray:
    """Draws float32 values from N(0, 1) that depend on the name alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


# --- transformer ----------------------------------------------------------------------------------


def dit_config(size: str, causal: bool) -> dict:
    width = 2 * HEAD_DIMS[size]
    return {
        "_class_name": "Transformer3DModel",
        "num_attention_heads": 2,
        "attention_head_dim": HEAD_DIMS[size],
        "cross_attention_dim": width,
        "in_channels": 16,
        "out_channels": 16,
        "caption_channels": 24,
        "num_layers": 2,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_type": "default",
        "dropout": 0.0,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "qk_norm": "rms_norm",
        "standardization_norm": "rms_norm",
        "adaptive_norm": "single_scale_shift",
        "num_embeds_ada_norm": 1000,
        "positional_embedding_type": "rope",
        "positional_embedding_theta": 10000.0,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "timestep_scale_multiplier": 1000,
        "causal_temporal_positioning": causal,
    }


def dit_cases() -> Cases:
    cases: Cases = {}
    for name, (size, causal, fps, per_token, batch, grid, strategy) in DIT_CASES.items():
        config = dit_config(size, causal)
        coords = official.token_coords(grid, batch, fps, causal)
        inputs = dit_inputs(name, batch, coords.shape[-1], per_token) | {"coords": coords.numpy()}
        model = official.transformer(config)
        if strategy:
            mask = model.create_skip_layer_mask(1, batch, batch - 1, [SKIPPED_LAYER])  # one condition per row
            inputs["skip_mask"] = mask.numpy()
        settings = {"transformer": config, "grid": grid, "fps": fps, "skip_layer_strategy": strategy}
        cases[name] = (settings, inputs | {"velocity": velocity(model, inputs, strategy)})
    return cases


def dit_inputs(name: str, batch: int, tokens: int, per_token: bool) -> Tensors:
    timestep = np.full((batch, tokens if per_token else 1), 0.9, np.float32)
    if per_token:
        timestep[:, : tokens // 3] = 0  # conditioning tokens stay clean
    lengths = np.array(TEXT_LENGTHS[:batch])[:, None]
    return {
        "latents": normal(f"{name}/latents", batch, tokens, 16),
        "timestep": timestep,
        "text": normal(f"{name}/text", batch, TEXT_TOKENS, 24),
        "text_mask": (np.arange(TEXT_TOKENS) < lengths).astype(np.int64),
    }


def velocity(model: torch.nn.Module, inputs: Tensors, strategy: str | None) -> np.ndarray:
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return model(
        given["latents"],
        indices_grid=given["coords"],
        encoder_hidden_states=given["text"],
        encoder_attention_mask=given["text_mask"],
        timestep=given["timestep"],
        skip_layer_mask=given.get("skip_mask"),
        skip_layer_strategy=strategy and official.SkipLayerStrategy[strategy],
        return_dict=False,
    )[0].numpy()


# --- VAE decoder ----------------------------------------------------------------------------------


def vae_config(blocks: dict, timestep_conditioning: bool) -> dict:
    return {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "encoder_base_channels": 8,
        "decoder_base_channels": 8,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
        "timestep_conditioning": timestep_conditioning,
        **blocks,
    }


def vae_configs() -> dict[str, dict]:
    """Returns configs with the block lists of 0.9.0 (A), 0.9.1 (B) and 0.9.5 (C), with one or two layers per block."""
    first = [["res_x", 2]]
    first += [["compress_all", 1], ["res_x_y", 1], ["res_x", 1]]
    first += [["compress_all", 1], ["res_x_y", 1], ["res_x", 2]]
    first += [["compress_all", 1], ["res_x", 1], ["res_x", 2]]
    last_encoder: list[list] = []
    for kind in ("space", "time", "all", "all"):
        last_encoder += [["res_x", 1], [f"compress_{kind}_res", {"multiplier": 2}]]
    last_encoder += [["res_x", 1]]
    quiet, noisy = (False,) * 4, (True, True, True, False)
    b_quiet, b_noisy = (upsampling_decoder((1, 2, 2, 1), noise) for noise in (quiet, noisy))
    c_decoder = upsampling_decoder((2, 1, 1, 2), quiet)
    return {
        "a": vae_config({"blocks": first}, False),
        "b_quiet": vae_config({"encoder_blocks": first, "decoder_blocks": b_quiet}, True),
        "b_noisy": vae_config({"encoder_blocks": first, "decoder_blocks": b_noisy}, True),
        "c": vae_config({"encoder_blocks": last_encoder, "decoder_blocks": c_decoder}, True),
    }


def upsampling_decoder(layers: tuple[int, ...], noise: tuple[bool, ...]) -> list[list]:
    """Returns residual blocks with upsamplers between them, in the order of a config: the reverse of application."""
    blocks: list[list] = []
    for count, inject_noise in zip(layers, noise, strict=True):
        blocks += [["res_x", {"num_layers": count, "inject_noise": inject_noise}]]
        blocks += [["compress_all", {"residual": True, "multiplier": 2}]]
    return blocks[:-1]


def vae_decoder_cases() -> Cases:
    cases: Cases = {}
    for generation, config in vae_configs().items():
        for size, shape in DECODER_LATENTS.items():
            name = f"{generation}_{size}"
            tensors = {"latents": normal(f"{name}/latents", *shape)}
            if config["timestep_conditioning"]:
                tensors["timestep"] = np.array(DECODE_TIMESTEPS[: shape[0]], np.float32)
            video, noise = decode(official.vae(config), name, tensors)
            settings = {"vae": config, "video_shape": video.shape, "video_stride": VIDEO_STRIDE}
            cases[name] = (settings, tensors | noise | {"video": video.reshape(-1)[::VIDEO_STRIDE]})
    return cases


def decode(model: torch.nn.Module, name: str, tensors: Tensors) -> tuple[np.ndarray, Tensors]:
    """Un-normalizes and decodes; returns the video and the noise maps of each up block in call order."""
    maps: dict[int, list[np.ndarray]] = {}
    entered: list[int] = []
    for i, block in enumerate(model.decoder.up_blocks):
        block.register_forward_pre_hook(lambda *_, i=i: entered.append(i))

    def drawn(size: torch.Size, **_: object) -> torch.Tensor:
        drawn_here = maps.setdefault(entered[-1], [])
        drawn_here.append(normal(f"{name}/noise_{entered[-1]}/{len(drawn_here)}", *size))
        return torch.from_numpy(drawn_here[-1])

    given = {key: torch.from_numpy(array) for key, array in tensors.items()}
    with patch.object(torch, "randn", drawn):
        video = official.vae_decode(**given, vae=model, vae_per_channel_normalize=True)
    return video.numpy(), {f"noise_{i}": np.stack(drawn_here) for i, drawn_here in maps.items()}


# --- sampler --------------------------------------------------------------------------------------


def sampler_cases() -> Cases:
    cases: Cases = {}
    for steps in (4, 8, 20, 30, 40):
        cases[f"linear_quadratic_{steps}"] = timestep_case(LINEAR_QUADRATIC, steps, tokens=384)
    for steps in (20, 40):
        for tokens in (384, 4992, 13376):
            cases[f"shifted_uniform_{steps}_{tokens}_tokens"] = timestep_case(SHIFTED_UNIFORM, steps, tokens)
    cases["steps_deterministic"] = step_case("steps_deterministic", stochastic=False)
    cases["steps_stochastic"] = step_case("steps_stochastic", stochastic=True)
    return cases


def scheduler(config: dict, steps: int, tokens: int) -> official.RectifiedFlowScheduler:
    made = official.RectifiedFlowScheduler.from_config(config)
    made.set_timesteps(steps, samples_shape=torch.Size((1, tokens, 128)))
    return made


def timestep_case(config: dict, steps: int, tokens: int) -> tuple[dict, Tensors]:
    settings = {"scheduler": config, "steps": steps, "tokens": tokens}
    return settings, {"timesteps": scheduler(config, steps, tokens).timesteps.numpy()}


def step_case(name: str, stochastic: bool, steps: int = 8) -> tuple[dict, Tensors]:
    """Records steps of the linear-quadratic schedule: latents[i + 1] comes from latents[i], velocity[i], noise[i]."""
    made = scheduler(LINEAR_QUADRATIC, steps, tokens=6)
    velocities = normal(f"{name}/velocity", steps, 2, 6, 4)
    noise = normal(f"{name}/noise", steps, 2, 6, 4)
    latents = [torch.from_numpy(normal(f"{name}/latents", 2, 6, 4))]
    for i, t in enumerate(made.timesteps):
        with patch.object(torch, "randn_like", lambda _, i=i: torch.from_numpy(noise[i])):
            after = made.step(torch.from_numpy(velocities[i]), t.view(1, 1), latents[-1], False, stochastic)
        latents += [after[0]]
    tensors = {"timesteps": made.timesteps.numpy(), "velocity": velocities}
    tensors |= {"latents": torch.stack(latents).numpy()} | ({"noise": noise} if stochastic else {})
    return {"scheduler": LINEAR_QUADRATIC, "steps": steps}, tensors


# --- files ----------------------------------------------------------------------------------------


def write(path: Path, cases: Cases) -> None:
    """Writes one golden file with a sorted header, because the library's order of metadata changes from run to run."""
    tensors: Tensors = {}
    for case, (_, arrays) in cases.items():
        tensors |= {f"{case}/{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    raw = save(tensors, {case: json.dumps(settings) for case, (settings, _) in cases.items()})
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


def main() -> None:
    torch.set_num_threads(1)  # for a fixed order of summation
    with torch.no_grad():
        write(HERE / "dit.safetensors", dit_cases())
        write(HERE / "vae_decoder.safetensors", vae_decoder_cases())
        write(HERE / "sampler.safetensors", sampler_cases())


if __name__ == "__main__":
    main()
