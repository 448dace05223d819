"""The version folder `engines/<version>/` on disk: its manifest, its engines' sidecars, and the sizes they serve."""
