"""How the demo's text encoder and transformer are trained: latents with captions, and the way from noise to them."""
