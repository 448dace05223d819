"""The text encoder of the releases is T5-XXL, and the tensors of any T5 determine its sizes."""

import pytest
import torch
from oracles.networks import shapes_of, transformers_t5
from samples.layouts import stored_shapes

from ltx_export.models.network import build_empty
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.networks.parts import t5_config
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import VERSIONS, TextEncoderSize

RELEASES = [version for version in VERSIONS.values() if version.repository]
T5_PARAMETERS = 4_762_310_656
XXL = T5Config(layers=24, width=4096, heads=64, head_dim=64, hidden=10240, vocabulary=32128)


def test_the_text_encoder_of_the_releases_is_t5_xxl():
    assert {version.text_encoder for version in RELEASES} == {TextEncoderSize(24, 4096, 64, 64, 10240, 32128)}
    module = build_empty(lambda: TextEncoder(XXL), torch.float32)
    assert sum(parameter.numel() for parameter in module.parameters()) == T5_PARAMETERS
    assert len(list(module.parameters())) == 219
    theirs = shapes_of(build_empty(lambda: transformers_t5(XXL), torch.float32).state_dict().items())
    theirs.pop("encoder.embed_tokens.weight", None)
    assert shapes_of(module.named_parameters()) == theirs


def test_the_sizes_of_a_text_encoder_are_read_off_its_tensors():
    for size in (XXL, T5Config(layers=2, width=30, heads=3, head_dim=4, hidden=50, vocabulary=11)):
        shapes = shapes_of(build_empty(lambda size=size: TextEncoder(size), torch.float32).named_parameters())
        assert t5_config(stored_shapes(shapes)) == size


def test_what_is_no_t5_is_refused():
    with pytest.raises(LtxError, match=r"not a T5 .*it lacks .*relative_attention_bias"):
        t5_config(stored_shapes({"shared.weight": (32, 16)}))
    with pytest.raises(LtxError, match="not a T5"):
        t5_config(stored_shapes({"shared.weight": (32,)}))


SMALL = T5Config(layers=2, width=30, heads=3, head_dim=4, hidden=50, vocabulary=11)
ATTENTION = "encoder.block.0.layer.0.SelfAttention"


def small(**changes) -> dict:
    """Returns a small encoder's tensors, some with other shapes; names are relative to the first block's attention."""
    shapes = shapes_of(build_empty(lambda: TextEncoder(SMALL), torch.float32).named_parameters())
    return stored_shapes(shapes | {f"{ATTENTION}.{name}.weight": shape for name, shape in changes.items()})


@pytest.mark.parametrize("changes", [{"relative_attention_bias": (32, 0)}, {"q": (0, 30)}, {"q": (13, 30)}])
def test_heads_that_divide_nothing_are_refused(changes):
    with pytest.raises(
        LtxError, match=r"not a T5 .*width \d+ cannot be split into \d+ heads\) - give one such as t5xxl"
    ):
        t5_config(small(**changes))


def test_blocks_are_counted_until_one_is_missing():
    tensors = small()
    far = stored_shapes({"encoder.block.1000000.layer.0.SelfAttention.q.weight": (12, 30), "encoder.block.x": (1,)})
    assert t5_config(tensors | far) == SMALL
