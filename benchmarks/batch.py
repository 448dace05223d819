"""Compares one ltx-run for many videos, which loads its networks once, with a loop of one ltx-run for each video.

    python benchmarks/batch.py engines/demo --videos 20 --rounds 5 --height 64 --width 96 --num-frames 9

The two sides alternate, every process is fresh, and the caches of prompts are empty at the start of each round. Both
make the same bytes, which is checked. Times include the start of the program: wall time, and the time of all cores
(user and system), which says more on a machine that is busy with other work.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ltx_runtime.sessions.processor import processor_name

_PROGRAM = "from ltx_runtime.cli.main import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path, help="a version folder")
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    asked, further = parser.parse_known_args()  # further options are those of ltx-run, for every video
    prompts = [f"A red fox runs through deep snow, take {number}" for number in range(asked.videos)]
    options = ["--engines", str(asked.engines.absolute()), "--seed", "7", *further]
    rounds = []
    for number in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            sides = [_warm, _cold] if number % 2 == 0 else [_cold, _warm]
            taken = {side: side(Path(folder), prompts, options) for side in sides}
            _check_same(Path(folder), asked.videos)
        rounds.append((taken[_warm], taken[_cold]))
        _say(f"round {number + 1} of {asked.rounds}")
    _say(f"\n{processor_name()}, {os.cpu_count()} cores, {datetime.date.today()}; per video, of {asked.videos}:\n")
    _say("| median (least), s | one command | a command for each | ratio of the medians | ratio of every round |")
    _say("|---|---|---|---|---|")
    for clock, name in enumerate(("wall time", "time of all cores")):
        warm, cold = ([taken[side][clock] / asked.videos for taken in rounds] for side in (0, 1))
        times = " | ".join(f"{statistics.median(one):.3f} ({min(one):.3f})" for one in (warm, cold))
        ratios = ", ".join(f"{slow / fast:.1f}" for fast, slow in zip(warm, cold, strict=True))
        _say(f"| {name} | {times} | {statistics.median(cold) / statistics.median(warm):.1f} | {ratios} |")


def _warm(folder: Path, prompts: list[str], options: list[str]) -> tuple[float, float]:
    """Makes all videos by one command; returns wall and core seconds."""
    (folder / "prompts.txt").write_text("\n".join(prompts))
    return _timed(folder / "warm", [["--prompts", str(folder / "prompts.txt"), *options]])


def _cold(folder: Path, prompts: list[str], options: list[str]) -> tuple[float, float]:
    """Makes each video by a command of its own; returns wall and core seconds."""
    names = [f"{number:04d}.mp4" for number in range(len(prompts))]
    commands = [[prompt, *options, "-o", name] for prompt, name in zip(prompts, names, strict=True)]
    return _timed(folder / "cold", commands)


def _timed(folder: Path, commands: list[list[str]]) -> tuple[float, float]:
    folder.mkdir()
    environment = os.environ | {"LTX_CACHE": str(folder / "cache")}
    started, before = time.perf_counter(), os.times()
    for words in commands:
        command = [sys.executable, "-c", _PROGRAM, *words]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    seconds, after = time.perf_counter() - started, os.times()
    of_cores = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return seconds, of_cores


def _check_same(folder: Path, videos: int) -> None:
    """Ends the program if the two sides have not made the same videos."""
    warm, cold = ([path.read_bytes() for path in sorted((folder / side).rglob("*.mp4"))] for side in ("warm", "cold"))
    if len(warm) != videos or warm != cold:
        raise SystemExit("the two sides made different videos")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
