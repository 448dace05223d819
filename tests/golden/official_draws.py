"""Replaces or records every random draw of the official pipelines, by name.

The official code draws with `torch.randn`, from a given generator or from torch's global stream, and with
`torch.randn_like`. During a run, `Draws` replaces both. Each draw gets a key from the part of the pipeline that makes
it; a draw without a key, or with the same key as another, ends the run with an error. In a `seeded` case the numbers
depend on seed and key alone; in a `torch` case they are the official ones, and how they were drawn is recorded.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from oracles.pipeline_cases import Case

RANDN, RANDN_LIKE = torch.randn, torch.randn_like


def seeded(seed: int, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Draws float32 standard normals that depend on the seed, the key and the shape alone."""
    state = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, zlib.crc32(key.encode())])
    return torch.from_numpy(state.standard_normal(shape).astype(np.float32))


class Draws:
    """The random draws of one run.

    Attributes:
        drawn: (stream, key, shape, strides) of each draw in order. A seeded draw's strides are None, and its shape
            is the final one: latents are (B, C, F, H, W), and all maps of a block are one draw.
        number: number of the pass, from 1.
        step: number of finished steps of the pass.
    """

    def __init__(self, case: Case, decoder: torch.nn.Module) -> None:
        self.case, self.decoder = case, decoder
        self.generator = torch.Generator("cpu").manual_seed(case.seed)
        self.drawn: list[tuple[str, str, tuple[int, ...], tuple[int, ...] | None]] = []
        self.number = self.step = 0  # of the pass, and of its finished steps
        self._item = -1
        self._part: str | None = None
        self._latent_shape: tuple[int, ...] = ()
        self._block = -1
        self._maps: dict[int, Iterator[torch.Tensor]] = {}

    def begin_pass(self) -> None:
        self.number, self.step, self._item = self.number + 1, 0, -1

    @contextmanager
    def during(self, part: str, latent_shape: tuple[int, ...] = ()) -> Iterator[None]:
        """Marks `part` of the pipeline as running."""
        self._part, self._latent_shape = part, tuple(latent_shape)
        yield
        self._part = None

    @contextmanager
    def given(self) -> Iterator[None]:
        """Replaces torch's draws, and checks that nothing is drawn past the replacements."""
        torch.manual_seed(self.case.seed)
        before = torch.get_rng_state(), self.generator.get_state()
        hooks = [
            block.register_forward_pre_hook(lambda *_, i=i: setattr(self, "_block", i))
            for i, block in enumerate(self.decoder.up_blocks)
        ]
        with patch.object(torch, "randn", self.randn), patch.object(torch, "randn_like", self.randn_like):
            yield
        for hook in hooks:
            hook.remove()
        if self.case.rng == "seeded":
            after = torch.get_rng_state(), self.generator.get_state()
            assert all(map(torch.equal, before, after)), f"{self.case.name}: a draw went past its stand-in"
        keys = [key for _, key, *_ in self.drawn]
        assert len(set(keys)) == len(keys), f"{self.case.name}: two draws have one key"

    def randn(self, shape: torch.Size, *, generator: torch.Generator | None = None, **options: object) -> torch.Tensor:
        """Stands in for `torch.randn`."""
        stream = "global" if generator is None else "generator"
        assert generator in (None, self.generator)
        key = self._key(stream)
        if self.case.rng == "torch":
            return self._kept(stream, key, RANDN(shape, generator=generator, **options))
        if key.startswith("decoder/"):
            return self._map(key, tuple(shape))
        if not key.endswith("/initial"):
            return self._seeded(stream, key, tuple(shape))
        return self._seeded(stream, key, self._latent_shape).flatten(2).transpose(1, 2).reshape(shape)

    def randn_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stands in for `torch.randn_like`: noise of a step, or noise mixed into the latents before decoding."""
        expected = {"step": 3, None: 5}
        if expected.get(self._part) != tensor.ndim:
            raise LookupError(f"{self.case.name}: randn_like of {tuple(tensor.shape)} during {self._part} has no key")
        key = "decode" if self._part is None else f"pass{self.number}/step_{self.step}"
        if self.case.rng == "torch":
            return self._kept("global", key, RANDN_LIKE(tensor))
        return self._seeded("global", key, tuple(tensor.shape))

    def _key(self, stream: str) -> str:
        """Returns the key of a `torch.randn` draw; posteriors come from the global stream, one per item in order."""
        if self._part is None and stream == "global" and self._block >= 0:
            return f"decoder/noise_{self._block}"
        self._item += self._part == "items" and stream == "global"
        keys = {
            ("latents", "generator"): "initial",
            ("latents", "global"): "posterior_video",
            ("items", "global"): f"posterior_{self._item}",
            ("items", "generator"): f"keyframe_{self._item}",
            ("image", "generator"): f"image_{self.step}",
        }
        if (self._part, stream) not in keys:
            raise LookupError(f"{self.case.name}: a draw from the {stream} stream during {self._part} has no key")
        return f"pass{self.number}/{keys[self._part, stream]}"

    def _map(self, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Returns the next noise map of a decoder block, which has two for each of its layers."""
        if self._block not in self._maps:
            count = 2 * len(self.decoder.up_blocks[self._block].res_blocks)
            self._maps[self._block] = iter(self._seeded("global", key, (count, *shape)))
        return next(self._maps[self._block])

    def _seeded(self, stream: str, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        self.drawn.append((stream, key, shape, None))
        return seeded(self.case.seed, key, shape)

    def _kept(self, stream: str, key: str, noise: torch.Tensor) -> torch.Tensor:
        if key.startswith("decoder/"):  # every map has its own key
            key += f"/{sum(other.startswith(key) for _, other, *_ in self.drawn)}"
        self.drawn.append((stream, key, tuple(noise.shape), noise.stride()))
        return noise
