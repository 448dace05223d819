"""A bundle: one tar file with a version folder, wheels and an installer, for a machine that has only Python."""
