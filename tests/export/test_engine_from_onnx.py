"""TensorRT-RTX's own parser and compiler, without a GPU: every component of every VAE generation becomes an engine."""

import errno
import shutil
import sys
from dataclasses import replace

import pytest
import tensorrt_rtx as library

from ltx_export import engine_from_onnx
from ltx_export.engine_from_onnx import BUILDER, build_engine, builder_library
from ltx_runtime.components import COMPONENT_NAMES, Port, Span, profiles
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import Engines, open_engines
from ltx_runtime.sidecar import check_engine, engine_path, read_sidecar, sidecar_path

# Releases that are exported in bf16 too, and what each of them is made of.
COMPONENTS = [
    (release, name)
    for release, passes in (("0.9.0", 1), ("0.9.1", 1), ("0.9.8-13b-distilled", 2))
    for name in COMPONENT_NAMES
    if name != "temporal_upsampler" and (passes == 2 or name != "upsampler")
]


@pytest.fixture
def engines(exported, tmp_path) -> Engines:
    """A version folder that a test may write engines into."""
    shutil.copytree(exported("0.9.8-13b-distilled").folder, tmp_path / "engines")
    return open_engines(tmp_path / "engines")


def path_of(engines: Engines, name: str):
    return engine_path(engines, name, BUILDER, library.__version__)


@pytest.mark.parametrize(("release", "name"), COMPONENTS)
def test_every_component_is_compiled_and_its_engine_is_accepted(exported, tmp_path, release, name):
    shutil.copytree(exported(release).folder, tmp_path / "engines")
    engines = open_engines(tmp_path / "engines")
    path = build_engine(engines, name)
    assert path == path_of(engines, name)
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, sidecar_path(path).name])
    sidecar = check_engine(engines, name, path, BUILDER, library.__version__)
    assert sidecar.profiles == profiles(engines.component(name).signature)
    assert path.stat().st_size > 10_000


def test_a_transformer_engine_serves_one_timestep_and_one_per_token(engines):
    one, per_token = read_sidecar(build_engine(engines, "transformer")).profiles
    assert one["timesteps"] == Span(1, 1, 1)
    assert per_token["timesteps"] == per_token["tokens"]


def test_a_profile_has_the_shapes_of_every_port_at_both_ends_and_in_between():
    builder = library.Builder(library.Logger(library.Logger.ERROR))
    ports = (Port("latents", ("batch", 8, "rows")), Port("noise", (14, "2*rows")), Port("table", (3, 4)))
    spans = {"batch": Span(1, 2, 3), "rows": Span(4, 5, 6)}
    profile = engine_from_onnx._profile(builder, ports, spans)
    assert [tuple(shape) for shape in profile.get_shape("latents")] == [(1, 8, 4), (2, 8, 5), (3, 8, 6)]
    assert [tuple(shape) for shape in profile.get_shape("noise")] == [(14, 8), (14, 10), (14, 12)]


def test_an_engine_whose_graph_was_exported_again_is_refused_with_the_command_that_rebuilds_it(engines):
    path = build_engine(engines, "text_encoder")
    graph = engines.component("text_encoder").graphs["bf16"]
    files = engines.manifest.files
    changed = replace(engines.manifest, files={**files, graph: replace(files[graph], checksum="other")})
    with pytest.raises(LtxError, match="another graph") as refused:
        check_engine(Engines(engines.folder, changed), "text_encoder", path, BUILDER, library.__version__)
    assert str(refused.value).endswith("run: ltx-export engine 0.9.8-13b-distilled --component text_encoder --force")


def test_a_graph_that_is_refused_leaves_no_engine_and_one_sentence(engines):
    (engines.folder / "text_encoder.bf16.onnx").write_bytes(b"no graph")
    with pytest.raises(LtxError, match="cannot parse") as refused:
        build_engine(engines, "text_encoder")
    assert "\n" not in str(refused.value)
    assert list(path_of(engines, "text_encoder").parent.iterdir()) == []


class FullDisk:
    """A file that takes a little and then nothing more; TensorRT takes an exception in its writer for success."""

    def __init__(self, error):
        self.error, self.room = error, 1000

    def write(self, data):
        if len(data) > self.room:
            raise self.error
        self.room -= len(data)
        return len(data)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full_disk", "ctrl_c"])
def test_an_engine_that_can_not_be_written_whole_is_none(engines, monkeypatch, error):
    path = build_engine(engines, "text_encoder")
    writer_of = engine_from_onnx._writer
    monkeypatch.setattr(engine_from_onnx, "_writer", lambda library, file: writer_of(library, FullDisk(error)))
    with pytest.raises(type(error)):
        build_engine(engines, "text_encoder")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(LtxError, match="has no sidecar"):
        check_engine(engines, "text_encoder", path, BUILDER, library.__version__)


def test_a_folder_without_a_bf16_graph_is_refused(exported, tmp_path):
    shutil.copytree(exported("0.9.5").folder, tmp_path / "engines")
    with pytest.raises(LtxError, match="has no bf16 graph of transformer"):
        build_engine(open_engines(tmp_path / "engines"), "transformer")


def test_a_missing_library_is_said_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(LtxError, match=r"pip install 'ltx-engines\[tensorrt-rtx\]'"):
        builder_library()
