"""A run of the training: where its stages put what they make, and how much of the recipe they do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.optimizing import Curve, Plan


@dataclass(frozen=True)
class Run:
    """Where a run keeps its files, its seed, how much of the recipe it does, and who hears of it.

    Attributes:
        folder: where stages put down what they make.
        seed: seed of all that is random.
        share: of all steps and clips.
        report: gets lines for people.
    """

    folder: Path
    seed: int = 0
    share: float = 1.0
    report: Callable[[str], None] = print

    def seed_of(self, purpose: str) -> int:
        """Returns the seed for a purpose: of all the purposes in `stages`, no two have the same."""
        return self.seed * 1000 + sum(purpose.encode())

    def plan(self, plan: Plan) -> Plan:
        """Returns a plan with the run's share of its steps."""
        return replace(plan, steps=self.count(plan.steps))

    def count(self, whole: int) -> int:
        """Returns the run's share of a number of clips or steps, at least 1."""
        return max(1, round(self.share * whole))

    def has(self, name: str) -> bool:
        """Tells whether a stage has put down its result."""
        return self._path(name).exists()

    def save(self, name: str, tensors: Mapping[str, Tensor], curve: Curve) -> None:
        """Puts down the result of a stage: its tensors, and the rows of its curve."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(curve))
        temporary = path.with_suffix(".part")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)
        temporary.rename(path)
        self.unfinished(name).unlink(missing_ok=True)

    def load(self, name: str) -> dict[str, Tensor]:
        """Returns the tensors of a stage's result."""
        return load_file(self._path(name))

    def unfinished(self, name: str) -> Path:
        """Returns the path at which a stage keeps what it needs to go on where it was stopped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name}-{self.share:g}-{self.seed}.unfinished"  # other steps are another training

    def start(self, purpose: str) -> None:
        """Seeds all that follows in a stage, so that a stage gives the same result alone as after the others."""
        torch.manual_seed(self.seed_of(purpose))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
