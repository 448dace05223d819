"""The graph that makes frames on a GPU, and that comes with the runtime, is the one that the exporter's code makes."""

import onnx

from ltx_export.graphs import frames


def test_the_runtime_has_this_graph():
    assert frames.PATH.read_bytes() == frames.graph_of_frames()
    onnx.checker.check_model(onnx.load(frames.PATH), full_check=True)
