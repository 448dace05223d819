"""Weights that an engine file lacks: uploads them as inputs of the engine, or refits the engine from the checkpoint.

The session uses this module. Weights are plain bytes here, whatever their dtype.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.folder.sidecar import Sidecar, WeightInput, refit_graph_path
from ltx_runtime.sessions.cuda.device import Device
from ltx_runtime.sessions.cuda.memory import Buffer
from ltx_runtime.sessions.found import FoundEngine
from ltx_runtime.sessions.trt.files import leave
from ltx_runtime.sessions.trt.library import first_error, logger_of

_ALIGNMENT = 256


def weights_bytes(sidecar: Sidecar) -> int:
    """Returns how many bytes of GPU memory an engine's weights take that are inputs."""
    return sum(_places(sidecar.weight_inputs)[1:])


def _places(inputs: Mapping[str, WeightInput]) -> list[int]:
    """Returns the offset of each weight in one buffer, followed by the size of the buffer."""
    places = [0]
    for weight in inputs.values():
        places.append(places[-1] + -(-weight.size_bytes // _ALIGNMENT) * _ALIGNMENT)
    return places


class WeightInputs:
    """The weights that are inputs of an engine, in one GPU buffer until freed.

    Attributes:
        addresses: address of each weight on the GPU, by input name.
    """

    def __init__(self, device: Device, found: FoundEngine, advice: str) -> None:
        """Uploads the weights from the files to which the engine's sidecar refers.

        Args:
            device: the device, which must have been joined.
            found: the engine.
            advice: what to do when there is too little memory.

        Raises:
            LtxError: a file is missing or too short, or there is too little memory.
        """
        export = found.address.engines.export_command()
        inputs = found.sidecar.weight_inputs
        files = {file: _mapped(found.weights / file, export) for file in {weight.file for weight in inputs.values()}}
        for name, weight in inputs.items():
            if weight.offset + weight.size_bytes > files[weight.file].size:
                raise LtxError(f"{found.weights / weight.file} ends before {name}", command=export)
        *places, size = _places(inputs)
        self._device = device
        self._buffer = device.allocate(size, f"the weights of {found.component.name}", advice)
        self.addresses: dict[str, int] = {}
        try:
            for (name, weight), place in zip(inputs.items(), places, strict=True):
                device.upload(
                    files[weight.file][weight.offset : weight.offset + weight.size_bytes], self._buffer, place
                )
                self.addresses[name] = self._buffer.address + place
            device.synchronize()
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Waits for all work and frees the buffer."""
        _wait_and_free(self._device, self._buffer)


def _wait_and_free(device: Device, buffer: Buffer) -> None:
    try:
        device.synchronize()
    finally:
        device.free(buffer)


def _mapped(path: Path, export: str) -> NDArray[np.uint8]:
    try:
        with explaining(f"read {path}"):
            return np.memmap(path, np.uint8, "r")
    except ValueError:  # an empty file cannot be mapped
        raise LtxError(f"{path} is empty", command=export) from None


def plan_path(found: FoundEngine) -> Path:
    """Returns the path of the refitted engine, which contains a hash of the checksums of engine, graph and weights."""
    bound_to = [found.sidecar.engine_checksum, found.sidecar.sources]
    digest = hashlib.sha256(json.dumps(bound_to, sort_keys=True).encode()).hexdigest()
    return found.path.with_name(f"{found.path.name}.{digest[:16]}.refitted")


def refit(library: Any, engine: Any, found: FoundEngine) -> None:
    """Refits an engine that was built without weights with those of the checkpoint.

    Raises:
        LtxError: the weights do not fit the engine; the error has no advice.
    """
    graph = refit_graph_path(found.path)
    logger = logger_of(library)
    logger.heard.clear()
    refitter = library.Refitter(engine, logger)
    parser = library.OnnxParserRefitter(refitter, logger)
    with explaining(f"read {graph}"):
        model = graph.read_bytes()
    if not parser.refit_from_bytes(model, str(found.weights / graph.name)):
        reasons = [" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors)]
        raise LtxError(f"{found.path} takes no weights from {graph} ({(reasons or [first_error(library)])[0]})")
    if not refitter.refit_cuda_engine():
        missing = refitter.get_missing_weights()
        reason = f"{missing[0]} is missing" if missing else first_error(library)
        raise LtxError(f"{found.path} takes no weights from {graph} ({reason})")


def keep_plan(library: Any, engine: Any, plan: Path) -> None:
    """Saves a refitted engine with its weights for the next session, and deletes those with other weights."""
    config = engine.create_serialization_config()
    config.clear_flag(library.SerializationFlag.EXCLUDE_WEIGHTS)
    data = engine.serialize_with_config(config)
    if data is None:
        return
    engine_name = plan.name.rsplit(".", 2)[0]
    for old_plan in plan.parent.glob(f"{engine_name}.*.refitted"):
        with suppress(OSError):
            old_plan.unlink()
    leave(plan, data)
