"""Tensor names in files: every missing, unexpected or misshapen tensor is refused by name."""

from pathlib import Path

import pytest

from ltx_export.checkpoints.keys import check_names, networks_in, tensors_of
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import Checkpoint, StoredTensor

EXPECTED = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2,)}
UNIFIED = (
    "model.diffusion_model.patchify_proj.weight",
    "vae.decoder.conv_in.conv.weight",
    "vae.encoder.conv_in.conv.weight",
    "vae.per_channel_statistics.mean-of-means",
    "vae.per_channel_statistics.std-of-means",
    "vae.per_channel_statistics.mean-of-stds",
    "vae.per_channel_statistics.mean-of-stds_over_std-of-means",
    "vae.per_channel_statistics.channel",
)
# Tensor names in a file of a single network, by network.
BARE = {
    "transformer": ("patchify_proj.weight", "transformer_blocks.0.scale_shift_table"),
    "vae": ("decoder.conv_in.conv.weight", "per_channel_statistics.std-of-means"),
    "text_encoder": ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.final_layer_norm.weight"),
    "upsampler": ("initial_conv.weight", "final_conv.weight"),
}


def stored(*shape: int) -> StoredTensor:
    return StoredTensor(Path("x"), 0, 0, "F32", shape)


def checkpoint(*names: str) -> Checkpoint:
    return Checkpoint(Path("given.safetensors"), {name: stored(i) for i, name in enumerate(names)})


def found() -> dict[str, StoredTensor]:
    return {name: stored(*shape) for name, shape in EXPECTED.items()}


def refusal(tensors: dict[str, StoredTensor]) -> str:
    with pytest.raises(LtxError) as refused:
        check_names("transformer", EXPECTED, tensors)
    assert "\n" not in str(refused.value)
    assert "transformer" in str(refused.value)
    return str(refused.value)


def test_exactly_the_expected_tensors_are_accepted_in_any_order():
    check_names("transformer", EXPECTED, found())
    check_names("transformer", EXPECTED, dict(reversed(found().items())))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_missing_tensor_is_named(name):
    tensors = found()
    del tensors[name]
    assert f"lacks 1 tensor ({name})" in refusal(tensors)


def test_an_unexpected_tensor_is_named():
    assert "1 unexpected tensor (c.weight)" in refusal(found() | {"c.weight": stored(1)})


@pytest.mark.parametrize("shape", [(3, 4), (12,), (4, 3, 1), ()])
def test_a_misshapen_tensor_is_named_with_both_shapes(shape):
    assert f"a.weight {list(shape)} instead of [4, 3]" in refusal(found() | {"a.weight": stored(*shape)})


def test_many_names_are_counted_and_the_first_are_shown():
    expected = {f"layer.{i}": (1,) for i in range(10)}
    with pytest.raises(LtxError, match=r"10 tensors \(layer\.0, layer\.1, .* and 6 more\)"):
        check_names("vae_decoder", expected, {})


def test_networks_take_their_own_tensors_by_prefix_and_drop_it():
    given = checkpoint(*UNIFIED)
    assert list(networks_in(given)) == ["transformer", "vae"]
    assert list(tensors_of(given, "transformer")) == ["patchify_proj.weight"]
    assert list(tensors_of(given, "vae")) == [
        "decoder.conv_in.conv.weight",
        "encoder.conv_in.conv.weight",
        "per_channel_statistics.mean-of-means",
        "per_channel_statistics.std-of-means",
    ]


def test_a_tensor_keeps_its_place_in_the_file_under_its_new_name():
    given = checkpoint(*UNIFIED)
    assert tensors_of(given, "transformer")["patchify_proj.weight"] is given.tensors[UNIFIED[0]]


def test_all_tensors_of_an_official_file_are_known_and_others_are_named():
    networks_in(checkpoint(*UNIFIED))
    with pytest.raises(
        LtxError, match=r"given\.safetensors has 1 tensor \(lora\.up\) not belonging to any known network - "
    ):
        networks_in(checkpoint(*UNIFIED, "lora.up"))


@pytest.mark.parametrize("part", BARE)
def test_a_file_of_one_network_is_known_by_its_tensors_and_has_no_other(part):
    given = checkpoint(*BARE[part])
    assert list(networks_in(given)) == [part]
    for other in BARE.keys() - {part}:
        with pytest.raises(LtxError, match=rf"given\.safetensors holds no {other} \(it holds {part}\) - give the file"):
            tensors_of(given, other)


@pytest.mark.parametrize("part", BARE)
def test_a_file_of_no_network_is_refused(part):
    with pytest.raises(
        LtxError, match=r"given\.safetensors has 1 tensor \(unrelated\.weight\) not belonging to any known network - "
    ):
        tensors_of(checkpoint("unrelated.weight"), part)
    with pytest.raises(LtxError, match=rf"given\.safetensors holds no {part} \(it holds nothing\) - "):
        tensors_of(checkpoint(), part)


def test_two_tensors_for_one_name_are_refused():
    name = "model.diffusion_model.proj_in.weight"
    with pytest.raises(LtxError, match=r"given\.safetensors has two tensors for patchify_proj\.weight - "):
        networks_in(checkpoint(*UNIFIED, name))


@pytest.mark.parametrize(
    "names", [("shared.weight",), ("encoder.embed_tokens.weight",), ("encoder.embed_tokens.weight", "shared.weight")]
)
def test_a_text_encoder_has_one_embedding_under_either_of_its_names(names):
    given = checkpoint(*BARE["text_encoder"])
    given.tensors.update({name: stored(40, 8) for name in names})
    tensors = tensors_of(given, "text_encoder")
    assert set(tensors) == {"shared.weight", *BARE["text_encoder"]}
    assert tensors["shared.weight"].shape == (40, 8)


def test_two_embeddings_of_different_sizes_are_refused():
    given = checkpoint("shared.weight", "encoder.embed_tokens.weight", *BARE["text_encoder"])
    with pytest.raises(LtxError, match=r"given\.safetensors has two tensors for shared\.weight - "):
        tensors_of(given, "text_encoder")


def test_of_a_whole_t5_only_the_encoder_is_taken():
    given = checkpoint("shared.weight", *BARE["text_encoder"], "decoder.final_layer_norm.weight", "lm_head.weight")
    assert set(tensors_of(given, "text_encoder")) == {"shared.weight", *BARE["text_encoder"]}
