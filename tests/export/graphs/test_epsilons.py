"""Epsilons survive the export: an optimizer that takes 1e-8 for zero would divide by zero at zero activations."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracles.torch_networks import NETWORKS
from samples.tiny import export, sources_of, tiny

from ltx_export.random_weights import write_random_weights
from ltx_export.recorded import SIZES, random_feeds
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session

PIXEL_NORM_EPS = 1e-8


@pytest.fixture(scope="module", params=["0.9.0", "0.9.1", "0.9.5"])
def zeros(request, tmp_path_factory):
    """Exports a version folder over weights that are all zero, which compares every graph with its module."""
    folder = tmp_path_factory.mktemp("zeros")
    version = tiny(request.param)
    write_random_weights(version, folder / "weights", sparse=True)
    export(version, sources_of(version, folder / "weights"), folder / request.param)
    return open_engines(folder / request.param)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "vae_encoder"])
def test_a_network_of_zeros_makes_zeros_and_not_nothing(zeros, name):
    with open_session(find(zeros, name, "cpu")) as session:
        for sizes in SIZES:
            (output,) = session.run(random_feeds(session.component, sizes)).values()
            assert np.array_equal(output, np.zeros_like(output))


def test_an_encoder_of_zeros_gives_every_latent_the_mean_and_the_deviation_one_in_its_own_scale(zeros):
    """Normalized means are 0, as all means are zero; deviations are 1 / the VAE's statistics, which are not zero."""
    with open_session(find(zeros, "vae_encoder", "cpu")) as session:
        for sizes in SIZES:
            (posterior,) = session.run(random_feeds(session.component, sizes)).values()
            means, deviations = np.split(posterior, 2, axis=1)
            assert np.array_equal(means, np.zeros_like(means))
            assert np.isfinite(deviations).all() and (deviations > 0).all() and (deviations <= 1).all()


@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder"])
def test_every_square_root_of_a_vae_stands_on_its_epsilon(zeros, name):
    graph = onnx.load(zeros.folder / f"{name}.fp32.onnx", load_external_data=False).graph
    small = {
        one.name
        for one in graph.initializer
        if one.data_location != onnx.TensorProto.EXTERNAL
        and np.array_equal(numpy_helper.to_array(one), np.float32(PIXEL_NORM_EPS))
    }
    makers = {output: node for node in graph.node for output in node.output}
    roots = [node for node in graph.node if node.op_type == "Sqrt"]
    assert roots
    for root in roots:
        addition = makers[root.input[0]]
        assert addition.op_type == "Add"
        assert small & set(addition.input)
