"""Latents <-> frames: encoding, decoding, upsampling, and the tiles in which a VAE works."""
