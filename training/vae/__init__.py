"""How the demo's VAE is trained: a linear code of clips, an encoder that learns it, a decoder that draws from it."""
