"""Laws of a batch that goes on, or whose command is given again: nothing is made twice, and nothing is lost."""

import json
import re
import shlex

import pytest
from fakes import stages as fake_stages
from fakes.batches import SIZE, failing, statuses, videos_in

from ltx_runtime.outputs.record import read_record
from ltx_runtime.outputs.unfinished import Unfinished
from ltx_runtime.spec.versions import VERSIONS

SINGLE = VERSIONS["0.9.5"]


def test_ctrl_c_leaves_what_is_finished_and_says_how_to_go_on(batch, run, tmp_path, monkeypatch):
    assert batch("--seeds", "1,2", "--output-dir", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "transformer", failing("transformer", {4}, KeyboardInterrupt))
        code, out, err = batch("--seeds", "1,2")
    assert (code, out.count("\n"), len(videos_in(tmp_path))) == (130, 1, 1)
    assert err.splitlines()[-1] == "error: interrupted; no half-written video was left"
    command = shlex.split(re.findall(r"what is finished is kept; go on with: ltx-run (.*)", err)[-1])
    code, out, _ = run(*command)
    assert (code, out.count("\n")) == (0, 3)
    assert videos_in(tmp_path) == videos_in(tmp_path / "whole")
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_batch_can_go_on_in_another_place_and_after_its_file_of_prompts_has_gone(batch, run, tmp_path, monkeypatch):
    assert batch("--seeds", "1", "--output-dir", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", failing("vae_decoder", {2}, KeyboardInterrupt))
        assert batch("--seeds", "1", "--output-dir", "videos")[0] == 130
    (tmp_path / "videos").rename(tmp_path / "moved")
    (tmp_path / "p.txt").unlink()
    code, _, err = run("--resume", "moved/p.results.jsonl")
    assert code == 0, err
    assert videos_in(tmp_path / "moved") == videos_in(tmp_path / "whole")


def test_a_batch_that_was_killed_just_after_a_video_got_its_name_goes_on_from_a_typed_folder(
    batch, run, tmp_path, monkeypatch
):
    assert batch("--seeds", "1", "--output-dir", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "remove", raising_interrupt)
        assert batch("--seeds", "1", "--output-dir", "videos")[0] == 130
    code, _, err = run("--resume", "videos/p.results.jsonl")
    assert code == 0, err
    assert videos_in(tmp_path / "videos") == videos_in(tmp_path / "whole")
    assert not list(tmp_path.rglob("*.unfinished"))


def raising_interrupt(self):
    self.unlock()  # as the system does for a process that has ended
    raise KeyboardInterrupt


def test_what_is_gone_is_made_again_and_what_has_changed_is_refused(batch, run, tmp_path):
    assert batch("--seeds", "1")[0] == 0
    whole = videos_in(tmp_path)
    (tmp_path / "0001-a-fox-1.mp4").unlink()
    assert run("--resume", "p.results.jsonl")[1].count("\n") == 1
    assert videos_in(tmp_path) == whole
    (tmp_path / "0001-a-fox-1.mp4").write_bytes(b"half")
    code, _, err = run("--resume", "p.results.jsonl")
    assert code == 2
    assert "0001-a-fox-1.mp4 is not what was made - delete it" in err


def test_a_batch_that_was_begun_is_not_begun_again_unless_that_is_asked_for(batch, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", failing("vae_decoder", {1}))
        assert batch()[0] == 3
    before = videos_in(tmp_path)
    code, _, err = batch()
    assert code == 2
    assert "run: ltx-run --resume p.results.jsonl, or add --overwrite to start again" in err
    assert videos_in(tmp_path) == before
    assert batch("--overwrite")[0] == 0
    assert statuses(tmp_path / "p.results.jsonl") == {"planned": 2, "done": 2}
    assert batch()[0] == 0  # all made: other seeds, and results of their own
    assert statuses(tmp_path / "p-2.results.jsonl") == {"planned": 2, "done": 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a fox", "--count", "2"), ("an owl", "--count", "2")),
        (("a fox", "--count", "2"), ("a fox", "--count", "3")),
        (("a fox", "--seeds", "1,2"), ("a fox", "--seeds", "3,4")),
        (("a fox", "--count", "2"), ("a fox", "--count", "2", "--fps", "12")),
        (("a fox", "--count", "2"), ("a fox", "--count", "2", "--crf", "0")),
        (("a fox", "--count", "2"), ("a fox", "--count", "2", "--negative-prompt", "snow")),
        (("--prompts", "p.csv"), ("--prompts", "p.jsonl")),
        (("--prompts", "p.csv"), ("--prompts", "in/p.csv")),
        (("--prompts", "p.txt"), ("--prompts", "in/p.txt")),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_another_batch_in_the_same_folder_leaves_the_earlier_one_as_it_was(
    batch, run, tmp_path, monkeypatch, first, second, overwrite
):
    assert batch("--plan")[0] == 0  # makes the version
    (tmp_path / "p.csv").write_text("prompt\na fox\nan owl\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a fox"}\n')
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.txt").write_text("a fox\nan owl in snow\n")
    (tmp_path / "in" / "p.csv").write_text("prompt\na fox\nan owl\n")
    name = "batch" if first[0] == "a fox" else "p"
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", failing("vae_decoder", {1}, KeyboardInterrupt))
        assert run(*first, *SIZE, "--steps", "1")[0] == 130
    before = (tmp_path / f"{name}.results.jsonl").read_bytes()
    code, _, err = run(*second, *SIZE, "--steps", "1", *overwrite)
    assert code == 0, err
    assert f"note: another batch is not all made; go on with it by: ltx-run --resume {name}.results.jsonl\n" in err
    assert (tmp_path / f"{name}.results.jsonl").read_bytes() == before
    assert "planned" in statuses(tmp_path / f"{name}-2.results.jsonl")
    code, out, err = run("--resume", f"{name}.results.jsonl")
    assert (code, out.count("\n")) == (0, 2), err
    assert not list(tmp_path.glob("*.unfinished"))


def test_what_changes_nothing_of_the_videos_does_not_make_it_another_batch(batch, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", failing("vae_decoder", {1}, KeyboardInterrupt))
        assert batch()[0] == 130
    for words in ((), ("--threads", "1"), ("--low-memory",), ("--json",), ("--memory", "4")):
        code, _, err = batch(*words)
        assert code == 2
        assert "an earlier run of this batch was interrupted" in err
    assert len(list(tmp_path.glob("*.results.jsonl"))) == 1


def test_a_run_that_an_earlier_batch_left_unfinished_is_not_taken_for_one_of_the_new(batch, run, tmp_path, monkeypatch):
    interrupted = failing("vae_decoder", {1}, KeyboardInterrupt)
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", interrupted)
        assert batch("--seeds", "1", "--crf", "1", "--fps", "12")[0] == 130
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "text_encoder", failing("text_encoder", {1}, KeyboardInterrupt))
        (tmp_path / "p.txt").write_text("a cat\na fox\n")
        (tmp_path / "0001-a-fox-1.mp4.unfinished").rename(tmp_path / "0002-a-fox-1.mp4.unfinished")
        assert batch("--seeds", "1", "--overwrite")[0] == 130
    assert (tmp_path / "0002-a-fox-1.mp4.unfinished").exists()
    assert run("--resume", "p-2.results.jsonl")[0] == 0
    assert read_record(tmp_path / "0002-a-fox-1.mp4").request.fps == SINGLE.fps
    assert not list(tmp_path.glob("*.unfinished"))


def test_going_on_from_prompts_or_a_folder_names_the_file_to_go_on_from(batch, run, tmp_path):
    assert batch("--output-dir", "out")[0] == 0
    going_on = "run: ltx-run --resume out/p.results.jsonl"
    code, _, err = run("--resume", "p.txt", "--output-dir", "out")
    assert code == 2
    assert err == f"error: p.txt is no file to go on from - {going_on}, or give it to --prompts to begin\n"
    code, _, err = run("--resume", "out")
    assert (code, err) == (2, f"error: out is a folder, from which no run goes on - {going_on}\n")
    (tmp_path / "out" / "p.txt").write_text("a fox\n")
    assert going_on in run("--resume", "out/p.txt")[2]
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames.unfinished").touch()
    assert "run: ltx-run --resume frames.unfinished" in run("--resume", "frames")[2]


def test_a_plan_of_a_batch_that_goes_on_counts_what_is_left(batch, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", failing("vae_decoder", {1}))
        assert batch()[0] == 3
    assert run("--resume", "p.results.jsonl", "--plan")[1] == "1 of 2 videos are left to make\n"
    assert json.loads(run("--resume", "p.results.jsonl", "--plan", "--json")[1]) == {"videos": 2, "left": 1}


def test_files_of_others_are_left_alone(batch, tmp_path):
    (tmp_path / "0001-a-fox-1.mp4").write_bytes(b"another's")
    code, out, err = batch("--seeds", "1")
    assert (code, out.count("\n")) == (3, 1)
    assert "line 1 of p.txt: 0001-a-fox-1.mp4 exists" in err
    assert (tmp_path / "0001-a-fox-1.mp4").read_bytes() == b"another's"


def test_a_damaged_file_of_results_is_told_and_half_a_line_at_its_end_is_none(batch, run, tmp_path):
    assert batch("--seeds", "1")[0] == 0
    path = tmp_path / "p.results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    code, out, _ = run("--resume", "p.results.jsonl")  # the video is there, and only its line is missing
    assert (code, out.count("\n")) == (0, 1)
    assert statuses(path) == {"planned": 2, "done": 2}
    for damaged in (b"", b"\n", whole.replace(b'"number"', b'"nummer"'), b"[]\n", whole.replace(b"{", b"", 4)):
        path.write_bytes(damaged)
        code, _, err = run("--resume", "p.results.jsonl")
        assert code == 2
        assert re.search(r"error: line \d of p.results.jsonl is none of the results of a batch", err)


def test_a_full_disk_ends_a_batch_that_can_go_on_when_there_is_room(batch, run, tmp_path, monkeypatch):
    assert batch("--seeds", "1", "--output-dir", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("ltx_runtime.files.shutil.disk_usage", lambda folder: FULL)
        patch.setitem(fake_stages.STAGES, "vae_decoder", failing("vae_decoder", {1}, OSError(28, "full")))
        code, out, err = batch("--seeds", "1")
    assert (code, out) == (2, "")
    assert "more, but only 0.00 MB are free - free some space" in err.splitlines()[-1]
    assert run("--resume", "p.results.jsonl")[0] == 0
    assert videos_in(tmp_path) == videos_in(tmp_path / "whole")


class FULL:
    """The disk usage of a full disk."""

    free = 0
