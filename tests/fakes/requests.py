"""Default requests for tests."""

from ltx_runtime.planning.request import Request, Resolved, resolved
from ltx_runtime.spec.versions import Version
from ltx_runtime.text.tokenizer import padded

# A video that takes no time on the fake stages, and the components that the demo version runs for it.
SMALL = {"height": 64, "width": 96, "num_frames": 9, "seed": 7}
ROAD = ("text_encoder", "transformer", "upsampler", "transformer", "vae_decoder")


def default_request(version: Version, prompt: str, seed: int) -> Resolved:
    """Returns a request with the version's defaults for everything but prompt and seed."""
    return resolved(Request(prompt, seed=seed), version)


def encoded(tokenizer, prompts):
    """Returns token ids and attention mask of prompts, both (B, T) int64."""
    return padded([tokenizer.tokens(prompt) for prompt in prompts])
