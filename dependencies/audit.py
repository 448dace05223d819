"""Holds locked packages against the list of known vulnerabilities, which pip-audit gets from the package index.

    python dependencies/audit.py dependencies/locked.txt

The exit code is 1 if a package has a known vulnerability. Where nobody answers the question, as without a network or at
an index that has no such list, that is said, and the exit code is 0.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Audit = Callable[[Path], str]


def pip_audit(requirements: Path) -> str:
    """Runs pip-audit on a file of exact versions; returns what it prints, which is JSON if it got an answer."""
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *options, "--requirement", str(requirements)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def answers_of(printed: str) -> tuple[Mapping[str, Sequence[str]], Sequence[str]]:
    """Reads what pip-audit has printed.

    Returns:
        The vulnerabilities of each package that was looked up, by its name and version, and the names of those that
        could not be.
    """
    if not printed.lstrip().startswith("{"):
        return {}, []
    entries = json.loads(printed)["dependencies"]
    found = {
        f"{entry['name']} {entry['version']}": [vulnerability["id"] for vulnerability in entry["vulns"]]
        for entry in entries
        if "vulns" in entry
    }
    return found, [entry["name"] for entry in entries if "vulns" not in entry]


def report(locked: Path, audit: Audit = pip_audit) -> tuple[list[str], int]:
    """Asks for one package first, and for all if there is an answer.

    Returns:
        Lines for people, and the exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "requirements.txt"
        first.write_text(first_of(locked.read_text()))
        for asked in (first, locked):
            found, unknown = answers_of(audit(asked))
            if not found:
                return ["audit: nobody answered: there is no network, or the package index has no such list"], 0
    lines = [f"audit: {package} has {', '.join(ids)}" for package, ids in found.items() if ids]
    if unknown:
        lines.append(f"audit: {len(unknown)} could not be looked up: {', '.join(unknown)}")
    bad = sum(bool(ids) for ids in found.values())
    return [*lines, f"audit: {len(found)} packages looked up, {bad} with known vulnerabilities"], int(bad > 0)


def first_of(locked: str) -> str:
    """Returns the first package of a lock file, with its checksums."""
    lines = locked.splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines, start=1) if not line.endswith("\\\n"))
    return "".join(lines[:end])


if __name__ == "__main__":
    told, code = report(Path(sys.argv[1]))
    print("\n".join(told))
    sys.exit(code)
