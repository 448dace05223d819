"""Kills programs at every event on the disk, and prints what is left: python tests/crash.py [--kills N] [NAME ...]

Every state must hold the old or the new, each whole, and the next run must work and leave nothing of the dead one.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CANNOT = 3


def main() -> int:
    """Prints a row for each program; returns 1 if anything was wrong, and 3 if nothing can be tried here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of the names of programs (default: all)")
    parser.add_argument("--kills", type=int, default=400, help="most kills of each program")
    parser.add_argument("--interruptions", type=int, default=8, help="most times that each gets Ctrl-C twice")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        os.environ.setdefault("LTX_TEST_SHARED", folder)  # where the tests of one run share the graphs that they trace
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        return _tabulated(asked, Path(folder))


def _tabulated(asked: argparse.Namespace, place: Path) -> int:
    from crashes.matrix import rows
    from crashes.subjects import SUBJECTS, lent
    from crashes.tracer import is_possible

    if not is_possible():
        _say("programs cannot be traced on this machine: it takes Linux on x86-64 or ARM64, and ptrace")
        return CANNOT
    chosen = [one for one in SUBJECTS if not asked.names or one.name.startswith(tuple(asked.names))]
    _say("| program | events | kills | Ctrl-C twice | old | new | some of each | most bytes left | s |")
    _say("|" + "---|" * 9)
    failures, kills, started = 0, 0, time.monotonic()
    with lent(place):
        for row in rows(iter(chosen), place, asked.kills, asked.interruptions):
            took, started = time.monotonic() - started, time.monotonic()
            counts = (row.events, row.kills, row.interruptions, row.old, row.new, row.some, row.left_bytes, round(took))
            _say(f"| {row.name} | {' | '.join(map(str, counts))} |")
            for failure in row.failures:
                _say(f"  WRONG: {failure}")
            failures, kills = failures + len(row.failures), kills + row.kills
    _say(f"{kills} kills, {failures} failures")
    return int(failures > 0)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
