"""Calibration: how large the activations of a transformer are for real prompts -> products of 8-bit integers."""
