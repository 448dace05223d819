"""Networks that TensorRT-RTX's parser builds from the graphs: types, inputs, outputs and shapes.

The graph alone decides the precision, so a norm that is parsed as half precision stays so, whatever the builder's
settings.
"""

from dataclasses import dataclass
from functools import cache

import onnx
import pytest
import tensorrt_rtx as library
from samples.tiny import LAYERS
from stand_ins.tiny_engines import SMALL

from ltx_export.engines import engine_from_onnx as building
from ltx_export.engines.graph import Prepared, prepare
from ltx_runtime.folder.profiles import Span, profiles
from ltx_runtime.sessions.trt.library import logger_of
from ltx_runtime.spec.components import COMPONENT_NAMES, Component, Port

RELEASE = "0.9.8-13b-distilled"
PRESENT = [name for name in COMPONENT_NAMES if name != "temporal_upsampler"]
HALVES = {"bf16": library.DataType.BF16, "fp16": library.DataType.HALF}
FLOAT, UINT8 = library.DataType.FLOAT, library.DataType.UINT8
REALS = {FLOAT, *HALVES.values()}
TYPES = {"bf16": library.DataType.BF16, "fp32": FLOAT}
KINDS = library.LayerType
EVERY_COMPONENT = pytest.mark.parametrize("name", PRESENT)
EVERY_HALF = pytest.mark.parametrize("precision", HALVES)


@dataclass(frozen=True)
class Parsed:
    """A parsed network, and all objects that have to live as long."""

    component: Component
    prepared: Prepared
    network: object
    builder: object
    parser: object

    @property
    def layers(self) -> list:
        return [self.network.get_layer(i) for i in range(self.network.num_layers)]

    def layers_of(self, *op_types: str) -> list:
        """Returns the layers of all nodes of these types, of which there must be some."""
        nodes = onnx.load_from_string(self.prepared.model).graph.node
        names = {node.name for node in nodes if node.op_type in op_types}
        found = [one for one in self.layers if one.name in names]
        assert {one.name for one in found} == names != set()
        return found

    def layers_within(self, *modules: str) -> list:
        """Returns the layers of these modules, each of which must have some."""
        found = [one for one in self.layers if one.name.rpartition("/")[0] in modules]
        assert {one.name.rpartition("/")[0] for one in found} == set(modules)
        return found


@pytest.fixture(scope="module")
def parsed(exported):
    @cache
    def of(name: str, precision: str, weights: str = "embedded") -> Parsed:
        release = exported(RELEASE)
        component = release.manifest.components[name].signature
        prepared = prepare(release.graph(name, precision), component, weights)
        builder = library.Builder(logger_of(library))
        network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = library.OnnxParser(network, logger_of(library))
        assert parser.parse(prepared.model, str(release.folder / "graph.onnx"))
        return Parsed(component, prepared, network, builder, parser)

    return of


def taken(layer) -> set:
    """Returns the floating-point types of a layer's inputs."""
    given = [layer.get_input(i) for i in range(layer.num_inputs)]
    return {tensor.dtype for tensor in given if tensor is not None} & REALS


def made(layer) -> set:
    return {layer.get_output(i).dtype for i in range(layer.num_outputs)} & REALS


@EVERY_HALF
@EVERY_COMPONENT
def test_products_convolutions_and_attention_are_in_the_half_type(parsed, name, precision):
    heavy = {KINDS.MATRIX_MULTIPLY, KINDS.CONVOLUTION, KINDS.ATTENTION_INPUT}
    layers = [layer for layer in parsed(name, precision).layers if layer.type in heavy]
    assert len(layers) >= 7
    for layer in layers:
        assert taken(layer) == made(layer) == {HALVES[precision]}, layer.name


@EVERY_HALF
@pytest.mark.parametrize(("name", "norms"), [
    ("text_encoder", ["RMSNormalization"]),
    ("transformer", ["RMSNormalization", "LayerNormalization", "RotaryEmbedding"]),
    ("upsampler", ["GroupNormalization"]),
    ("vae_encoder", ["Sqrt", "Exp"]),
    ("vae_decoder", ["Sqrt"]),
])  # fmt: skip
def test_norms_rotations_and_exponentials_are_in_float32(parsed, name, norms, precision):
    for norm in norms:
        for layer in parsed(name, precision).layers_of(norm):
            assert made(layer) == {FLOAT}, layer.name
            assert taken(layer) == {FLOAT}, layer.name


@EVERY_HALF
def test_the_residual_stream_of_the_text_encoder_is_in_float32(parsed, precision):
    blocks = [f"encoder.block.{layer}.layer.{half}" for layer in range(LAYERS) for half in (0, 1)]
    layers = parsed("text_encoder", precision).layers_within(*blocks)
    sums = [layer for layer in layers if "/Add_" in layer.name]
    assert len(sums) == len(blocks)
    for layer in sums:
        assert taken(layer) == made(layer) == {FLOAT}, layer.name


@EVERY_HALF
def test_cosines_and_sines_of_positions_reach_every_rotation_as_they_were_given(parsed, precision):
    """On the way they are only moved: a cast to half precision and back would leave two or three digits of them."""
    one = parsed("transformer", precision)
    makers = {layer.get_output(i).name: layer for layer in one.layers for i in range(layer.num_outputs)}
    rotations = [layer for layer in one.layers if layer.type == KINDS.ROTARY_EMBEDDING]
    assert len(rotations) == 2 * LAYERS
    for rotation in rotations:
        for place, port in enumerate(("cosines", "sines"), start=1):
            tensor = rotation.get_input(place)
            while tensor.name != port:
                layer = makers[tensor.name]
                assert layer.type in {KINDS.SHUFFLE, KINDS.SLICE} and made(layer) == {FLOAT}, layer.name
                tensor = layer.get_input(0)


def test_no_block_has_all_of_its_modulation_for_every_token_at_once(parsed):
    """All blocks' modulation, 68 GB at 32,768 tokens of 2B in a batch of 3, was more than TensorRT-RTX would build."""
    one = parsed("transformer", "bf16", "inputs")
    (whole,) = one.prepared.weight_inputs["adaln_single.linear.bias"].shape
    made = [layer.get_output(i) for layer in one.layers for i in range(layer.num_outputs)]
    names = {layer.name.rpartition("/")[0] for layer in one.layers if whole in tuple(layer.get_output(0).shape)[2:]}
    assert any(tuple(tensor.shape)[-1:] == (whole // 6,) for tensor in made)
    assert names - {""} == {"adaln_single.linear"}  # constants on the way have no module


@EVERY_HALF
@EVERY_COMPONENT
def test_inputs_and_outputs_are_the_ports_and_a_decoder_shows_frames_besides(parsed, name, precision):
    one = parsed(name, precision)
    inputs = [one.network.get_input(i) for i in range(one.network.num_inputs)]
    outputs = [one.network.get_output(i) for i in range(one.network.num_outputs)]
    assert [(tensor.name, len(tensor.shape)) for tensor in inputs] == [
        (port.name, len(port.axes)) for port in one.component.inputs
    ]
    types = {"float32": FLOAT, "int64": library.DataType.INT64}
    assert [tensor.dtype for tensor in inputs] == [types[port.dtype] for port in one.component.inputs]
    more = [("frames", UINT8), ("mean", FLOAT)] if name == "vae_decoder" else []
    assert [(tensor.name, tensor.dtype) for tensor in outputs] == [(one.component.outputs[0].name, FLOAT), *more]


@EVERY_HALF
def test_the_cast_to_frames_is_the_very_last_layer_and_all_before_it_is_float32(parsed, precision):
    one = parsed("vae_decoder", precision)
    (last,) = (layer for layer in one.layers if layer.get_output(0).name == "frames")
    assert last.type == KINDS.CAST and taken(last) == {FLOAT}
    (before,) = (layer for layer in one.layers if layer.get_output(0).name == last.get_input(0).name)
    assert before.type == KINDS.SHUFFLE
    given = [layer.get_input(i) for layer in one.layers for i in range(layer.num_inputs)]
    assert "frames" not in {tensor.name for tensor in given if tensor is not None}


@EVERY_HALF
@EVERY_COMPONENT
def test_every_weight_is_an_input_of_its_own_type_and_shape(parsed, name, precision):
    one = parsed(name, precision, "inputs")
    inputs = {tensor.name: tensor for tensor in map(one.network.get_input, range(one.network.num_inputs))}
    ports = {port.name for port in one.component.inputs}
    weights = one.prepared.weight_inputs
    assert len(weights) >= 10
    assert inputs.keys() == ports | weights.keys()
    for key, weight in weights.items():
        assert (inputs[key].dtype, tuple(inputs[key].shape)) == (TYPES[weight.dtype], weight.shape)


@pytest.mark.parametrize("limits", [None, SMALL], ids=["buckets", "narrowed"])
@EVERY_COMPONENT
def test_the_builder_takes_every_profile_with_the_shapes_of_every_port(parsed, name, limits):
    one = parsed(name, "bf16")
    config = one.builder.create_builder_config()
    for index, spans in enumerate(profiles(one.component, limits)):
        profile = building._profile(one.builder, one.component.inputs, spans)
        assert config.add_optimization_profile(profile) == index
        for port in one.component.inputs:
            shapes = [
                port.shape({axis: getattr(span, end) for axis, span in spans.items()}) for end in ("min", "best", "max")
            ]
            assert [tuple(shape) for shape in profile.get_shape(port.name)] == shapes
    assert config.num_optimization_profiles == len(profiles(one.component, limits))


def test_a_profile_has_the_shapes_of_every_port_at_both_ends_and_in_between():
    builder = library.Builder(logger_of(library))
    ports = (Port("latents", ("batch", 8, "rows")), Port("noise", (14, "2*rows")), Port("table", (3, 4)))
    profile = building._profile(builder, ports, {"batch": Span(1, 2, 3), "rows": Span(4, 5, 6)})
    assert [tuple(shape) for shape in profile.get_shape("latents")] == [(1, 8, 4), (2, 8, 5), (3, 8, 6)]
    assert [tuple(shape) for shape in profile.get_shape("noise")] == [(14, 8), (14, 10), (14, 12)]
