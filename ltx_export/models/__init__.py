"""Lean torch modules with the official parameter names, whose forward takes exactly its component's ports.

They know nothing of checkpoints, ONNX or files. Widths and depths come from their configuration. Parameters have
torch's default dtype at construction; ports are float32 or int64, and what must stay float32 inside does.
"""
