"""A graph -> a TensorRT or TensorRT-RTX engine. Imports no torch."""
