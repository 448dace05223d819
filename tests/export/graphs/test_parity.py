"""The parity check: its measure, its inputs, its memory, and that it finds wrong graphs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.networks import RELATIVE_L2, distance
from oracles.torch_networks import NETWORKS, networks_of
from samples.tiny import Exported
from torch import nn

from ltx_export.checkpoints.keys import NetworkName, tensors_of
from ltx_export.graphs.parity import check_parity, stream_weights
from ltx_export.models.dit import Transformer
from ltx_export.models.network import build_empty
from ltx_export.models.t5 import TextEncoder
from ltx_export.models.vae import VaeDecoder
from ltx_export.models.vae_encoder import VaeEncoder
from ltx_export.networks.header import header_config, transformer_config, vae_config
from ltx_export.networks.parts import t5_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_export.random_weights import write_random_weights
from ltx_export.recorded import LIMIT, SIZES, random_feeds, relative_l2
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.components import (
    check_feeds,
    text_encoder,
    transformer,
    upsampler,
    vae_decoder,
    vae_encoder,
)
from ltx_runtime.weights.checkpoint import StoredTensor, open_safetensors

COMPONENTS = (
    text_encoder(32),
    vae_encoder(8),
    upsampler(8),
    transformer(8, 32, 40),
    transformer(8, 32, 40, stg_layers=2),
    vae_decoder(8, timestep=False),
    vae_decoder(8, timestep=True, noise_maps={2: (2, 2)}),
)
EVERY_COMPONENT = pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: f"{c.name}_{len(c.inputs)}")
EVERY_SIZE = pytest.mark.parametrize("sizes", SIZES, ids=["one_timestep", "timestep_per_token"])


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([3, 4], [3, 4], 0),
        ([0, 0], [0, 0], 0),
        ([0, 0], [3, 4], 1),
        ([6, 8], [3, 4], 1),
        ([3, 4.5], [3, 4], 0.1),
        ([1, 1, 1, 2], [1, 1, 1, 1], 0.5),
        ([0, 1e-9], [0, 0], np.inf),
    ],
)
def test_the_error_is_the_length_of_the_difference_by_the_length_of_what_is_expected(actual, expected, error):
    assert relative_l2(np.array(actual, np.float32), np.array(expected, np.float32)) == pytest.approx(error)


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e6])
def test_the_error_does_not_depend_on_the_scale(factor):
    random = np.random.RandomState(0)
    a, b = random.standard_normal((2, 50))
    assert relative_l2(factor * a, factor * b) == pytest.approx(relative_l2(a, b))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(value):
    good, bad = np.ones(3, np.float32), np.array([1, value, 1], np.float32)
    assert relative_l2(bad, good) == float("inf")
    assert relative_l2(good, bad) == float("inf")
    assert relative_l2(bad, bad) == float("inf")


@EVERY_SIZE
@EVERY_COMPONENT
def test_random_inputs_fit_the_ports_and_are_always_the_same(component, sizes):
    state = np.random.get_state()[1].copy()
    feeds, again = random_feeds(component, sizes), random_feeds(component, sizes)
    check_feeds(component, feeds)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    assert np.array_equal(np.random.get_state()[1], state)


@EVERY_COMPONENT
def test_the_two_requests_differ_in_every_axis_and_one_of_them_pads(component):
    first, second = SIZES
    assert all(first[name] != second[name] for name in first)
    masks = [a for sizes in SIZES for n, a in random_feeds(component, sizes).items() if n in ("mask", "text_mask")]
    assert not masks or any(0 in mask for mask in masks)
    assert all((mask.sum(axis=1) > 0).all() for mask in masks)


def network_and_tensors(release: Exported, component: str) -> tuple[Callable[[], nn.Module], dict[str, StoredTensor]]:
    """Returns a function that builds a module, and the module's weights as they are stored."""
    header = header_config(release.version)
    makers: dict[str, tuple[NetworkName, Callable[[], nn.Module]]] = {
        "text_encoder": ("text_encoder", lambda: TextEncoder(t5_config(tensors))),
        "transformer": ("transformer", lambda: Transformer(transformer_config(header["transformer"]))),
        "vae_encoder": ("vae", lambda: VaeEncoder(encoder_config(header["vae"]))),
        "vae_decoder": ("vae", lambda: VaeDecoder(vae_config(header["vae"]))),
    }
    part, make = makers[component]
    sources = release.sources
    file = sources.text_encoder if part == "text_encoder" else sources.checkpoint
    tensors = tensors_of(open_safetensors(file), part)
    return make, tensors


@pytest.mark.parametrize("component", NETWORKS)
def test_a_streamed_module_computes_what_the_loaded_one_does_every_time(exported, component):
    release = exported("0.9.1")
    make, tensors = network_and_tensors(release, component)
    loaded = getattr(networks_of(release), component)
    streamed = build_empty(make, torch.float32)
    stream_weights(streamed, tensors)
    feeds = random_feeds(release.manifest.components[component].signature, SIZES[0])
    inputs = [torch.from_numpy(array) for array in feeds.values()]
    for _ in range(2):  # the first run must leave nothing behind
        assert distance(streamed(*inputs), loaded(*inputs)) <= RELATIVE_L2


def bytes_held(layers: list[nn.Module]) -> int:
    """Returns the bytes of memory behind the weights of layers; shared memory counts once."""
    held = [weight.untyped_storage() for layer in layers for weight in layer.parameters() if not weight.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())


@pytest.mark.parametrize("component", ["text_encoder", "vae_encoder", "vae_decoder"])
def test_streaming_holds_no_more_than_the_largest_layer(exported, component):
    release = exported("0.9.1")
    make, tensors = network_and_tensors(release, component)
    module = build_empty(make, torch.float32)
    stream_weights(module, tensors)
    leaves = [layer for layer in module.modules() if layer_has_own_weights(layer)]
    largest = max(4 * sum(weight.numel() for weight in leaf.parameters()) for leaf in leaves)
    seen = []

    def look(running: nn.Module, _: object) -> None:
        assert all(not parameter.is_meta for parameter in running.parameters())
        assert 0 < bytes_held(leaves) <= largest
        seen.append(running)

    for leaf in leaves:
        leaf.register_forward_pre_hook(look)
    feeds = random_feeds(release.manifest.components[component].signature, SIZES[1])
    module(*(torch.from_numpy(array) for array in feeds.values()))
    assert len(seen) == len(leaves)


def layer_has_own_weights(layer: nn.Module) -> bool:
    """Tells whether a layer's weights are held while it runs; of an embedding table only rows are read."""
    is_leaf = not any(layer.children()) and not isinstance(layer, nn.Embedding)
    return is_leaf and any(True for _ in layer.parameters(recurse=False))


def test_of_a_table_only_the_rows_asked_for_are_read(exported, monkeypatch):
    make, tensors = network_and_tensors(exported("0.9.1"), "text_encoder")
    module = build_empty(make, torch.float32)
    stream_weights(module, tensors)
    read_part, spans = StoredTensor.read, []

    def noted(self: StoredTensor, start: int, stop: int) -> np.ndarray:
        spans.append((start, stop))
        return read_part(self, start, stop)

    monkeypatch.setattr(StoredTensor, "read", noted)
    monkeypatch.setattr(StoredTensor, "mapped", lambda self: pytest.fail("the table was mapped whole"))
    rows = module.shared(torch.tensor([[7, 3, 3], [300, 7, 0]]))
    row_bytes = tensors["shared.weight"].length // len(module.shared.weight)
    assert sorted(spans) == [(row * row_bytes, (row + 1) * row_bytes) for row in (0, 3, 7, 300)]
    assert rows.shape == (2, 3, module.shared.embedding_dim)
    assert module.shared.weight.is_meta


def test_the_right_weights_are_found_equal_at_both_shapes_every_time(exported):
    release = exported("0.9.0")
    make, tensors = network_and_tensors(release, "vae_decoder")
    component, graph = release.manifest.components["vae_decoder"].signature, release.graph("vae_decoder")
    first, again = (check_parity(make, component, tensors, graph, release.folder, "whose") for _ in range(2))
    assert first.weights == "whose"
    assert first.sizes == SIZES
    assert len(first.relative_l2) == len(SIZES)
    assert max(first.relative_l2) <= RELATIVE_L2 < LIMIT
    assert max(again.relative_l2) <= RELATIVE_L2


@pytest.mark.parametrize("component", NETWORKS)
def test_a_graph_over_other_weights_than_its_module_is_refused(exported, tmp_path, component):
    release = exported("0.9.0")
    write_random_weights(release.version, tmp_path, seed=1)
    make, others = network_and_tensors(replace(release, weights=tmp_path), component)
    signature = release.manifest.components[component].signature
    with pytest.raises(LtxError, match=rf"graph of {component} differs from its module by .* more than 1e-04"):
        check_parity(make, signature, others, release.graph(component), release.folder)


def test_one_wrong_tensor_among_all_is_noticed(exported):
    """The smallest mistake in attaching weights is to swap two tensors of the same shape."""
    release = exported("0.9.0")
    make, tensors = network_and_tensors(release, "vae_decoder")
    first, second = (f"decoder.up_blocks.{i}.res_blocks.0.conv1.conv.weight" for i in (0, 1))
    swapped = {**tensors, first: replace(tensors[second]), second: replace(tensors[first])}
    signature = release.manifest.components["vae_decoder"].signature
    with pytest.raises(LtxError, match="differs from its module"):
        check_parity(make, signature, swapped, release.graph("vae_decoder"), release.folder)
