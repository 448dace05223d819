"""Requests for tests."""

from ltx_runtime.planning.request import Request, Resolved, resolved
from ltx_runtime.spec.versions import Version


def default_request(version: Version, prompt: str, seed: int) -> Resolved:
    """A request in which everything but prompt and seed is the version's own."""
    return resolved(Request(prompt, seed=seed), version)
