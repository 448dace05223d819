"""Stored weights: tensors by their place in a file, and the LoRAs that change them."""
