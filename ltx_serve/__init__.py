"""Lets many people and machines ask for videos: a queue, workers, an HTTP interface and a page. Never imports torch."""
