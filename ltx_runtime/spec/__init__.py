"""Describes LTX-Video as data: releases, presets, the ports of every network, and the geometry of latents."""
