"""Turns a checkpoint into a folder of ONNX graphs and engines. May import ltx_runtime, never the reverse."""
