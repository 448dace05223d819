"""Lean torch modules with the official parameter names; each forward takes exactly its component's input ports.

They know nothing of checkpoints or files; of ONNX they use only the operators in `torch.onnx.ops`. Widths and depths
come from their configuration. Parameters have torch's default dtype at construction. Ports are float32 or int64, and
computations that need float32 run in float32 whatever the parameters' dtype.
"""
