"""Random checkpoints: official names, the same bytes for the same seed, small, or sparse without blocks on disk."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes.requests import encoded
from oracles.networks import transformers_t5
from safetensors import safe_open
from safetensors.torch import load_file
from samples.tiny import sources_of, tiny

from ltx_export import random_weights
from ltx_export.checkpoints.keys import networks_in
from ltx_export.networks.header import header_config
from ltx_export.random_weights import random_weight, write_random_weights
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import NEGATIVE_PROMPT, VERSIONS
from ltx_runtime.text.tokenizer import END_ID, PAD_ID, Tokenizer
from ltx_runtime.weights.checkpoint import open_safetensors

EVERY_VERSION = pytest.mark.parametrize("name", VERSIONS)
MAX_DEMO_BYTES = 12_000_000
# Published parameter counts: VAE encoders; 2B transformer, decoder C, its 256 statistics and encoder; T5-XXL.
ENCODER_PARAMETERS = {"A": 180_404_353, "B": 180_404_353, "C": 694_098_881}
PARAMETERS_2B = 1_923_385_472 + 552_814_641 + 256 + ENCODER_PARAMETERS["C"]
PARAMETERS_T5 = 4_762_310_656
# Number of tensors of a whole VAE, including its two statistics.
VAE_TENSORS = {"A": 190, "B": 294, "C": 226}


def bytes_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_writes_the_same_bytes_and_another_one_others(tmp_path):
    version = tiny("0.9.1")
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        write_random_weights(version, tmp_path / name, seed=seed)
    first, again, other = (bytes_in(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert set(first) == {version.checkpoint, TEXT_ENCODER_FILE, TOKENIZER_FILE}
    assert first[version.checkpoint] != other[version.checkpoint]
    assert first[TEXT_ENCODER_FILE] != other[TEXT_ENCODER_FILE]


def test_writing_again_replaces_what_was_there(tmp_path):
    version = tiny("0.9.0")
    write_random_weights(version, tmp_path, seed=1)
    before = bytes_in(tmp_path)
    write_random_weights(version, tmp_path, seed=2)
    write_random_weights(version, tmp_path, seed=1)
    assert bytes_in(tmp_path) == before


@EVERY_VERSION
def test_the_header_is_the_versions_and_all_names_are_official(name, tmp_path):
    version = tiny(name)
    write_random_weights(version, tmp_path)
    checkpoint = sources_of(version, tmp_path).checkpoint
    assert set(networks_in(open_safetensors(checkpoint))) == {"transformer", "vae"}
    with safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["config"]) == header_config(version)
        names = set(file.keys())
        assert {file.get_tensor(one).dtype for one in names} == {torch.bfloat16}
    official = {"model.diffusion_model.adaln_single.linear.weight", "vae.per_channel_statistics.std-of-means"}
    official |= {"vae.decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"}
    official |= {"model.diffusion_model.transformer_blocks.1.attn1.q_norm.weight"}
    assert official <= names
    assert ("vae.decoder.last_scale_shift_table" in names) == (version.vae != "A")
    assert ("vae.decoder.up_blocks.2.res_blocks.0.per_channel_scale1" in names) == (version.vae == "B")


def test_a_text_encoder_file_fits_transformers(tmp_path):
    version = tiny("0.9.0")
    write_random_weights(version, tmp_path)
    state = load_file(tmp_path / TEXT_ENCODER_FILE)
    missing, unexpected = transformers_t5(version.text_encoder).load_state_dict(state, strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"}
    assert unexpected == []


@EVERY_VERSION
@pytest.mark.parametrize("sparse", [False, True], ids=["random", "sparse"])
def test_all_numbers_are_finite_and_no_deviation_is_zero(name, sparse, tmp_path):
    version = tiny(name)
    write_random_weights(version, tmp_path, sparse=sparse)
    state = load_file(sources_of(version, tmp_path).checkpoint)
    assert all(values.isfinite().all() for values in state.values())
    assert state["vae.per_channel_statistics.std-of-means"].min() >= 1
    if version.vae != "A":
        assert state["vae.decoder.timestep_scale_multiplier"] == 1000


@pytest.mark.parametrize("shape", [(64, 256), (32, 16, 3, 3, 3)])
def test_a_matrix_keeps_the_variance_of_what_it_is_applied_to(shape):
    weight = random_weight("layer.weight", shape, seed=0).numpy()
    fan_in = np.prod(shape[1:])
    assert weight.std() == pytest.approx(fan_in**-0.5, rel=0.05)


def test_tensors_of_different_names_are_different_numbers():
    a, b = (random_weight(name, (100,), seed=0) for name in ("a.bias", "b.bias"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.3


def test_writing_leaves_the_global_random_numbers_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    write_random_weights(tiny("0.9.0"), tmp_path)
    assert torch.equal(torch.randn(4), expected)


def test_the_demo_is_small(tmp_path):
    write_random_weights(VERSIONS["demo"], tmp_path)
    assert sum(len(data) for data in bytes_in(tmp_path).values()) < MAX_DEMO_BYTES


def test_the_tokenizer_knows_t5s_special_ids_and_reads_the_letters_that_t5_reads(tmp_path):
    for name in ("demo", "0.9.0"):
        version = VERSIONS[name] if name == "demo" else tiny(name)
        write_random_weights(version, tmp_path / name)
        prompts = ["a cat walks", NEGATIVE_PROMPT, "Über Straße, ça été 漢字 🦊 \t !", ""]
        ids, mask = encoded(Tokenizer(tmp_path / name / TOKENIZER_FILE, 256), prompts)
        assert ids.max() < version.text_encoder.vocabulary
        assert [row[kept - 1] for row, kept in zip(ids, mask.sum(1), strict=True)] == [END_ID] * len(prompts)
        assert (ids[mask == 0] == PAD_ID).all()
        unknown = [Tokenizer(tmp_path / name / TOKENIZER_FILE, 256).read(prompt).unknown for prompt in prompts]
        assert unknown == [(), (), ("漢字", "🦊"), ()]  # as in T5's real vocabulary


def test_a_sparse_checkpoint_of_full_size_takes_no_space(tmp_path):
    version = VERSIONS["0.9.5"]
    write_random_weights(version, tmp_path, sparse=True)
    for path, parameters in (
        (tmp_path / version.checkpoint, PARAMETERS_2B),
        (tmp_path / TEXT_ENCODER_FILE, PARAMETERS_T5),
    ):
        with path.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        assert path.stat().st_size == 8 + header + 2 * parameters
        assert path.stat().st_blocks * 512 < 1 << 20
        with safe_open(path, "pt") as file:
            name = min(file.keys(), key=len)
            assert not file.get_tensor(name).any()


@pytest.mark.parametrize(("name", "times"), [("0.9.0", 2), ("0.9.1", 1), ("0.9.6-dev", 1), ("0.9.8-13b-dev", 1)])
def test_the_table_s_sizes_of_downloads_are_those_of_the_files(tmp_path, name, times):
    """The checkpoint of 0.9.0 is in fp32, twice as large as ours; upscalers are in fp32, T5 in 8.5 bits a weight."""
    version = VERSIONS[name]
    write_random_weights(version, tmp_path, sparse=True)
    size = times * (tmp_path / version.checkpoint).stat().st_size
    assert size == pytest.approx(version.checkpoint_bytes, rel=0.01)
    size += (tmp_path / TEXT_ENCODER_FILE).stat().st_size * 8.5 / 16
    size += 2 * (tmp_path / version.upscaler).stat().st_size if version.upscaler else 0
    assert size == pytest.approx(version.download_bytes, rel=0.01)


def test_a_folder_holds_nothing_half_written(tmp_path, monkeypatch):
    def fails(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
        if name.startswith("vae."):
            raise KeyboardInterrupt
        return random_weight(name, shape, seed)

    monkeypatch.setattr(random_weights, "random_weight", fails)
    with pytest.raises(KeyboardInterrupt):
        write_random_weights(tiny("0.9.0"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1", "0.9.5"])
def test_a_vae_has_the_tensors_and_parameters_of_the_released_one(name, tmp_path):
    version = VERSIONS[name]
    write_random_weights(version, tmp_path, sparse=True)
    vae = networks_in(open_safetensors(tmp_path / version.checkpoint))["vae"]
    assert len(vae) == VAE_TENSORS[version.vae]
    encoder = {name: math.prod(tensor.shape) for name, tensor in vae.items() if name.startswith("encoder.")}
    assert sum(encoder.values()) == ENCODER_PARAMETERS[version.vae]


def test_weights_that_are_not_random_are_never_replaced(tmp_path):
    version = replace(tiny("0.9.5"), repository="Lightricks/LTX-Video")
    write_random_weights(version, tmp_path)
    write_random_weights(version, tmp_path, seed=1)  # its own files may be
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_bytes(b"a download of hours")
        with pytest.raises(LtxError, match="was not made by random-weights, which would replace it"):
            write_random_weights(version, folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_bytes() == b"a download of hours"
