"""Prompt -> text embeddings."""
