"""What of a version folder may be used: what it lists inside itself, and what this machine's user has made."""
