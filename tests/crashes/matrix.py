"""Kills programs in many states, and checks what is left: the old or the new, each whole, and a next run that works."""

import hashlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from crashes.subjects import Program, Subject
from crashes.tracer import Ended, traced

_HIDDEN, _WHOLE = ".ltx-", ".new"
_CACHE = "cache"
_INTERRUPTED, _REFUSED = 130, 2
Contents = dict[str, dict[str, str]]  # checksums of the files of each whole thing, by its name and theirs


@dataclass
class Row:
    """What was seen of one program.

    Attributes:
        events: number of events of a run that nobody kills.
        old, new, some: states in which all things were the old ones, all new, or some old and some new.
        kills, interruptions: number of kills, and of double Ctrl-C.
        left_bytes: most bytes that a killed run had left, which the next run deleted or went on from.
        failures: sentences about what was wrong.
    """

    name: str
    events: int = 0
    old: int = 0
    new: int = 0
    some: int = 0
    kills: int = 0
    interruptions: int = 0
    left_bytes: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class Seen:
    """The contents of a folder: whole things, what the next run goes on from, what nobody needs, and all the rest."""

    wholes: Contents = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    rest: dict[str, str] = field(default_factory=dict)
    left_bytes: int = 0


def seen_in(folder: Path, subject: Subject) -> Seen:
    """Looks at everything in a folder but the cache of its programs, in which only what is hidden counts."""
    seen = Seen()
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and any(path.iterdir()):
            continue
        name = _named(path.relative_to(folder), folder)
        whole = _match(name, subject.wholes)
        if any(part.startswith(_HIDDEN) for part in name.parts):
            seen.hidden.append(str(name))
            seen.left_bytes += path.stat().st_size if path.is_file() and path.stat().st_nlink == 1 else 0
        elif _is_named(name, subject.records):
            continue
        elif _match(name, subject.resumed) or _is_named(name, subject.resumed):
            seen.resumed.append(str(name))
            seen.left_bytes += path.stat().st_size if path.is_file() else 0
        elif whole:
            seen.wholes.setdefault(whole, {})[str(name)] = _digest(path)
        elif name.parts[0] != _CACHE and path.is_file():
            seen.rest[str(name)] = _digest(path)
    return seen


def _named(name: Path, folder: Path) -> Path:
    """Returns the name under which programs find a file: that of a folder that is to be replaced, if it is gone."""
    parts = list(name.parts)
    for place, part in enumerate(parts):
        if part.startswith(_HIDDEN) and part.endswith(_WHOLE):
            wanted = part.removeprefix(_HIDDEN).removesuffix(_WHOLE)
            if not Path(folder, *parts[:place], wanted).exists():
                parts[place] = wanted
    return Path(*parts)


def _match(name: Path, patterns: tuple[str, ...]) -> str:
    """Returns the beginning of a name that matches a pattern with as many parts; empty if none does."""
    for pattern in patterns:
        start = Path(*name.parts[: len(Path(pattern).parts)])
        if all(map(fnmatch, start.parts, Path(pattern).parts)) and len(start.parts) == len(Path(pattern).parts):
            return str(start)
    return ""


def _is_named(name: Path, patterns: tuple[str, ...]) -> bool:
    return any("/" not in pattern and fnmatch(name.name, pattern) for pattern in patterns)


def _everything(folder: Path) -> set[str]:
    """Returns the names of everything in a folder but the cache."""
    names = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(name) for name in names if name.parts[0] != _CACHE}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def preload(program: Program, folder: Path, told: Path) -> None:
    """Imports what a program imports, so that its forks need not: most of the time of a run goes there."""

    def tell() -> None:
        try:
            program()
        finally:
            told.write_text("\n".join(sys.modules))

    traced(tell, folder)
    for name in told.read_text().splitlines():
        if name not in sys.modules:
            with suppress(Exception):  # modules that only their package imports
                importlib.import_module(name)


class Matrix:
    """Kills one program in chosen states.

    Args:
        subject: the program.
        place: an empty folder.
    """

    def __init__(self, subject: Subject, place: Path) -> None:
        self.row = Row(subject.name)
        self._subject, self._place = subject, place
        self._before = place / "before"
        self._before.mkdir()
        self._must_end(traced(subject.begin, self._before), "the beginning")
        self._old = seen_in(self._before, subject)
        preload(subject.run, self._fresh("first"), place / "modules")
        whole = self._fresh("whole")
        ended = traced(subject.run, whole)
        self._must_end(ended, "a run that nobody kills")
        self.row.events = len(ended.events)
        self._new = seen_in(whole, subject)
        if self._new.hidden or self._new.resumed:
            self.row.failures.append(f"a run that nobody kills leaves {self._new.hidden + self._new.resumed}")

    def _must_end(self, ended: Ended, what: str) -> None:
        assert ended.code == 0, f"{self._subject.name}: {what} ends with {ended.code}: {ended.text[-2000:]}"

    def kill(self, most: int) -> None:
        """Kills the program at each of its events, or at this many that are evenly spaced."""
        most = min(most, self._subject.states, self.row.events)
        for number in range(most):
            moment = 1 + number * self.row.events // most
            folder = self._fresh(f"killed-{moment}")
            ended = traced(self._subject.run, folder, moment)
            if ended.code is None:  # with threads, a run may have fewer events than another one
                self.row.kills += 1
            self._check(folder, f"killed at event {moment} ({ended.events[-1]})", number)

    def interrupt(self, most: int) -> None:
        """Sends Ctrl-C twice, the second time while the program clears up."""
        most = min(most, self.row.events)
        for number in range(most):
            moment = 1 + number * self.row.events // most
            folder = self._fresh(f"interrupted-{moment}")
            ended = traced(self._subject.run, folder, signals=(moment, moment + 1 + number % 3))
            self.row.interruptions += 1
            if "Traceback" in ended.text or ended.code not in (0, _INTERRUPTED):
                self.row.failures.append(f"Ctrl-C at event {moment} ends with {ended.code}: {ended.text[-1500:]}")
            self._check(folder, f"Ctrl-C at event {moment}", number)

    def _fresh(self, name: str) -> Path:
        """Returns a new folder with what was there before, as hard links: a program that changed a file in place would
        change it for all.
        """
        return Path(shutil.copytree(self._before, self._place / name, copy_function=os.link))

    def _check(self, folder: Path, moment: str, number: int) -> None:
        """Checks what is left, runs a next program, and checks that it works and that nothing is left."""
        seen = seen_in(folder, self._subject)
        self._count(seen, moment)
        self.row.left_bytes = max(self.row.left_bytes, seen.left_bytes)
        program, is_same = self._next(folder, number)
        before = _everything(folder)
        ended = traced(program, folder)
        after = seen_in(folder, self._subject)
        nothing_yet = not seen.wholes and not is_same and ended.code == _REFUSED
        if program is self._subject.plan and _everything(folder) != before:
            self.row.failures.append(f"{moment}: a plan changes {sorted({*before} ^ {*_everything(folder)})}")
        if (ended.code != 0 and not nothing_yet) or "Traceback" in ended.text:
            self.row.failures.append(f"{moment}: the next run ends with {ended.code}: {ended.text[-1500:]}")
        elif (after.hidden and program is not self._subject.plan) or (is_same and after.resumed):
            self.row.failures.append(f"{moment}: the next run leaves {after.hidden + after.resumed}")
        elif is_same and after.wholes != self._new.wholes:
            self.row.failures.append(f"{moment}: the next run makes {_difference(after.wholes, self._new.wholes)}")
        elif not is_same and any(self._age(after, name) == "neither" for name in after.wholes):
            self.row.failures.append(f"{moment}: the next run leaves neither the old nor the new")
        if after.rest != self._new.rest:
            self.row.failures.append(f"{moment}: beside it, {sorted({*after.rest} ^ {*self._new.rest})} differ")
        shutil.rmtree(folder)

    def _next(self, folder: Path, number: int) -> tuple[Program, bool]:
        """Returns the next program in this folder, and whether it makes what the killed one was to make."""
        others = (*self._subject.others, *filter(None, [self._subject.plan]))
        place = number % (1 + len(others))
        if place:
            return others[place - 1], False
        here = Path.cwd()
        os.chdir(folder)
        try:
            return self._subject.goes_on() or self._subject.run, True
        finally:
            os.chdir(here)

    def _count(self, seen: Seen, moment: str) -> None:
        names = {*seen.wholes, *self._old.wholes, *self._new.wholes}
        ages = {self._age(seen, name) for name in names}
        if "neither" in ages:
            wrong = sorted(name for name in names if self._age(seen, name) == "neither")
            self.row.failures.append(f"{moment}: {wrong} are neither the old nor the new")
        elif ages <= {"old", "same"}:
            self.row.old += 1
        elif ages <= {"new", "same"}:
            self.row.new += 1
        else:
            self.row.some += 1

    def _age(self, seen: Seen, name: str) -> str:
        now, old, new = (one.wholes.get(name) for one in (seen, self._old, self._new))
        if now == old:
            return "same" if old == new else "old"
        return "new" if now == new else "neither"

    def close(self) -> None:
        """Checks that no program has changed the files of before in place."""
        if seen_in(self._before, self._subject) != self._old:
            self.row.failures.append("files of before were changed in place")
        shutil.rmtree(self._place)


def _difference(now: Contents, wanted: Contents) -> str:
    """Describes how contents differ from those that were wanted."""
    different = {name for name in {*now, *wanted} if now.get(name) != wanted.get(name)}
    return f"{sorted(different)} differently"


def rows(subjects: Iterator[Subject], place: Path, kills: int, interruptions: int) -> Iterator[Row]:
    """Yields the row of each program after killing it at most so often."""
    for subject in subjects:
        folder = place / f"{subject.name}".replace(" ", "-").replace(":", "").replace(",", "")
        folder.mkdir()
        matrix = Matrix(subject, folder)
        matrix.kill(kills)
        matrix.interrupt(interruptions)
        matrix.close()
        yield matrix.row
