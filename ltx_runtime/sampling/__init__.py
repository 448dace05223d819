"""Turns noise into latents: schedule, guidance, conditioning and the denoising loop."""
