"""ONNX graphs as untrusted files: read within limits, and checked before a library sees them."""
