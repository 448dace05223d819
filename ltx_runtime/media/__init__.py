"""Files <-> pixels: images and clips that are given, and videos that are written."""
