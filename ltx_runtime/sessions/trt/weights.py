"""An engine's weights that are not in it: uploaded as its inputs, or put into it from the checkpoint.

Stands below the session. Weights are bytes here, whatever their type.
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
from ltx_runtime.folder.manifest import export_command
from ltx_runtime.folder.sidecar import Sidecar, WeightInput, refit_graph_path
from ltx_runtime.sessions import FoundEngine
from ltx_runtime.sessions.cuda.device import Device
from ltx_runtime.sessions.cuda.memory import Buffer
from ltx_runtime.sessions.trt.files import leave
from ltx_runtime.sessions.trt.library import first_error, logger_of

_ALIGNMENT = 256


def weights_bytes(sidecar: Sidecar) -> int:
    """Memory of the GPU that weights take which are inputs."""
    return sum(_places(sidecar.weight_inputs)[1:])


def _places(inputs: Mapping[str, WeightInput]) -> list[int]:
    """Where each begins in one buffer, and last the end: the sum of what they take."""
    places = [0]
    for one in inputs.values():
        places.append(places[-1] + -(-one.size_bytes // _ALIGNMENT) * _ALIGNMENT)
    return places


class WeightInputs:
    """The values of weights that are inputs, in one buffer of the GPU until freed.

    `addresses` says where each is, by the input's name.
    """

    def __init__(self, device: Device, found: FoundEngine, advice: str) -> None:
        """Uploads them.

        Args:
            device: it has been joined.
            found: its sidecar says where they lie.
            advice: what to do when there is too little memory.

        Raises:
            LtxError: a file is missing or too short, or there is too little memory.
        """
        version = found.address.engines.manifest.version
        inputs = found.sidecar.weight_inputs
        files = {file: _mapped(found.weights / file, version) for file in {one.file for one in inputs.values()}}
        for name, one in inputs.items():
            if one.offset + one.size_bytes > files[one.file].size:
                raise LtxError(f"{found.weights / one.file} ends before {name}", command=export_command(version))
        *places, size = _places(inputs)
        self._device = device
        self._buffer = device.allocate(size, f"the weights of {found.component.name}", advice)
        self.addresses: dict[str, int] = {}
        try:
            for (name, one), place in zip(inputs.items(), places, strict=True):
                device.upload(files[one.file][one.offset : one.offset + one.size_bytes], self._buffer, place)
                self.addresses[name] = self._buffer.address + place
            device.synchronize()
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Waits for all work and gives their memory back."""
        _wait_and_free(self._device, self._buffer)


def _wait_and_free(device: Device, buffer: Buffer) -> None:
    try:
        device.synchronize()
    finally:
        device.free(buffer)


def _mapped(path: Path, version: str) -> NDArray[np.uint8]:
    try:
        with explaining(f"read {path}"):
            return np.memmap(path, np.uint8, "r")
    except ValueError:  # it is empty
        raise LtxError(f"{path} is empty", command=export_command(version)) from None


def plan_path(found: FoundEngine) -> Path:
    """Where the engine is kept that was refitted from these very weights."""
    bound_to = [found.sidecar.engine_checksum, found.sidecar.sources]
    digest = hashlib.sha256(json.dumps(bound_to, sort_keys=True).encode()).hexdigest()
    return found.path.with_name(f"{found.path.name}.{digest[:16]}.refitted")


def refit(library: Any, engine: Any, found: FoundEngine) -> None:
    """Puts the checkpoint's weights into an engine that was built without.

    Raises:
        LtxError: they are not the engine's; the message does not say what to do.
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
        lacking = refitter.get_missing_weights()
        reason = f"{lacking[0]} is missing" if lacking else first_error(library)
        raise LtxError(f"{found.path} takes no weights from {graph} ({reason})")


def keep_plan(library: Any, engine: Any, plan: Path) -> None:
    """Leaves a refitted engine, weights and all, for the next session, and removes those of other weights."""
    config = engine.create_serialization_config()
    config.clear_flag(library.SerializationFlag.EXCLUDE_WEIGHTS)
    data = engine.serialize_with_config(config)
    if data is None:
        return
    engine_name = plan.name.rsplit(".", 2)[0]
    for other in plan.parent.glob(f"{engine_name}.*.refitted"):
        with suppress(OSError):
            other.unlink()
    leave(plan, data)
