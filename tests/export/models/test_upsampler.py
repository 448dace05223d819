"""The latent upsamplers against the official golden values, diffusers and published numbers, and their graphs."""

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from oracles.golden_files import golden
from oracles.networks import (
    RELATIVE_L2,
    assert_published,
    distance,
    filled,
    golden_settings,
    normal,
    shapes_of,
    sine,
    sine_weights,
    tensor,
)
from oracles.weight_rule import weight
from safetensors import safe_open
from safetensors.torch import load_file
from samples.tiny import traced_once
from stand_ins.tiny_engines import BUILDER, SMALL, address, copied

from ltx_export.engines.engine_from_onnx import Recipe, engine_from_onnx
from ltx_export.engines.files import build_engine
from ltx_export.graphs.precision import PRECISIONS, at_precision
from ltx_export.models.network import Network, build_empty
from ltx_export.models.upsampler import (
    GroupNorm,
    LatentUpsampler,
    Statistics,
    UpsamplerConfig,
    unfold_time,
)
from ltx_export.networks.upsampler import upsampler_config
from ltx_export.recorded import random_feeds
from ltx_runtime.folder.address import check_engine
from ltx_runtime.folder.profiles import profiles
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session
from ltx_runtime.sessions.trt.library import load_library
from ltx_runtime.spec import components
from ltx_runtime.spec.versions import UpsamplerSize

GOLDEN = golden("upsampler")
CASES = sorted({key.split("/")[0] for key in GOLDEN})
# (dims, upsampled axes) of the same networks in diffusers; frame by frame is dims 2.
KINDS = {"spatial": (3, "spatial"), "temporal": (3, "temporal"), "frame_by_frame": (2, "spatial")}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_PRECISION = pytest.mark.parametrize("precision", PRECISIONS)
CHANNELS = 8
SIZES = [(1, 1, 2, 3), (3, 4, 1, 2), (1, 6, 2, 1), (3, 2, 7, 6)]
PARAMETERS = {"spatial": 126_250_624, "temporal": 130_968_192}
RELEASE = "0.9.8-13b-distilled"

PUBLISHED = {
    "spatial": ((1, 4, 2, 4, 6), 29.708216, 0.251520,
                (-0.121849, -0.273978, -0.317112, -0.173084, -0.033946, 0.101372), (0.367504, 0.363576, 0.331058)),
    "temporal": ((1, 4, 3, 2, 3), 11.044205, 0.279977,
                 (0.040474, -0.087728, -0.114859, -0.320241, -0.487818, -0.336091), (0.350554, 0.430198, 0.379868)),
}  # fmt: skip


def config_of(kind: str, channels: int = CHANNELS, mid_channels: int = 64, blocks: int = 2) -> UpsamplerConfig:
    dims, resampling = KINDS[kind]
    return UpsamplerConfig(channels, mid_channels, blocks, dims, resampling)


def plain(channels: int) -> Statistics:
    """Returns statistics of latents that are already in the VAE's own scale."""
    return Statistics(np.zeros(channels, np.float32), np.ones(channels, np.float32))


def drawn(channels: int) -> Statistics:
    return Statistics(*(weight(f"per_channel_statistics.{name}-of-means", (channels,)) for name in ("mean", "std")))


def diffusers_upsampler(config: UpsamplerConfig) -> torch.nn.Module:
    scaled = {f"{one}_upsample": config.resampling == one for one in ("spatial", "temporal")}
    sizes = (config.channels, config.mid_channels, config.blocks_per_stage, config.dims)
    return LTXLatentUpsamplerModel(*sizes, **scaled).eval()


@pytest.mark.parametrize("case", CASES)
def test_upsampled_latents_are_those_of_the_official_package(case):
    config = upsampler_config(golden_settings("upsampler", case)["upsampler"])
    assert config == config_of(case.rpartition("_")[0])
    module = filled(LatentUpsampler(config, drawn(CHANNELS)), weight)
    assert distance(module(tensor(GOLDEN[f"{case}/latents"])), GOLDEN[f"{case}/upsampled"]) <= RELATIVE_L2


def test_every_kind_is_recorded_at_two_shapes():
    assert sorted(f"{kind}_{size}" for kind, size in product(KINDS, ("single", "pair"))) == CASES


@EVERY_KIND
@pytest.mark.parametrize("shape", [(1, 1, 4, 3), (3, 5, 2, 4)])
def test_upsampled_latents_are_those_of_diffusers(kind, shape):
    config, (batch, *grid) = config_of(kind), shape
    ours, theirs = filled(LatentUpsampler(config, plain(CHANNELS)), weight), diffusers_upsampler(config)
    theirs.load_state_dict(ours.state_dict())
    latents = normal(1, batch, CHANNELS, *grid)
    with torch.no_grad():
        assert distance(ours(latents), theirs(latents)) <= RELATIVE_L2


@pytest.mark.parametrize("kind", PUBLISHED)
def test_upsampled_latents_are_the_published_ones(kind):
    shape, total, mean, first, last = PUBLISHED[kind]
    module = LatentUpsampler(config_of(kind, 4, 32, 1), plain(4))
    shapes = shapes_of(module.named_parameters())
    module.load_state_dict(sine_weights(shapes, lambda key: "norm" in key and key.endswith("weight")))
    upsampled = module.requires_grad_(False)(sine((1, 4, 2, 2, 3), 0.7, 0.1))
    assert upsampled.shape == shape
    assert_published(upsampled, total, mean, first, last)


@EVERY_KIND
def test_every_parameter_has_its_counterpart_in_diffusers(kind):
    config = config_of(kind)
    ours = LatentUpsampler(config, plain(CHANNELS))
    assert shapes_of(ours.named_parameters()) == shapes_of(diffusers_upsampler(config).state_dict().items())
    assert ours.state_dict().keys() == dict(ours.named_parameters()).keys()


@pytest.mark.parametrize("kind", PARAMETERS)
def test_the_released_sizes_have_the_published_parameters(kind):
    size = UpsamplerSize()
    config = config_of(kind, 128, size.mid_channels, size.blocks_per_stage)
    module = build_empty(lambda: LatentUpsampler(config, plain(128)), torch.bfloat16)
    assert len(list(module.parameters())) == 72
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[kind]


@EVERY_KIND
def test_statistics_only_move_latents_into_the_vaes_scale_and_back(kind):
    config, statistics = config_of(kind), drawn(CHANNELS)
    mean, deviation = (tensor(one)[:, None, None, None] for one in (statistics.mean, statistics.deviation))
    latents = normal(2, 1, CHANNELS, 3, 4, 2)
    own = filled(LatentUpsampler(config, statistics), weight)
    bare = filled(LatentUpsampler(config, plain(CHANNELS)), weight)
    assert distance(own(latents), (bare(latents * deviation + mean) - mean) / deviation) <= RELATIVE_L2


@pytest.mark.parametrize(("kind", "alone"), [("frame_by_frame", True), ("spatial", False)])
def test_with_two_dimensions_every_frame_is_upsampled_on_its_own(kind, alone):
    module = filled(LatentUpsampler(config_of(kind), drawn(CHANNELS)), weight)
    latents = normal(3, 2, CHANNELS, 3, 2, 4)
    whole = module(latents)
    single = torch.cat([module(latents[:, :, [frame]]) for frame in range(3)], dim=2)
    assert (distance(single, whole) <= RELATIVE_L2) == alone


def test_channels_unfold_to_frames_in_the_official_order():
    """Channels (c, pt) unfold to twice the frames, of which the first is dropped."""
    x = torch.arange(2 * 6 * 3 * 4).reshape(2, 6, 3, 2, 2)
    doubled = unfold_time(x)
    assert doubled.shape == (2, 3, 5, 2, 2)
    for c, frame in product(range(3), range(5)):
        assert torch.equal(doubled[:, c, frame], x[:, 2 * c + (frame + 1) % 2, (frame + 1) // 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_group_norm_is_in_float32_whatever_its_dtype(dtype):
    module = filled(GroupNorm(64), weight).to(dtype)
    x = (normal(4, 2, 64, 3, 5) + 300).to(dtype)  # half precision would keep little of it
    expected = torch.nn.functional.group_norm(x.double(), 32, module.weight.double(), module.bias.double(), 1e-5)
    normalized = module(x)
    assert normalized.dtype == dtype
    assert distance(normalized.float(), expected) <= max(1e-4, torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Traced:
    """A network's graph with embedded weights, its ports, and its module."""

    graph: ir.Model
    ports: components.Component
    module: torch.nn.Module

    def save(self, path: Path) -> Path:
        ir.save(self.graph, path)
        return path


@cache
def traced(kind: str, precision: str) -> Traced:
    config = config_of(kind)
    ports = (components.temporal_upsampler if kind == "temporal" else components.upsampler)(CHANNELS)
    network = Network(lambda blocks: ports, lambda blocks: LatentUpsampler(config, drawn(CHANNELS)))
    module, graph = filled(network.make(1), weight), at_precision(traced_once(network)[1], precision)
    for name, values in module.named_parameters():
        weights = graph.graph.initializers[name]
        weights.const_value = ir.tensor(values.numpy().astype(weights.dtype.numpy()), name=name)
    return Traced(graph, ports, module)


@EVERY_KIND
def test_one_graph_gives_what_its_module_gives_at_every_size(kind, tmp_path):
    one = traced(kind, "fp32")
    session = onnxruntime.InferenceSession(one.save(tmp_path / "graph.onnx"), providers=["CPUExecutionProvider"])
    for sizes in (dict(zip(("batch", "frames", "rows", "columns"), given, strict=True)) for given in SIZES):
        feeds = random_feeds(one.ports, sizes)
        (actual,) = session.run(None, feeds)
        assert actual.shape == one.ports.outputs[0].shape(sizes)
        assert distance(actual, one.module(tensor(feeds["latents"]))) <= RELATIVE_L2, sizes


@EVERY_PRECISION
@EVERY_KIND
def test_statistics_are_float32_in_graphs_of_every_precision(kind, precision):
    """This covers the group norms' statistics, and the VAE's, which are constants of the graph."""
    graph = traced(kind, precision).graph.graph
    norms = [node for node in graph if node.op_type == "GroupNormalization"]
    assert len(norms) == 9
    for node in norms:
        assert {value.dtype for value in node.inputs} == {ir.DataType.FLOAT}
        assert node.attributes["num_groups"].as_int() == 32
        assert node.attributes["epsilon"].as_float() == pytest.approx(1e-5)
    assert {node.inputs[0].dtype for node in graph if node.op_type == "Conv"} == {PRECISIONS[precision]}
    for expected in (drawn(CHANNELS).mean, drawn(CHANNELS).deviation):
        assert any(same_floats(value.const_value, expected) for value in graph.initializers.values())


def same_floats(constant: ir.TensorProtocol, expected: np.ndarray) -> bool:
    return constant.dtype == ir.DataType.FLOAT and np.array_equal(constant.numpy().ravel(), expected)


@EVERY_KIND
def test_tensorrt_rtx_compiles_every_kind(kind, tmp_path):
    one = traced(kind, "bf16")
    graph = one.save(tmp_path / "graph.onnx")
    engine_from_onnx(load_library(BUILDER), graph, tmp_path, one.ports, tmp_path / "engine", Recipe(limits=SMALL))
    assert (tmp_path / "engine").stat().st_size > 10_000


def test_an_exported_upsampler_is_checked_recorded_and_over_the_vaes_statistics(exported):
    release = exported(RELEASE)
    entry = release.manifest.components["upsampler"]
    assert entry.signature == components.upsampler(release.version.vae_size.latent_channels)
    assert entry.weights == ("upsampler.safetensors",)
    assert (release.folder / "upsampler.safetensors").samefile(release.sources.upscaler)
    assert max(entry.parity.relative_l2) <= RELATIVE_L2 and (release.folder / entry.recorded).is_file()
    graph = ir.load(release.graph("upsampler")).graph
    with safe_open(release.sources.checkpoint, "pt") as file:
        for name in ("mean-of-means", "std-of-means"):
            stored = file.get_tensor(f"vae.per_channel_statistics.{name}").float().numpy()
            assert any(same_floats(value.const_value, stored) for value in graph.initializers.values())


def test_an_exported_upsampler_gives_what_diffusers_does_with_its_file(exported):
    release = exported(RELEASE)
    size, channels = release.version.upsampler_size, release.version.vae_size.latent_channels
    theirs = diffusers_upsampler(config_of("spatial", channels, size.mid_channels, size.blocks_per_stage))
    theirs.load_state_dict({key: values.float() for key, values in load_file(release.sources.upscaler).items()})
    checkpoint = load_file(release.sources.checkpoint)
    mean, deviation = (
        checkpoint[f"vae.per_channel_statistics.{name}-of-means"].float()[:, None, None, None]
        for name in ("mean", "std")
    )
    latents = normal(5, 2, channels, 3, 4, 5)
    with torch.no_grad():
        expected = (theirs(latents * deviation + mean) - mean) / deviation
    with open_session(find(open_engines(release.folder), "upsampler", "cpu")) as session:
        assert distance(session.run({"latents": latents.numpy()})["upsampled"], expected) <= RELATIVE_L2


def test_a_release_becomes_an_engine_that_is_accepted(exported, tmp_path):
    engines = copied(exported(RELEASE), tmp_path)
    build_engine(address(engines, "upsampler"), Recipe())
    sidecar = check_engine(address(engines, "upsampler"))
    assert sidecar.profiles == profiles(engines.component("upsampler").signature)
