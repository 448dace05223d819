"""Builds TensorRT and TensorRT-RTX engines from ONNX graphs; imports no torch."""
