"""The Hugging Face hub: its files, checked byte by byte, and what the environment says of the way to it."""
