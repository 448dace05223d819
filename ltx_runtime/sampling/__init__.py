"""Noise -> latents: schedule, guidance, conditioning and the denoising loop."""
