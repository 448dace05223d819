"""The file beside an output from which a run that was killed goes on; it also claims the output's name.

It is a safetensors file: the state of the run as tensors, and how to make the video as metadata. Its process holds a
lock on it, so that others can tell an interrupted run from one that is under way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import Lock, lock_of, written_whole
from ltx_runtime.media.video import WRITERS, TakenError, target_of
from ltx_runtime.outputs.places import confined
from ltx_runtime.outputs.plain import from_fields
from ltx_runtime.outputs.record import OPTIONS, Recorded, parse_record
from ltx_runtime.outputs.state import State
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.tensors import names_in, packed, read_metadata, read_tensors
from ltx_runtime.text.embeddings import Text
from ltx_runtime.trust.signing import is_signed, signature_of

Floats = NDArray[np.float32]

SUFFIX = ".unfinished"
_KEY, _SIGNATURE = "ltx-unfinished", "signature"
_LONGEST_NAME, _KEPT_CHARACTERS = 255, 50  # bytes, and characters of at most four bytes
_LATENTS, _TEXT, _TOKENS = "latents/", "text/", "tokens"
_TEXT_FIELDS = ("embeddings", "mask", "negative_embeddings", "negative_mask")
# Writing takes at most this share of the time of a run.
SHARE_OF_TIME = 0.02


class Unfinished:
    """The open file of an unfinished run, locked by this process.

    Attributes:
        path: the file.
        about: how the video is made, as plain data, see `about_of`.
        state: how far the run is.
        note: is called with the problem if the state cannot be written.
        is_behind: whether the state could not be written the last time.
    """

    def __init__(self, path: Path, about: dict[str, Any], state: State, lock: Lock | None) -> None:
        self.path, self.about, self.state = path, about, state
        self.note: Callable[[str], None] = lambda text: None
        self.is_behind = False
        self._lock = lock
        self._written_at, self._writing_s = -float("inf"), 0.0

    @property
    def output(self) -> Path:
        """The file of the video."""
        return Path(self.about["output"])

    @property
    def engines(self) -> Path:
        """The version folder with which the run began."""
        return Path(self.about["engines"])

    @property
    def options(self) -> dict[str, Any]:
        """Fields of RunOptions by name, those that are not the defaults."""
        return dict(self.about["options"])

    def recorded(self) -> tuple[Recorded, dict[str, Any]]:
        """Returns what is made, and the fields of RunOptions that a record does not hold.

        Raises:
            LtxError: the file was written by another release, and this one does not understand it.
        """
        recorded = parse_record(self.about["record"], target_of(self.output))
        return recorded, {name: value for name, value in self.options.items() if name not in OPTIONS}

    def keep(self, *, at_once: bool = False) -> None:
        """Writes the state, unless the last time was so short ago that writing would take a noticeable share of time.

        A stage that has ended is always written. If it cannot be written, the run goes on.

        Args:
            at_once: whether it is written in any case.
        """
        now = time.perf_counter()
        if not at_once and self.state.tokens is not None and now - self._written_at < self._writing_s / SHARE_OF_TIME:
            return
        self.is_behind = True
        try:
            self.write()
            self.is_behind = False
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            self.note(
                f"cannot write {self.path}: {reason}; the run goes on, but after an interruption only from where it "
                "was written last"
            )
        self._written_at = time.perf_counter()
        self._writing_s = self._written_at - now

    def write(self, *, replace: bool = True) -> None:
        """Writes the file under a temporary name and renames it, without giving up the lock.

        Raises:
            FileExistsError: there is such a file, and `replace` is false.
            OSError: the file cannot be written.
        """
        state = {"steps": self.state.steps, "drawn": self.state.drawn, "saved": self.state.saved}
        text = json.dumps({**self.about, "state": state})
        raw = packed(_tensors_of(self.state), {_KEY: text, _SIGNATURE: signature_of(text)})
        with written_whole(self.path, replace=replace) as temporary:
            temporary.write_bytes(raw)
            lock = lock_of(temporary)
        self.unlock()
        self._lock = lock

    def moved_to(self, folder: Path) -> bool:
        """Writes the state to another folder from now on; returns whether it could be written there."""
        self.path = folder / self.path.name
        with suppress(OSError):
            self.write()
            return True
        return False

    def finish(self, video: Path) -> None:
        """Keeps the checksum of the whole video, before it gets its name: if it is there, the run has ended.

        Its bytes are on the disk by then, so that not even a power failure leaves the name without them.
        """
        self.about["finished"] = checksum_of(video, on_disk=True)
        self.keep()

    def is_finished(self) -> bool:
        """Returns whether the video is there, and the run was killed just before its end."""
        target = target_of(self.output)
        return "finished" in self.about and target.exists() and checksum_of(target) == self.about["finished"]

    def remove(self) -> None:
        """Removes the file, since the video is whole or nothing is worth to go on from; the state is kept no more."""
        self.path.unlink(missing_ok=True)
        self.state.keep = lambda: None
        self.unlock()

    def lock(self) -> None:
        """Takes up the lock again. Raises TakenError if another process holds it."""
        if self._lock is None:
            self._lock = _locked(self.path)

    def unlock(self) -> None:
        """Gives up the lock."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None


def checksum_of(video: Path, *, on_disk: bool = False) -> str:
    """Returns the SHA-256 of a file, or of all files in a folder by their names; waits until they are `on_disk`."""
    digest = hashlib.sha256()
    for path in sorted(video.iterdir()) if video.is_dir() else [video]:
        with path.open("r+b" if on_disk else "rb") as file:  # Windows syncs only what can be written
            digest.update(file.read())
            if on_disk:
                os.fsync(file.fileno())
    return digest.hexdigest()


def about_of(record: str, engines: Path, options: RunOptions, output: Path) -> dict[str, Any]:
    """Returns how a video is made, as plain data for JSON.

    Args:
        record: what `record_of` returns.
        engines: the version folder.
        options: how it is run.
        output: the file of the video.
    """
    usual = RunOptions()
    given = {one.name: getattr(options, one.name) for one in fields(RunOptions)}
    changed = {name: value for name, value in given.items() if value != getattr(usual, name)}
    plain = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in changed.items()}
    return {"record": record, "engines": str(engines.absolute()), "options": plain, "output": str(output.absolute())}


def place_beside(output: Path) -> Path:
    """Returns the file beside an output that claims its name; a name that would be too long is cut."""
    name = target_of(output).name
    if len(os.fsencode(name)) + len(SUFFIX) > _LONGEST_NAME:
        name = f"{name[:_KEPT_CHARACTERS]}-{zlib.crc32(os.fsencode(name)):08x}"
    return output.with_name(name + SUFFIX)


def claim(about: dict[str, Any], state: State, *, overwrite: bool) -> Unfinished:
    """Creates the file of an unfinished run beside its output, which claims the name of the output for this process.

    Args:
        about: what `about_of` returns.
        state: the state of the run, which is written whenever it says so.
        overwrite: whether the file of an earlier run that was interrupted is replaced.

    Raises:
        TakenError: another run makes this output, or was interrupted and `overwrite` is false.
        LtxError: the file cannot be written.
    """
    output = Path(about["output"])
    path = place_beside(output)
    unfinished = Unfinished(path, about, state, None)
    with explaining(f"write {path}"):
        try:
            unfinished.write(replace=False)
        except FileExistsError:
            unfinished = Unfinished(path, about, state, _locked(path))
            if not overwrite:
                unfinished.unlock()
                raise TakenError(
                    f"an earlier run of {output.name} was interrupted",
                    "add --overwrite to start again",
                    f"ltx-run --resume {shlex.quote(shortest(path))}",
                ) from None
            unfinished.write()
    state.keep = unfinished.keep
    return unfinished


def shortest(path: Path) -> str:
    """Returns a path as it is typed in the present folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def open_unfinished(path: Path) -> Unfinished:
    """Opens the file of an interrupted run, to go on from it; of a file that this user has not written, see `confined`.

    Args:
        path: the file, or the output that it belongs to.

    Raises:
        LtxError: the file cannot be read, is damaged or no such file, its run is still under way, or it is another's
            and reaches beyond its folder.
    """
    if path.suffix in WRITERS and place_beside(path).exists():
        path = place_beside(path)
    with explaining(f"read {path}"), path.open("rb"):
        pass
    lock = _locked(path)
    try:
        unfinished = Unfinished(path, *_read(path), lock)
    except BaseException:
        lock.release()
        raise
    unfinished.state.keep = unfinished.keep
    return unfinished


def _read(path: Path) -> tuple[dict[str, Any], State]:
    """Returns how a video is made, and how far its run is."""
    none = LtxError(f"{path} is no unfinished run", f"give a file that ends in {SUFFIX}")
    try:
        metadata = read_metadata(path)
    except LtxError:
        if path.suffix == SUFFIX:
            raise
        raise none from None
    try:
        about = json.loads(metadata[_KEY])
        state = _state_of(path, about.pop("state"))
        if not all(isinstance(about[name], str) for name in ("record", "engines", "output")):
            raise none
        from_fields(RunOptions, about["options"], path.parent)
    except (LtxError, KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError):
        raise none from None
    if is_signed(metadata[_KEY], metadata.get(_SIGNATURE, "")):
        return about, state
    return confined(about, path), replace(state, saved={})


def _locked(path: Path) -> Lock:
    """Locks the file of an unfinished run. Raises TakenError if another process holds the lock."""
    lock = lock_of(path)
    if lock is None:
        output = path.with_suffix("")
        raise TakenError(f"another run is making {output}", "wait until it has ended, or choose another name")
    return lock


def _tensors_of(state: State) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {f"{_LATENTS}{name}": latents for name, latents in state.latents.items()}
    if state.tokens is not None:
        tensors[_TOKENS] = state.tokens
    if state.text is not None:
        rows = {name: getattr(state.text, name) for name in _TEXT_FIELDS}
        tensors |= {f"{_TEXT}{name}": row for name, row in rows.items() if row is not None}
    return tensors


def _state_of(path: Path, stored: dict[str, Any]) -> State:
    tensors = read_tensors(path, names_in(path))
    rows = {name.removeprefix(_TEXT): tensor for name, tensor in tensors.items() if name.startswith(_TEXT)}
    return State(
        text=Text(**rows) if rows else None,
        latents={name.removeprefix(_LATENTS): one for name, one in tensors.items() if name.startswith(_LATENTS)},
        tokens=tensors.get(_TOKENS),
        steps=int(stored["steps"]),
        drawn=[(str(key), tuple(map(int, shape))) for key, shape in stored["drawn"]],
        saved={str(asked): str(place) for asked, place in stored["saved"].items()},
    )
