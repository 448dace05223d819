"""Loads and runs engines of TensorRT and of TensorRT-RTX with the same code."""
