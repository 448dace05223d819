"""Laws of batches in processes: killed at any moment, side by side, or with nobody who reads what they print."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from fakes import program
from fakes.batches import SIZE, statuses, videos_in

from ltx_runtime.spec.versions import VERSIONS

DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]
MOMENTS = 10


def killed_at(moment, *words):
    """Runs ltx-run on the fake stages in a process that is killed at a moment; returns exit code and standard error."""
    command = [sys.executable, program.__file__, str(moment), *words]
    ended = subprocess.run(command, capture_output=True, text=True, env=program.environment(), timeout=300, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.kills
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_batch_that_is_killed_at_any_moment_makes_every_video_exactly_once(run, engines, tmp_path):
    engines(DEMO)
    (tmp_path / "p.csv").write_text("prompt,output\na fox,\nan owl,birds/owl.png\n")
    words = ("--prompts", "p.csv", *SIZE, "--seeds", "1,2", "--output-dir")
    code, err = killed_at(0, *words, "whole")
    assert code == 0, err

    def all_in(folder):
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    whole, events, gone_on = all_in(tmp_path / "whole"), int(re.findall(r"(\d+) events", err)[-1]), 0
    assert len(whole) == 2 + 2 * 9
    for moment in np.linspace(1, events, MOMENTS, dtype=int):
        folder = f"killed-{moment}"
        code, err = killed_at(moment, *words, folder)
        assert code == -9
        results = tmp_path / folder / "p.results.jsonl"
        gone_on += results.exists()
        for _ in range(2):  # the second has nothing to do
            code, _, err = run(*(("--resume", str(results)) if results.exists() else (*words, folder)))
            assert code == 0, err
        assert all_in(tmp_path / folder) == whole
        assert statuses(results)["done"] == 4
    assert gone_on > MOMENTS / 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot tell locks apart")
def test_two_processes_with_the_same_batch_make_each_video_once(engines, tmp_path, monkeypatch):
    engines(SINGLE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("".join(f"fox {number}\n" for number in range(20)))
    words = ("--prompts", "p.txt", *SIZE, "--steps", "1", "--seeds", "1", "--output-dir", "videos")
    command = [sys.executable, program.__file__, "0", *words]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=program.environment())
        for _ in range(2)
    ]
    told = [(process.communicate(timeout=300), process.returncode) for process in runs]
    assert sorted(code for _, code in told) == [0, 2], told
    assert sum(out.count("\n") for (out, _), _ in told) == 20
    assert len(videos_in(tmp_path / "videos")) == 20
    assert statuses(tmp_path / "videos" / "p.results.jsonl") == {"planned": 20, "done": 20}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes of this kind")
def test_videos_are_made_even_if_nobody_reads_their_lines(engines, tmp_path, monkeypatch):
    engines(SINGLE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a fox\nan owl\n")
    for number, streams in enumerate((("stdout",), ("stdout", "stderr"))):
        reader, writer = os.pipe()
        os.close(reader)
        words = ("--prompts", "p.txt", *SIZE, "--steps", "1", "--output-dir", str(number))
        command = [sys.executable, program.__file__, "0", *words]
        ended = subprocess.run(
            command, env=program.environment(), timeout=300, check=False, **dict.fromkeys(streams, writer)
        )
        os.close(writer)
        assert (number, len(videos_in(tmp_path / str(number)))) == (number, 2)
        assert ended.returncode == 0 or "stderr" in streams  # the program of the tests writes there at its end
