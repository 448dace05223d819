"""A PyTorch module -> an ONNX graph whose initializers point into files."""
