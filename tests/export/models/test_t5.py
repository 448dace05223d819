"""The text encoder against transformers' T5 and published numbers."""

import pytest
import torch
from oracles.networks import RELATIVE_L2, assert_published, distance, filled, shapes_of, sine_weights, transformers_t5
from oracles.weight_rule import weight

from ltx_export.models.t5 import T5Config, TextEncoder, position_buckets

SIZES = (
    T5Config(layers=3, width=48, heads=6, head_dim=8, hidden=80, vocabulary=100),
    T5Config(layers=2, width=32, heads=2, head_dim=24, hidden=64, vocabulary=50),
)
EVERY_SIZE = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"width_{size.width}")
# One token, and lengths on both sides of the distances at which a new bucket begins.
LENGTHS = (1, 8, 9, 12, 13, 16, 17, 23, 24, 46, 47, 64, 65, 91, 92, 128, 129, 147)
# The first distance (key - query) of each bucket, going up from -130.
FIRST_DISTANCES = {
    -130: 15, -90: 14, -63: 13, -45: 12, -31: 11, -22: 10, -15: 9, -11: 8, -7: 7, -6: 6, -5: 5, -4: 4, -3: 3,
    -2: 2, -1: 1, 0: 0, 1: 17, 2: 18, 3: 19, 4: 20, 5: 21, 6: 22, 7: 23, 8: 24, 12: 25, 16: 26, 23: 27, 32: 28,
    46: 29, 64: 30, 91: 31,
}  # fmt: skip


def pair_of(size: T5Config):
    """Returns our encoder and transformers', with the same weights."""
    ours, theirs = filled(TextEncoder(size), weight), transformers_t5(size)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"}  # tied to shared.weight
    assert unexpected == []
    return ours, theirs


def prompts(size: T5Config, batch: int, length: int):
    """Returns ids and mask; r thirds of row r are padding, at its end."""
    ids = torch.randint(2, size.vocabulary, (batch, length), generator=torch.Generator().manual_seed(length))
    kept = torch.tensor([max(1, length - row * length // 3) for row in range(batch)])
    mask = (torch.arange(length) < kept[:, None]).to(torch.int64)
    return ids * mask, mask


@EVERY_SIZE
def test_text_is_that_of_transformers_at_every_length_with_a_mask(size):
    ours, theirs = pair_of(size)
    for length in LENGTHS:
        ids, mask = prompts(size, 3, length)
        with torch.no_grad():
            expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        assert distance(ours(ids, mask), expected) <= RELATIVE_L2, length


def test_text_is_the_published_one():
    module = TextEncoder(T5Config(layers=2, width=16, heads=3, head_dim=4, hidden=24, vocabulary=40))
    module.load_state_dict(sine_weights(shapes_of(module.named_parameters()), lambda key: "norm" in key))
    ids, mask = torch.tensor([[5, 9, 17, 33, 2, 1, 0, 0]]), torch.tensor([[1] * 6 + [0] * 2])
    first = (1.133252, -1.126962, -0.245835, 1.396859, -0.288143, -1.030235)
    assert_published(module.requires_grad_(False)(ids, mask)[:, :6], -3.133264, 0.891840, first, ())


def test_the_published_text_without_a_mask_is_reached_with_a_mask_of_ones():
    module = TextEncoder(T5Config(layers=2, width=16, heads=3, head_dim=4, hidden=24, vocabulary=40))
    module.load_state_dict(sine_weights(shapes_of(module.named_parameters()), lambda key: "norm" in key))
    ids = torch.tensor([[5, 9, 17, 33, 2, 1, 0, 0]])
    first = (1.123543, -1.135020, -0.233956, 1.396833, -0.300581, -1.024503)
    output = module.requires_grad_(False)(ids, torch.ones_like(ids))[:, :6]
    assert_published(output, -3.205018, 0.890176, first, ())


def test_buckets_begin_at_the_published_distances():
    buckets = position_buckets(131, torch.device("cpu"))
    by_distance = {d: int(buckets[max(-d, 0), max(d, 0)]) for d in range(-130, 131)}
    changes = {d: b for d, b in by_distance.items() if d == -130 or by_distance[d - 1] != b}
    assert changes == FIRST_DISTANCES


def test_a_bucket_depends_on_the_distance_alone():
    buckets = position_buckets(140, torch.device("cpu"))
    assert buckets.dtype == torch.int64
    assert all(len(buckets.diagonal(d).unique()) == 1 for d in range(-139, 140))


def test_buckets_are_those_of_transformers():
    from transformers.models.t5.modeling_t5 import T5Attention

    position = torch.arange(300)
    expected = T5Attention._relative_position_bucket(position[None, :] - position[:, None])
    assert torch.equal(position_buckets(300, torch.device("cpu")), expected)


@EVERY_SIZE
def test_padding_changes_nothing_for_the_tokens_of_the_prompt(size):
    ours, _ = pair_of(size)
    ids, mask = prompts(size, 1, 20)
    padded = [torch.nn.functional.pad(one, (0, 37)) for one in (ids, mask)]
    assert distance(ours(*padded)[:, :20], ours(ids, mask)) <= 1e-6


@EVERY_SIZE
def test_what_stands_in_the_padding_changes_nothing(size):
    ours, _ = pair_of(size)
    ids, mask = prompts(size, 2, 30)
    other = torch.where(mask == 1, ids, 7)
    kept = mask.bool()
    assert torch.equal(ours(ids, mask)[kept], ours(other, mask)[kept])


@EVERY_SIZE
def test_every_parameter_has_its_counterpart_in_transformers(size):
    theirs = shapes_of(transformers_t5(size).state_dict().items())
    theirs.pop("encoder.embed_tokens.weight", None)
    assert shapes_of(TextEncoder(size).named_parameters()) == theirs
