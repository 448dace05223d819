"""The check of a request before it is accepted, in a process of its own, since its images and clips may be hostile."""
