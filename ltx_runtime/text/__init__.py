"""Encodes prompts as prompt embeddings."""
