"""A linear code of clips: the principal components of cells of 32x32 pixels and 8 frames, found level by level.

Latents of the demo are this code. It is known before any network is trained, so the encoder, the decoder and the
transformer learn from fixed numbers, each on its own, and the decoder starts as the code's inverse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_export.models.vae_blocks import PATCH, fold, patchify, unfold, unpatchify
from training.clips import Clips

LEVELS = 4  # from patches of 4x4 pixels in one frame, each level doubles rows, columns and frames
BEFORE = 7  # copies of the first frame that fill the first cell, as causal convolutions pad it
HALVES = (2, 2, 2)
_MATRICES = ("analysis", "synthesis")


@dataclass(frozen=True, eq=False)
class LinearCode:
    """A code of K components for each cell of 8 frames, 32 rows and 32 columns.

    A component's variance is its deviation in the clips, not its square: half way between components as they are, of
    which one is a hundred times another, and those of unit variance, among which noise in the finest counts as much
    as in the mean colour.

    Attributes:
        mean: mean of patches of 4x4 pixels, (48,), in the order of `patchify`.
        analysis: for each level, the matrix (features, components) that turns the features of a cell, which are the
            components of its eight halves, into its own.
        synthesis: for each level, the matrix (components, features) of the way back.
        deviations: standard deviations (K,) of the last level's features; a code is such a feature divided by the root.
    """

    mean: Tensor
    analysis: tuple[Tensor, ...]
    synthesis: tuple[Tensor, ...]
    deviations: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Returns all of the code by name."""
        levels = zip(self.analysis, self.synthesis, strict=True)
        matrices = {f"{i}.{name}": m for i, pair in enumerate(levels) for name, m in zip(_MATRICES, pair, strict=True)}
        return {"mean": self.mean, "deviations": self.deviations, **matrices}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> LinearCode:
        """Returns the code whose `tensors` these are."""
        analysis, synthesis = (tuple(tensors[f"{i}.{name}"] for i in range(LEVELS)) for name in _MATRICES)
        return LinearCode(tensors["mean"], analysis, synthesis, tensors["deviations"])

    def encode(self, video: Tensor) -> Tensor:
        """Converts video (B, 3, 8F-7, 32H, 32W) in [-1, 1] to codes (B, K, F, H, W)."""
        return self._features(video, LEVELS) / _over_cells(self.deviations.sqrt())

    def decode(self, codes: Tensor) -> Tensor:
        """Converts codes (B, K, F, H, W) to the video (B, 3, 8F-7, 32H, 32W) that is nearest to what they can say."""
        features = codes * _over_cells(self.deviations.sqrt())
        for matrix in reversed(self.synthesis[1:]):
            features = unfold(_mapped(features, matrix))
        patches = _mapped(features, self.synthesis[0]) + _over_cells(self.mean)
        return unpatchify(patches)[:, :, BEFORE:]

    def _features(self, video: Tensor, levels: int) -> Tensor:
        """Returns the components (B, C, F, H, W) of cells after a number of levels."""
        features = patchify(with_first_cell(video)) - _over_cells(self.mean)
        for level, matrix in enumerate(self.analysis[:levels]):
            features = _mapped(fold(features, HALVES) if level else features, matrix)
        return features


def fit_code(clips: Clips, count: int, components: tuple[int, ...], weight_of_things: float) -> LinearCode:
    """Finds the code of clips.

    Args:
        clips: clips of which the first `count` are looked at.
        count: number of clips.
        components: number of components at each level, from 4x4 pixels to whole cells.
        weight_of_things: how much more a cell weighs that is covered by things than one without any.
    """
    sums = sum(patchify(clips.video(number)).mean((0, 2, 3, 4)) for number in range(count))
    code = LinearCode(torch.as_tensor(sums) / count, (), (), torch.ones(()))
    for level, kept in enumerate(components):
        basis, deviations = principal_components(_level(clips, count, code, level, weight_of_things), kept)
        scale = float(deviations.square().mean().sqrt())  # so that all levels have features of about unit variance
        code = LinearCode(
            code.mean, (*code.analysis, basis / scale), (*code.synthesis, scale * basis.T), deviations / scale
        )
    squares = sum(rows_of(code._features(clips.video(number), LEVELS)).square().mean(0) for number in range(count))
    return LinearCode(code.mean, code.analysis, code.synthesis, (torch.as_tensor(squares) / count).sqrt())


def _level(
    clips: Clips, count: int, code: LinearCode, level: int, weight_of_things: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the features (cells, C) of a level, clip by clip, and the cells' weights (cells, 1)."""
    cell = (2**level, PATCH * 2**level, PATCH * 2**level)
    for number in range(count):
        below = code._features(clips.video(number), level)
        weights = 1 + weight_of_things * F.avg_pool3d(with_first_cell(clips.coverage(number)), cell)
        yield rows_of(fold(below, HALVES) if level else below), rows_of(weights)


def principal_components(features: Iterable[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """Returns the principal directions (C, count) of rows (n, C) with weights (n, 1), and the deviations along them."""
    total, covariance = 0.0, torch.zeros((), dtype=torch.float64)
    for rows, weights in features:
        covariance = covariance + ((rows * weights).T @ rows).double()
        total += float(weights.sum())
    variances, directions = torch.linalg.eigh(covariance / total)  # in ascending order
    return directions.flip(1)[:, :count].float(), variances.flip(0)[:count].clamp_min(0).sqrt().float()


def with_first_cell(x: Tensor) -> Tensor:
    """Puts copies of the first frame before x (B, C, F, H, W), so that whole cells begin with it."""
    return torch.cat([x[:, :, :1].expand(-1, -1, BEFORE, -1, -1), x], dim=2)


def rows_of(x: Tensor) -> Tensor:
    """Converts (B, C, F, H, W) to (cells, C)."""
    return x.movedim(1, -1).flatten(0, -2)


def _mapped(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiplies the channels of x (B, C, F, H, W) with a matrix (C, D)."""
    return torch.einsum("bcfhw,cd->bdfhw", x, matrix)


def _over_cells(values: Tensor) -> Tensor:
    return values[:, None, None, None]
