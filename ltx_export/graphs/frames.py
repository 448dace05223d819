"""The graph that makes frames of a decoder's video, for backends whose library can pass it on without a copy.

It comes with the runtime, which has no library to make it: `python -m ltx_export.graphs.frames` writes it again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import ltx_runtime.sessions.cuda
from ltx_export.graphs.onnx_from_torch import OPSET

PATH = Path(ltx_runtime.sessions.cuda.__file__).with_name("frames.onnx")
_IR_VERSION = 10  # the oldest that has the opset
_VIDEO = ("batch", 3, "frames", "height", "width")


def graph_of_frames() -> bytes:
    """Returns the graph from `video` (B, 3, F, H, W) float32 to `frames` (B, F, H, W, 3) uint8 and `mean` (B,).

    `frames` is floor(255 * clip(video / 2 + 0.5, 0, 1)). They are bytes before they are transposed, which moves a
    quarter of the memory.
    """
    node = helper.make_node
    nodes = [
        node("Mul", ["video", "half"], ["scaled"]),
        node("Add", ["scaled", "half"], ["shifted"]),
        node("Clip", ["shifted", "nothing", "one"], ["clipped"]),
        node("Mul", ["clipped", "levels"], ["level"]),
        node("Cast", ["level"], ["bytes"], to=TensorProto.UINT8),  # towards zero
        node("Transpose", ["bytes"], ["frames"], perm=(0, 2, 3, 4, 1)),
        node("ReduceMean", ["video", "all_but_batch"], ["mean"], keepdims=0),
    ]
    constants = {
        "half": np.float32(0.5),
        "nothing": np.float32(0.0),
        "one": np.float32(1.0),
        "levels": np.float32(255.0),
        "all_but_batch": np.arange(1, 5),
    }
    graph = helper.make_graph(
        nodes,
        "frames",
        [helper.make_tensor_value_info("video", TensorProto.FLOAT, _VIDEO)],
        [
            helper.make_tensor_value_info("frames", TensorProto.UINT8, ("batch", "frames", "height", "width", 3)),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, ("batch",)),
        ],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    model.producer_name = "ltx-engines"
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    PATH.write_bytes(graph_of_frames())
