"""Readers that turn any weights file into named tensors."""
