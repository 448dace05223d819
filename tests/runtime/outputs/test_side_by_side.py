"""Laws of runs that happen at the same time: each has a file of its own, and none is told of another's."""

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Barrier

import pytest
from fakes import program
from fakes.stages import engines_of

from ltx_runtime import Pipeline, Request, TakenError
from ltx_runtime.outputs.names import names_for
from ltx_runtime.outputs.record import read_record
from ltx_runtime.spec.versions import VERSIONS

PAIRS, PROCESSES = 200, 8
SINGLE = VERSIONS["0.9.5"]
SMALL = {"height": 64, "width": 96, "num_frames": 9, "steps": 1}


def save(engines, start, names, seed, overwrite):
    """Saves a video under the first name that is free, as ltx-run does; returns its file, or None if none is free."""
    with Pipeline(engines, backend="fake") as pipe:
        video = pipe(Request("a cat", seed=seed, **SMALL), overwrite=overwrite)
        start.wait()
        for name in names:
            try:
                return video.save(name, unfinished=lambda path: None)
            except TakenError:
                continue
    return None


@pytest.mark.slow
def test_two_hundred_pairs_of_runs_each_get_a_file_of_their_own(spiece, diary, tmp_path):
    engines, chance = engines_of(SINGLE, spiece), random.Random(0)
    with ThreadPoolExecutor(2) as pool:
        for pair in range(PAIRS):
            folder, start = tmp_path / str(pair), Barrier(2)
            folder.mkdir()
            suffixes = chance.choices([".mp4", ".gif", ".png"], k=1) * 2
            if chance.random() < 0.2:
                suffixes[1] = ".webm"
            is_typed, overwrite = chance.random() < 0.5, chance.random() < 0.2
            names = [
                [folder / f"clip{suffix}"]
                if is_typed
                else [name.with_suffix(suffix) for name in islice(names_for(folder, "a cat", 1), 4)]
                for suffix in suffixes
            ]
            jobs = [pool.submit(save, engines, start, names[i], i, overwrite) for i in (0, 1)]
            made = {seed: job.result() for seed, job in enumerate(jobs) if job.result() is not None}
            assert made
            assert {path.name for path in folder.iterdir()} == {target.name for target in made.values()}
            if overwrite:  # the second may have replaced the first, as was asked for
                assert all(read_record(target).request.seed in made for target in made.values())
            else:
                assert len(set(made.values())) == len(made)
                assert {seed: read_record(target).request.seed for seed, target in made.items()} == {s: s for s in made}


def test_processes_that_name_their_videos_themselves_get_different_ones(engines, tmp_path, monkeypatch):
    engines(SINGLE)
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, program.__file__, "0", "a cat", "--height", "64", "--width", "96", "--num-frames", "9"]
    environment = program.environment()
    runs = [
        subprocess.Popen(
            [*command, "--json", "--seed", "7", "--steps", str(steps), "--output-dir", "new/videos"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for steps in range(2, 2 + PROCESSES)
    ]
    told = [json.loads(run.communicate(timeout=120)[0])["file"] for run in runs]
    assert len(set(told)) == PROCESSES
    assert [read_record(Path(file)).request.steps for file in told] == [*range(2, 2 + PROCESSES)]
    assert sorted((tmp_path / "new" / "videos").iterdir()) == sorted(tmp_path / file for file in told)
