"""The file of results of a batch: JSON lines, from which a batch goes on after an interruption.

The first line says how the batch is made, then a line follows for every task and every row that was refused, and then,
as soon as it is known, one for every outcome. The process that makes the batch holds a lock on the file.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from itertools import count as numbers
from pathlib import Path
from typing import Any

from ltx_runtime.batch.tasks import Outcome, Refused, Task, is_inside, size_of
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import Lock, lock_of, partial_folder, place_new
from ltx_runtime.outputs.places import SAVING
from ltx_runtime.outputs.unfinished import shortest
from ltx_runtime.packages import RELEASE

KEY = "ltx-batch"
SUFFIX = ".results.jsonl"
STATUS, PLANNED, REFUSED, DONE, FAILED = "status", "planned", "refused", "done", "failed"
# Fields of RunOptions that no batch has, since each of its videos would need its own file.
_NOT_OF_BATCH = {*SAVING, "embeddings", "initial_latents", "noise"}


@dataclass(frozen=True)
class About:
    """The version, the settings and the place of a batch.

    Attributes:
        version: name of the release.
        engines: the version folder.
        pipeline: arguments of Pipeline by name: backend, cpu_mode, memory, gpu_memory and threads.
        options: fields of RunOptions by name, for every video.
        uri: where a cluster stores the videos; None for the folder of the file of results.
        asked: checksum of what was asked for, see `Planner.asked`, by which a batch that is begun again is known.
        release: version of the program that began it.
    """

    version: str
    engines: str
    pipeline: dict[str, Any]
    options: dict[str, Any]
    uri: str | None = None
    asked: str = ""
    release: str = RELEASE


class Results:
    """The open file of results of a batch, locked by this process.

    Attributes:
        path: the file; the paths in it are relative to its folder.
        about: how the batch is made.
        planned: number of tasks.
        refused: lines of the rows that were refused.
        done: file and size in bytes of each video that is made, by the number of its task.
    """

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path, self._lock = path, lock
        self.planned = 0
        self.refused: set[int] = set()
        self.done: dict[int, dict[str, Any]] = {}
        self._file = path.open("r+b", buffering=0)  # nothing of a line is left to write once it has been refused
        try:
            self.about = self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and gives up the lock."""
        self._file.close()
        self._lock.release()

    @property
    def is_made(self) -> bool:
        """Whether every task is made."""
        return len(self.done) == self.planned

    def check_unchanged(self) -> None:
        """Raises LtxError if a video that was made is there but has another size."""
        for result in self.done.values():
            target = self.path.parent / result["file"]
            if target.exists() and size_of(target) != result["bytes"]:
                raise LtxError(f"{target} is not what was made", "delete it to have it made again, or put it back")

    def tasks(self) -> Iterator[Task]:
        """Yields the tasks that are not made yet, or whose video has gone from the folder, in order."""
        return (task for task in self._tasks() if not self._is_there(task.number))

    def left(self) -> tuple[int, float]:
        """Returns how many tasks `tasks` yields, and their estimated floating-point operations."""
        count, work = 0, 0.0
        for task in self.tasks():
            count, work = count + 1, work + task.work
        return count, work

    def _is_there(self, number: int) -> bool:
        result = self.done.get(number)
        if result is None or self.about.uri is not None:  # what is stored elsewhere is not asked for again
            return result is not None
        return (self.path.parent / str(result["file"])).exists()

    def append(self, outcome: Outcome) -> None:
        """Writes a line for an outcome, which is on the disk afterwards.

        Raises:
            LtxError: the file cannot be written; the line is then not there at all.
        """
        task = outcome.task
        line = {"number": task.number, "line": task.line, STATUS: FAILED if outcome.result is None else DONE}
        line |= {"problem": outcome.problem} if outcome.result is None else outcome.result
        end, rest = self._file.seek(0, os.SEEK_END), _bytes_of(line)
        try:
            with explaining(f"write {self.path}"):
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
        except BaseException:
            with suppress(OSError):
                self._file.truncate(end)
            raise
        if outcome.result is not None:
            self.done[task.number] = outcome.result

    def _tasks(self) -> Iterator[Task]:
        with self.path.open("rb") as file:
            for raw in file:
                line = json.loads(raw)
                if line.get(STATUS) == PLANNED:
                    yield _task_of(line)
                elif line.get(STATUS) in (DONE, FAILED):
                    return

    def _read(self) -> About:
        """Reads the whole file; what a killed process has left of a last line is removed."""
        about, whole = None, 0
        with self.path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                if not raw.endswith(b"\n"):
                    break
                whole += len(raw)
                try:
                    line = json.loads(raw)
                    if about is None:
                        about = _about_of(line[KEY])
                    else:
                        self._count(line)
                except (ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError):
                    raise self._damaged(number) from None
        if about is None:
            raise self._damaged(1)
        self._file.truncate(whole)
        return about

    def _count(self, line: Mapping[str, Any]) -> None:
        if line[STATUS] == PLANNED:
            _task_of(line)
            self.planned += 1
        elif line[STATUS] == REFUSED:
            self.refused.add(int(line["line"]))
        elif line[STATUS] == DONE:
            _check(is_inside(line["file"]))
            self.done[int(line["number"])] = {name: line[name] for name in ("file", "bytes")}

    def _damaged(self, number: int) -> LtxError:
        return LtxError(
            f"line {number} of {self.path} is none of the results of a batch",
            f"give a file that ends in {SUFFIX}, or prompts to --prompts",
        )


def _about_of(data: Mapping[str, Any]) -> About:
    """Returns how a batch is made. Raises ValueError or TypeError if no program has written that."""
    about = About(**data)
    _check(all(isinstance(text, str) for text in (about.version, about.engines, about.asked, about.uri or "")))
    _check(isinstance(about.pipeline, dict) and not about.options.keys() & _NOT_OF_BATCH)
    return about


def _task_of(line: Mapping[str, Any]) -> Task:
    """Returns a task of a file of results. Raises ValueError, KeyError or TypeError if no program has written that."""
    task = Task(**{name: line[name] for name in ("number", "line", "fields", "output", "work")})
    _check(isinstance(task.number, int) and isinstance(task.line, int) and isinstance(task.work, (int, float)))
    _check(isinstance(task.fields, dict) and is_inside(task.output))
    return task


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError


def begin(
    path: Path,
    about: Callable[[], About],
    planned: Iterable[Task | Refused],
    note: Callable[[str], None],
    *,
    overwrite: bool,
) -> Results:
    """Writes the file of results of a new batch, which appears with all its tasks, and returns it locked.

    Args:
        path: the file; its folder must exist. The next number is taken if it is that of another batch, or that of the
            same one, all made.
        about: returns how the batch is made, once all of `planned` has passed.
        planned: the tasks, and the rows that were refused.
        note: is called with what the user should know: which other batches are not all made.
        overwrite: whether the file of the same batch is replaced, unless that is under way.

    Raises:
        LtxError: the same batch was begun before and is not all made, or the file cannot be written.
    """
    with explaining(f"write {path}"), partial_folder(path.parent) as folder:
        temporary = folder / path.name
        asked = _write(temporary, about, planned)
        lock = lock_of(temporary)
        assert lock is not None  # nobody else knows its name
        for name in chain([path], _numbered(path)):
            try:
                place_new(temporary, name)
                return Results(name, lock)
            except FileExistsError:
                if _asked_in(name) != asked:
                    _tell_other(name, note)
                    continue
                with reopen(name) as earlier:
                    if overwrite:
                        temporary.replace(name)
                        return Results(name, lock)
                    if not earlier.is_made:
                        raise _begun(name) from None
    raise AssertionError("there is always a free number")


def _write(path: Path, about: Callable[[], About], planned: Iterable[Task | Refused]) -> str:
    """Writes how a batch is made and all that is planned; returns the checksum of what was asked for."""
    tasks = path.with_name("tasks")
    with tasks.open("wb") as file:
        for task in planned:
            file.write(_bytes_of(_line_of(task)))
    how = about()
    with path.open("wb") as file, tasks.open("rb") as lines:
        file.write(_bytes_of({KEY: asdict(how)}))
        shutil.copyfileobj(lines, file)
        file.flush()
        os.fsync(file.fileno())
    return how.asked


def _asked_in(path: Path) -> str:
    """Returns the checksum of what was asked for with a batch, even if it is under way; empty for any other file."""
    try:
        with path.open("rb") as file:
            return str(json.loads(file.readline())[KEY]["asked"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _tell_other(path: Path, note: Callable[[str], None]) -> None:
    """Notes how another batch can go on that is not all made."""
    with suppress(LtxError), reopen(path) as other:  # it may be under way, or no file of results
        if not other.is_made:
            note(f"another batch is not all made; go on with it by: {_resuming(path)}")


def _numbered(path: Path) -> Iterator[Path]:
    """Yields `fox-2.results.jsonl` and so on for `fox.results.jsonl`."""
    stem = path.name.removesuffix(SUFFIX)
    return (path.with_name(f"{stem}-{number}{SUFFIX}") for number in numbers(2))


def reopen(path: Path) -> Results:
    """Opens the file of results of a batch, to go on with it.

    Raises:
        LtxError: the file cannot be read, is damaged or no such file, or its batch is under way.
    """
    with explaining(f"read {path}"):
        with path.open("r+b"):
            pass
        return Results(path, _locked(path))


def _begun(path: Path) -> LtxError:
    return LtxError(
        f"an earlier run of this batch was interrupted, or some of its videos failed: {path}",
        "add --overwrite to start again",
        _resuming(path),
    )


def _resuming(path: Path) -> str:
    return f"ltx-run --resume {shlex.quote(shortest(path))}"


def _locked(path: Path) -> Lock:
    lock = lock_of(path)
    if lock is None:
        raise LtxError(f"another run is making the batch of {path}", "wait until it has ended")
    return lock


def _line_of(planned: Task | Refused) -> dict[str, Any]:
    if isinstance(planned, Refused):
        return {"line": planned.line, STATUS: REFUSED, "problem": planned.problem}
    return {"number": planned.number, "line": planned.line, STATUS: PLANNED} | {
        "output": planned.output,
        "work": planned.work,
        "fields": planned.fields,
    }


def _bytes_of(line: Mapping[str, Any]) -> bytes:
    text = json.dumps(line, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # JSON's escapes for bytes of names that are not UTF-8
