"""A version folder, `engines/<version>/`, on disk: its manifest, engines' sidecars, and the sizes they serve."""
