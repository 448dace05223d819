"""`inspect` lists as missing what the export would not find, and states the memory of every kind of network."""

from pathlib import Path

import pytest
from samples.sparse_files import shapes_in, upscaler

from ltx_export.inspection.inspect import inspect
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import find_sources
from ltx_runtime.spec.versions import VERSIONS

RELEASE = VERSIONS["0.9.8-13b-dev"]
LACKED = {"text_encoder.safetensors": "a T5", "tokenizer.model": "a tok", RELEASE.upscaler: "a spatial"}


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_random_weights(RELEASE, folder, sparse=True)
    return folder


@pytest.fixture
def weights(release, tmp_path) -> Path:
    """Returns a weights folder of the release that a test may change."""
    for path in release.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def missing(folder: Path) -> list[str]:
    """Returns what the folder is missing, which must be the same for the checkpoint in it."""
    told = inspect(folder).missing
    assert inspect(folder / RELEASE.checkpoint).missing == told
    return told


@pytest.mark.parametrize("file", LACKED)
def test_what_an_export_lacks_is_missed_by_the_checkpoint_as_by_its_folder(weights, file):
    assert missing(weights) == []
    (weights / file).unlink()
    (told,) = missing(weights)
    assert told.startswith(LACKED[file])
    upscaler(weights / "latent_upsampler" / "diffusion_pytorch_model.safetensors")
    assert (missing(weights) == []) == (file == RELEASE.upscaler)


def test_without_an_upscaler_only_the_second_pass_is_missed(weights):
    (weights / RELEASE.upscaler).unlink()
    assert missing(weights) == [
        "a spatial upscaler for the second pass of 0.9.8-13b-dev, without which ltx-run needs --single-pass: "
        "ltxv-spatial-upscaler-0.9.8.safetensors"
    ]
    assert find_sources(RELEASE, weights).upscaler is None


@pytest.mark.parametrize("unfolded", [2, 8])
def test_a_temporal_upscaler_is_none_for_the_second_pass(weights, unfolded):
    (weights / RELEASE.upscaler).unlink()
    upscaler(weights / "mine.safetensors", unfolded)
    assert missing(weights)[0].endswith(RELEASE.upscaler)


def test_an_upscaler_of_another_name_is_to_be_named(weights):
    (weights / RELEASE.upscaler).unlink()
    path = upscaler(weights / "mine.safetensors")
    (told,) = inspect(weights).missing
    assert told.endswith(f"under its usual name: to take this one, give --upscaler {path}")
    assert find_sources(RELEASE, weights, upscaler=path).upscaler == path


def test_of_two_upscalers_the_one_of_the_release_is_taken_or_one_is_to_be_chosen(weights):
    upscaler(weights / "ltxv-spatial-upscaler-0.9.7.safetensors")
    assert missing(weights) == []
    (weights / RELEASE.upscaler).rename(weights / "my-spatial-upscaler.safetensors")
    (told,) = missing(weights)
    assert told.startswith("a spatial upscaler") and told.endswith("choose one with --upscaler")


def test_memory_counts_upscalers_of_space_and_of_time(weights):
    before = inspect(weights).memory["cpu_mapped_bytes"]
    path = upscaler(weights / "ltxv-temporal-upscaler-0.9.8.safetensors", 2)
    sizes = [2 * 64 * 128 * 27, 2 * 128 * 64 * 9]
    assert shapes_in(path).keys() == {"initial_conv.weight", "upsampler.0.weight"}
    assert inspect(weights).memory["cpu_mapped_bytes"] == before + sum(sizes)
