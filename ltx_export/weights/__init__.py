"""Where the bytes of weights end up: linked, rewritten, or streamed into a new file."""
