"""Folders that are replaced while others read them, and what killed processes leave behind."""
