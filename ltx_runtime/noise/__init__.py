"""Turns a seed into every random draw of a run."""
