"""Laws of graphs on ONNX Runtime's CUDA provider: at real widths they open and run, and stay on the GPU.

Kernels are launched but compute nothing, so no number is looked at.
"""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from benchmarks.launches import run_twice, written_down
from ltx_export.build import ExportOptions, export_version
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import find_sources
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.sessions import UnsupportedError, find, open_session
from ltx_runtime.spec.versions import VERSIONS, TextEncoderSize, TransformerSize

PRECISIONS = ("bf16", "fp16", "fp32")
LAYERS, TEXT = 2, 4096
WIDE = {2048: 64, 4096: 128}  # width of 2B and 13B -> channels of a head; both have 32 heads
SIZES = {"batch": 1, "tokens": 960, "timesteps": 1, "text_tokens": 128}
SHAPES = {"Cast", "Concat", "Gather", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze", "Mul", "Add", "Div", "Sub"}
SMALL = 1024  # bytes: what is computed of shapes


@pytest.fixture(scope="module", params=sorted(WIDE))
def wide(request, tmp_path_factory):
    """Returns a folder with the transformer of a release at its real width, but of few layers."""
    folder = tmp_path_factory.mktemp("wide")
    version = replace(
        VERSIONS["0.9.5"],
        transformer=TransformerSize(LAYERS, 32, WIDE[request.param], TEXT),
        vae_size=VERSIONS["demo"].vae_size,
        text_encoder=TextEncoderSize(layers=1, width=TEXT, heads=4, head_dim=16, hidden=64, vocabulary=512),
    )
    write_random_weights(version, folder / "weights", sparse=True)
    return exported(version, folder, link=True, without=("text_encoder", "vae_encoder", "vae_decoder"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Returns a folder of the whole demo in all precisions."""
    folder = tmp_path_factory.mktemp("demo")
    write_random_weights(VERSIONS["demo"], folder / "weights")
    return exported(VERSIONS["demo"], folder)


def exported(version, folder, **options):
    options = ExportOptions(precisions=PRECISIONS, **options)
    export_version(version, find_sources(version, folder / "weights"), folder / "engines", options, lambda line: None)
    return Engines(folder / "engines", read_manifest(folder / "engines"))


def only(engines, name, precision):
    """Returns the engines with one precision of a component."""
    entry = engines.manifest.components[name]
    components = {**engines.manifest.components, name: replace(entry, graphs={precision: entry.graphs[precision]})}
    return replace(engines, manifest=replace(engines.manifest, components=components))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_transformer_runs_at_its_real_width_and_stays_on_the_gpu(wide, precision):
    found = find(only(wide, "transformer", precision), "transformer", "cuda")
    with open_session(found) as session:
        for tokens in (960, 12):
            feeds = {
                port.name: np.ones(port.shape({**SIZES, "tokens": tokens}), port.dtype)
                for port in session.component.inputs
            }
            assert session.run(feeds)["velocity"].shape == (1, tokens, 128)
    done = run_twice(found, SIZES)
    for operator, size in done.on_the_cpu():
        assert operator in SHAPES, operator
        assert size <= SMALL, operator
    assert not done.kernels_with("UnfusedSoftmax")
    flash, with_mask = done.kernels_with("flash_fwd_kernel"), done.kernels_with("attention_kernel_batched_impl")
    assert (flash, with_mask) == ((0, 2 * LAYERS) if precision == "fp32" else (LAYERS, LAYERS))
    assert done.kernels_with("RotaryEmbeddingBSNH<float>") == 2 * LAYERS


@pytest.mark.parametrize("name", ["vae_decoder", "vae_encoder", "upsampler", "text_encoder"])
def test_the_precision_that_is_preferred_opens_and_stays_on_the_gpu(demo, name):
    found = find(demo, name, "cuda")
    done = run_twice(found, {"batch": 1, "frames": 3, "rows": 4, "columns": 4, "text_tokens": 16})
    for operator, size in done.on_the_cpu():
        assert operator in SHAPES, operator
        assert size <= SMALL, operator


def test_upsamplers_have_no_kernels_in_bf16(demo):
    """As soon as they have, they need no precision of their own."""
    found = find(only(demo, "upsampler", "bf16"), "upsampler", "cuda")
    with pytest.raises(UnsupportedError, match=r"cannot run .*upsampler\.bf16\.onnx"), open_session(found):
        pass


def test_of_a_video_only_the_bytes_of_its_frames_leave_the_gpu(demo):
    taken = written_down()
    with open_session(find(demo, "vae_decoder", "cuda")) as session:
        sizes = {"batch": 1, "frames": 2, "rows": 3, "columns": 4}
        feeds = {port.name: np.ones(port.shape(sizes), port.dtype) for port in session.component.inputs}
        taken()
        made = session.run(feeds, ["frames", "mean"])
        copied = [int(line.split()[-1]) for line in taken() if line.startswith("copy device to host")]
    assert made["frames"].shape == (1, 9, 96, 128, 3)
    assert made["mean"].shape == (1,)
    assert max(copied) == made["frames"].nbytes
    assert sum(copied) <= made["frames"].nbytes + SMALL


def test_a_head_that_is_wider_than_a_block_of_threads_is_refused_as_on_a_gpu():
    """This is what rotation in pieces is for; stand-ins with larger blocks than those of a GPU would prove nothing."""
    nodes = [helper.make_node("RotaryEmbedding", ["x", "c", "s"], ["y"], num_heads=1, interleaved=1)]
    shapes = {"x": (1, 4, 2048), "c": (1, 4, 1024), "s": (1, 4, 1024), "y": (1, 4, 2048)}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "rotation", [values[name] for name in "xcs"], [values["y"]])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 23)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    with pytest.raises(Exception, match="max_threads_per_block"):
        session.run(None, {name: np.ones(shapes[name], np.float32) for name in "xcs"})
