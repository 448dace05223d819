"""Training of small networks with the official architecture on drawn clips, for the demo version."""
