"""Decides what of a version folder may be used: files that it lists inside itself, and what this user has made."""
