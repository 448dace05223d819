"""Seed -> every random draw of a run."""
