"""Access to the first GPU through cuda-bindings: its properties, its memory, and one stream."""
