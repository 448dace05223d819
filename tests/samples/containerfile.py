"""Reads a container file: stages with their instructions, as far as ours uses the language."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One stage: its name, the image or stage that it starts from, and its instructions in order."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def read_stages(path: Path) -> dict[str, Stage]:
    """Returns the stages of a container file by name; arguments before the first one have their default values."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "ARG" and not stages:
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            stages[name] = Stage(name, re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], parent))
        elif word:
            [*stages.values()][-1].steps.append((word, rest))
    return stages


def steps_of(stages: dict[str, Stage], target: str) -> list[tuple[str, str]]:
    """Returns the instructions of a stage after those of the stages that it starts from."""
    stage = stages[target]
    return [*(steps_of(stages, stage.parent) if stage.parent in stages else []), *stage.steps]


def last(steps: list[tuple[str, str]], word: str) -> str:
    """Returns what the last instruction of a kind says."""
    return [rest for name, rest in steps if name == word][-1]


def environment_of(steps: list[tuple[str, str]]) -> dict[str, str]:
    """Returns the variables that a container has."""
    pairs = [pair for word, rest in steps if word == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def command_of(rest: str) -> list[str]:
    """Returns the words of a command: a JSON list as it is, anything else through a shell."""
    return json.loads(rest) if rest.startswith("[") else ["/bin/sh", "-c", rest]
