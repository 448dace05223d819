"""ONNX graphs that are traced from PyTorch modules, and whose initializers point into files of weights."""
