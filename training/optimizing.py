"""The optimizer of all stages: Muon for matrices and kernels, AdamW for all else; the result are averaged weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

WARM_UP = 100  # steps
SLOWEST_AVERAGE = 0.995  # what a step leaves of the average
MOMENTUM = 0.95
BETAS = (0.9, 0.99)
REPORTS = 100  # reports of a stage

# Coefficients of an odd polynomial of the fifth degree which, applied five times, brings every singular value near 1.
# Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024).
ORTHOGONALIZING, TIMES = (3.4445, -4.7750, 2.0315), 5


@dataclass(frozen=True)
class Plan:
    """How long a stage goes on and how fast: its steps, and the rates of Muon and of AdamW.

    Rates rise for 100 steps, stay until the share `constant` of all steps, and fall from there in a straight line to
    the share `least` of what they were.
    """

    steps: int
    rate: float
    other_rate: float
    constant: float = 0.4
    least: float = 0.03

    def factor(self, step: int) -> float:
        """Returns the factor of both rates at a step, which are counted from 0."""
        begin = self.constant * self.steps
        fallen = max(0.0, step - begin) / max(1.0, self.steps - begin)
        return min(1.0, (step + 1) / WARM_UP) * (1 - (1 - self.least) * fallen)


class Muon:
    """Moves each matrix by a fixed step along the nearest orthogonal matrix of its gradients with momentum.

    Kernels of convolutions are matrices (channels, all else). Those of one shape are taken together.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.momenta = [(parameter, torch.zeros_like(parameter)) for parameter in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Changes all parameters by their gradients; singular values of the change are about as large as the rate."""
        alike: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter, momentum in self.momenta:
            if parameter.grad is not None:
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                direction = (parameter.grad + MOMENTUM * momentum).flatten(1)
                alike.setdefault((direction.shape[0], direction.shape[1]), []).append((parameter, direction))
        for (rows, columns), pairs in alike.items():
            directions = orthogonal(torch.stack([direction for _, direction in pairs]).bfloat16())  # as in the source
            for (parameter, _), direction in zip(pairs, directions, strict=True):
                parameter.add_(direction.view_as(parameter), alpha=-rate * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Returns matrices (N, R, C) with the same singular vectors, whose singular values are all about 0.7 to 1.2."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    result: Tensor = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-12)
    first, third, fifth = ORTHOGONALIZING
    for _ in range(TIMES):
        gram = result @ result.mT
        result = first * result + (third * gram + fifth * (gram @ gram)) @ result
    return result if matrices.shape[1] <= matrices.shape[2] else result.mT


class Averages:
    """Averages of weights over the last steps, and a few at the beginning."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step, which are counted from 0."""
        left = min(SLOWEST_AVERAGE, (step + 1) / (step + 10))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, 1 - left)


Losses = Mapping[str, Tensor]
Curve = list[dict[str, float]]


def optimize(
    parameters: Mapping[str, nn.Parameter],
    is_matrix: Callable[[str, nn.Parameter], bool],
    plan: Plan,
    losses_at: Callable[[int], Losses],
    report: Callable[[str], None],
    unfinished: Path,
) -> tuple[dict[str, Tensor], Curve]:
    """Minimizes the loss of a stage, from its start or from where it was stopped.

    Args:
        parameters: all weights that are trained; each one's gradient is forgotten after every step.
        is_matrix: tells which of them are for Muon.
        plan: steps and rates.
        losses_at: step -> its loss under the name "loss", and what else is to be reported. All that is random there
            comes from the step, so that a stage that was stopped ends like one that was not.
        report: gets a line about a hundred times.
        unfinished: the file that has the state at the last report; the caller removes it.

    Returns:
        The averaged weights by name, and a row for each report: the step, and means of all losses since the last one.
    """
    muon = Muon(p for name, p in parameters.items() if is_matrix(name, p))
    others = [p for name, p in parameters.items() if not is_matrix(name, p)]
    adam = torch.optim.AdamW(others, lr=plan.other_rate, betas=BETAS, weight_decay=0.0)
    state = _State(parameters, muon, adam, unfinished)
    every, started, sums = max(1, plan.steps // REPORTS), time.monotonic(), Sums()
    for step in range(state.steps, plan.steps):
        adam.param_groups[0]["lr"] = plan.other_rate * plan.factor(step)
        losses = losses_at(step)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        muon.step(plan.rate * plan.factor(step))
        adam.step()
        for parameter in parameters.values():
            parameter.grad = None
        state.averages.update(step)
        sums.add(losses)
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            means, sums = sums.means(), Sums()
            state.curve.append({"step": step + 1.0} | means)
            state.steps = step + 1
            state.save()
            shown = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            report(f"step {step + 1} of {plan.steps}, {time.monotonic() - started:.0f} s: {shown}")
    return state.averages.values, state.curve


class Sums:
    """Sums of losses over steps."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.count = 0

    def add(self, losses: Losses) -> None:
        """Adds the losses of a step."""
        self.count += 1
        for name, loss in losses.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(loss.detach())

    def means(self) -> dict[str, float]:
        """Returns the mean of each loss."""
        return {name: total / self.count for name, total in self.totals.items()}


class _State:
    """All that changes while a stage is trained; it begins as a file says, if there is one."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], muon: Muon, adam: torch.optim.Optimizer, path: Path
    ) -> None:
        self.steps, self.curve, self.path = 0, Curve(), path
        self.parameters, self.muon, self.adam = dict(parameters), muon, adam
        self.averages = Averages(parameters)
        if path.exists():
            self._load()

    def save(self) -> None:
        momenta = [momentum for _, momentum in self.muon.momenta]
        temporary = self.path.with_name(self.path.name + ".part")
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        torch.save([self.steps, self.curve, weights, self.averages.values, momenta, self.adam.state_dict()], temporary)
        temporary.rename(self.path)

    @torch.no_grad()
    def _load(self) -> None:
        self.steps, self.curve, weights, averages, momenta, adam = torch.load(self.path, weights_only=True)
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
            self.averages.values[name].copy_(averages[name])
        for (_, momentum), saved in zip(self.muon.momenta, momenta, strict=True):
            momentum.copy_(saved)
        self.adam.load_state_dict(adam)
