"""Puts merged weights in the place of a graph's own, which stay in their files unread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.weights.merging import Weight

# Data type of onnx, and numpy's type of the same size, for the dtype of a weight.
_DATA_TYPES: dict[str, tuple[int, type[Any]]] = {
    "F32": (1, np.float32),
    "F16": (10, np.float16),
    "BF16": (16, np.uint16),
}


def put_into_session(onnxruntime: Any, options: Any, weights: Mapping[str, Weight]) -> None:
    """Gives weights, by the name of the initializer, to the options with which an ONNX Runtime session is made.

    Args:
        onnxruntime: the library.
        options: its SessionOptions.
        weights: the weights; each has dtype and shape of the one that it replaces. The caller keeps their memory alive
            as long as there is a session.
    """
    if weights:
        make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
        values = [make(_array(weight), _DATA_TYPES[weight.dtype][0]) for weight in weights.values()]
        # It copies the values. `add_initializer` does not, but optimizers then compute with the values in the files.
        options.add_external_initializers([*weights], values)


def put_into_model(openvino: Any, model: Any, weights: Mapping[str, Weight]) -> None:
    """Replaces weights of a model that OpenVINO has read and not compiled; see `put_into_session`."""
    types = {"F32": openvino.Type.f32, "F16": openvino.Type.f16, "BF16": openvino.Type.bf16}
    constants = {op.get_friendly_name(): op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"}
    for name, weight in weights.items():
        values = openvino.Tensor(_array(weight), openvino.Shape([*weight.shape]), types[weight.dtype])
        constant = openvino.op.Constant(values, shared_memory=True)
        constant.set_friendly_name(name)
        for user in constants[name].output(0).get_target_inputs():
            user.replace_source_output(constant.output(0))


def _array(weight: Weight) -> NDArray[Any]:
    array: NDArray[Any] = weight.raw.view(_DATA_TYPES[weight.dtype][1]).reshape(weight.shape)
    return array
