"""Engines of TensorRT and TensorRT-RTX, run by one code path."""
