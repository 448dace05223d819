"""The GPU through cuda-bindings: which GPU there is, its memory, and one stream on it."""
