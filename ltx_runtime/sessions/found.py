"""Describes the graph or engine that a backend would run for a component, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.profiles import Profile
from ltx_runtime.folder.sidecar import Sidecar
from ltx_runtime.replacing.held import UNHELD, Held
from ltx_runtime.spec.components import Component
from ltx_runtime.weights.merging import Merging

# Estimates for a GPU, not measured yet: the share of its memory that is left beside the driver and other programs, the
# memory of a CUDA context and its libraries, and the least memory that is assumed to be left for activations.
_USABLE_SHARE, _CONTEXT_BYTES, _MIN_ACTIVATION_BYTES = 0.9, 1_500_000_000, 500_000_000


@dataclass(frozen=True)
class Found:
    """The ONNX graph that a backend would run for a component; nothing of it is loaded.

    Attributes:
        backend: name of the backend, a key of BACKENDS.
        component: ports of the component.
        path: path of the graph, or of the engine.
        weights: folder of the weight files; the graph names them relative to it.
        precision: precision of the graph, or of the graph from which the engine was built.
        parameters: number of parameters of the component.
        file_bytes: size of each weight file, or of the engine and of each file with weights that are its inputs;
            components may share files.
        packed_bytes: memory of the backend's own copy of the weights; 0 if it maps the files.
        gpu_bytes: total memory of the GPU that runs it; None on a CPU.
        gpu_memory_bytes: how much of the GPU's memory may be used; None for all that is free.
        threads: number of CPU threads; None for one per core.
        named: size in bytes of each weight file, by the name that the graph has for it; empty for an engine.
        reasons: one clause for each backend that was tried before this one, with the reason why it cannot be used.
        merging: LoRAs that are merged into its weights when it is loaded; None for no LoRAs.
        held: the version folder, which stays readable if an export replaces it before the component is loaded.
    """

    backend: str
    component: Component
    path: Path
    weights: Path
    precision: str = "fp32"
    parameters: int = 0
    file_bytes: Mapping[Path, int] = field(default_factory=dict, compare=False)
    packed_bytes: int = 0
    gpu_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    threads: int | None = None
    named: Mapping[str, int] = field(default_factory=dict, compare=False)
    reasons: tuple[str, ...] = ()
    merging: Merging | None = None
    held: Held = field(default=UNHELD, compare=False, repr=False)

    def placed(self) -> Found:
        """Returns the same with the paths that the files have now, should an export have replaced the folder."""
        merging = self.merging
        if merging is not None:
            changed = {name: replace(one, file=self.held.now(one.file)) for name, one in merging.changed.items()}
            merging = replace(merging, changed=changed)
        return replace(self, path=self.held.now(self.path), weights=self.held.now(self.weights), merging=merging)

    @property
    def profiles(self) -> Sequence[Profile]:
        """The sizes that it serves; empty for a graph, which serves all sizes."""
        return ()

    @property
    def weights_bytes(self) -> int:
        """Size of all weight files, or of the engine and the weights that are its inputs."""
        return sum(self.file_bytes.values())

    @property
    def held_bytes(self) -> Mapping[Path, int]:
        """Memory of the weights while the component is open: of its own copy, or of files that others may share."""
        return {self.path: self.packed_bytes} if self.packed_bytes else self.file_bytes

    @property
    def usable_gpu_bytes(self) -> int | None:
        """GPU memory that all open components together may take; None on a CPU."""
        if self.gpu_bytes is None:
            return None
        return min(int(_USABLE_SHARE * self.gpu_bytes), self.gpu_memory_bytes or self.gpu_bytes)

    @property
    def activation_bytes(self) -> int | None:
        """Estimated GPU memory that is left for activations; None on a CPU."""
        usable = self.usable_gpu_bytes
        if usable is None:
            return None
        return max(usable - self._loaded_bytes() - _CONTEXT_BYTES, _MIN_ACTIVATION_BYTES)

    def _loaded_bytes(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True, kw_only=True)
class FoundEngine(Found):
    """The engine that a backend would run for a component, made by `engine_found` after `check_engine`.

    Attributes:
        address: identifies the engine, and has the command that builds it again.
        sidecar: records the engine's sources, the sizes it serves, and where its weights are.
    """

    address: EngineAddress
    sidecar: Sidecar

    @property
    def profiles(self) -> Sequence[Profile]:
        """The sizes that the engine serves, in its own order."""
        return self.sidecar.profiles

    def _loaded_bytes(self) -> int:
        return self.weights_bytes

    def rebuild_command(self) -> str:
        """Returns the command that builds the engine again with the same options."""
        return self.address.rebuild_command(self.sidecar.options)
