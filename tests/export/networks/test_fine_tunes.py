"""Fine-tunes of another depth, heads or width are exported as their release, and run with what their graphs have."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracles.diffusers_graphs import assert_computes_as_diffusers
from safetensors.torch import load_file, save_file
from samples.layouts import bits_of, diffusers_models, write_diffusers
from samples.tiny import TEXT, UPSAMPLER, VAE, export, sources_of, tiny

from ltx_export.build import ExportOptions
from ltx_export.networks.header import checked_header, transformer_config
from ltx_export.networks.parts import parts_of
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import Sources, find_sources, open_sources
from ltx_runtime import Pipeline
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.folder.release import release_of
from ltx_runtime.spec.versions import VERSIONS, TextEncoderSize, TransformerSize, VaeSize, Version

SMALL = {"height": 64, "width": 96, "num_frames": 9, "steps": 2, "seed": 7}
_WIDE = "wide, with other text and latents"
_SHORT = {"deep, with odd heads"}  # in a short run of the tests
# Sizes that no release has: transformer, T5, VAE.
FINE_TUNES = {
    "shallow": (TransformerSize(1, 2, 16, 32, 8), TEXT, VAE),
    "deep, with odd heads": (TransformerSize(6, 3, 10, 32, 8), TEXT, VAE),
    _WIDE: (
        TransformerSize(2, 5, 12, 24, 12),
        TextEncoderSize(layers=3, width=24, heads=2, head_dim=8, hidden=40, vocabulary=330),
        VaeSize(base_channels=8, latent_channels=12, layers_per_block=2),
    ),
    "narrow": (TransformerSize(3, 1, 6, 32, 8), TEXT, VAE),
}
EVERY_FINE_TUNE = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in _SHORT)) for kind in FINE_TUNES]
)


def fine_tune(name: str, kind: str) -> Version:
    size, text, vae = FINE_TUNES[kind]
    return replace(VERSIONS[name], transformer=size, text_encoder=text, vae_size=vae, upsampler_size=UPSAMPLER)


def written(name: str, kind: str, folder: Path) -> Sources:
    """Writes a fine-tune's files; nothing but their headers and shapes says how large its networks are."""
    version = fine_tune(name, kind)
    write_random_weights(version, folder)
    return sources_of(version, folder)


@EVERY_FINE_TUNE
def test_a_fine_tune_is_exported_as_its_release_and_computes_what_diffusers_does(tmp_path, kind):
    name = "0.9.5"
    sources = written(name, kind, tmp_path)
    told: list[str] = []
    export(VERSIONS[name], sources, tmp_path / name, report=told.append)
    models = {part: model.float() for part, model in diffusers_models(fine_tune(name, kind), tmp_path).items()}
    assert_computes_as_diffusers(tmp_path / name, models)
    size = FINE_TUNES[kind][0]
    layers = f"a fine-tune: transformer.num_layers is {size.layers}, where {name} has 28"
    assert layers in told
    assert any(line.startswith(f"the presets of {name} skip block 19 of {size.layers}: ") for line in told)


def test_sizes_of_a_fine_tune_come_from_a_diffusers_folder_too(tmp_path):
    kind = _WIDE
    expected = bits_of(open_sources(written("0.9.5", kind, tmp_path)))
    layout = write_diffusers(fine_tune("0.9.5", kind), tmp_path, tmp_path / "layout")
    opened = open_sources(find_sources(VERSIONS["0.9.5"], layout))
    header = checked_header(VERSIONS["0.9.5"], opened)
    dit, size = transformer_config(header["transformer"]), FINE_TUNES[kind][0]
    assert (dit.layers, dit.heads, dit.head_dim, dit.text_channels) == (
        size.layers, size.heads, size.head_dim, size.text_channels,
    )  # fmt: skip
    assert bits_of(opened) == expected
    assert len(parts_of(VERSIONS["0.9.5"], header, opened)) == 4


@pytest.mark.parametrize("kind", [pytest.param("shallow", marks=pytest.mark.slow), "deep, with odd heads"])
def test_a_fine_tune_runs_with_the_blocks_that_its_graph_has(tmp_path, kind):
    export(VERSIONS["0.9.5"], written("0.9.5", kind, tmp_path), tmp_path / "0.9.5")
    size = FINE_TUNES[kind][0]
    engines = open_engines(tmp_path / "0.9.5")
    release = release_of(engines.manifest)
    assert (release.name, release.transformer.layers, release.transformer.width) == ("0.9.5", size.layers, size.width)
    with Pipeline(engines, backend="cpu") as pipe:
        last = size.layers - 1
        with pytest.raises(LtxError, match=f"skip-blocks must be from 0 to {last}; got 19 - use {last}"):
            pipe("a fox", **SMALL)
        with pytest.raises(LtxError, match=f"skip-blocks must be from 0 to {last}; got {size.layers} - "):
            pipe("a fox", **SMALL, skip_blocks=(size.layers,))
        frames = list(pipe("a fox", **SMALL, skip_blocks=(last,)))
    assert len(frames) == 9
    assert all(frame.shape == (64, 96, 3) and np.ptp(frame) > 0 for frame in frames)


@pytest.mark.slow
def test_a_distilled_release_has_a_fine_tune_without_stg_and_with_two_passes(tmp_path):
    version = VERSIONS["0.9.8-2b-distilled"]
    export(version, written(version.name, "shallow", tmp_path), tmp_path / version.name)
    with Pipeline(tmp_path / version.name, backend="cpu") as pipe:
        sizes = {"height": 128, "width": 192, "num_frames": 9, "seed": 7}
        assert len(list(pipe("a fox", **sizes))) == 9
        with pytest.raises(LtxError, match="exported without STG"):
            pipe("a fox", **sizes, stg_scale=1.0, skip_blocks=(0,))


def test_weights_alone_do_not_show_the_heads_of_another_width(tmp_path):
    sources = written("0.9.5", "narrow", tmp_path)
    save_file(load_file(sources.checkpoint), tmp_path / "headerless.safetensors")
    with pytest.raises(LtxError) as refused:
        export(VERSIONS["0.9.5"], replace(sources, checkpoint=tmp_path / "headerless.safetensors"), tmp_path / "out")
    assert str(refused.value).startswith(
        "the checkpoint has no configuration, and its width is 6, not the 2048 of 0.9.5, so its number of attention "
        "heads is unknown - give a file with its configuration"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 4), (3, 5), (1, 1)])
def test_a_width_that_can_not_be_rotated_is_refused_with_what_it_has_to_be(heads, head_dim):
    sizes = {"num_layers": 1, "num_attention_heads": heads, "attention_head_dim": head_dim}
    with pytest.raises(LtxError, match=f"{heads} heads of {head_dim} channels, .* even and at least 6 - "):
        transformer_config(sizes | {"in_channels": 8, "caption_channels": 32})


@pytest.mark.slow
@pytest.mark.parametrize("width", [1542, 2062])
def test_a_wide_fine_tune_whose_width_is_no_power_of_two_has_a_graph(tmp_path, width):
    """Widths over 1024 are rotated in pieces, which have to divide them."""
    version = tiny("0.9.6-distilled")
    wide = replace(version, transformer=TransformerSize(1, 2, width // 2, 32, 8))
    write_random_weights(wide, tmp_path)
    options = ExportOptions(("fp32",), without=("vae_encoder",))
    export(VERSIONS["0.9.6-distilled"], sources_of(wide, tmp_path), tmp_path / "out", options=options)
    models = {part: model.float() for part, model in diffusers_models(wide, tmp_path).items()}
    assert_computes_as_diffusers(tmp_path / "out", models)


def test_the_files_of_another_release_are_still_refused_with_its_name(tmp_path):
    version = VERSIONS["0.9.5"]
    sources = written("0.9.0", "shallow", tmp_path)
    with pytest.raises(
        LtxError, match=r"vae\.timestep_conditioning is False, but 0\.9\.5 has True - .* such as 0\.9\.0"
    ):
        export(version, sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
