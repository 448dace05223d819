"""Default requests for tests."""

from ltx_runtime.planning.request import Request, Resolved, resolved
from ltx_runtime.spec.versions import Version


def default_request(version: Version, prompt: str, seed: int) -> Resolved:
    """Returns a request with the version's defaults for everything but prompt and seed."""
    return resolved(Request(prompt, seed=seed), version)
