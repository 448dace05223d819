"""Reads images and clips as pixels, and writes pixels as videos."""
