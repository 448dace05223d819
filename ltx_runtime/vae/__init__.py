"""Latents <-> frames: encoding, decoding, upsampling, and the tiles in which the VAE works."""
