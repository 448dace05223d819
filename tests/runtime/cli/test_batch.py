"""Laws of many videos by one command: a line for each, failures that end no other, and exactly one of each at the end.

Whatever ends a batch, `--resume` with its file of results makes the rest, with the same bytes.
"""

import json
import re
import shlex
from collections import Counter

import pytest
from fakes import stages as fake_stages
from PIL import Image

from ltx_runtime.outputs.record import read_record
from ltx_runtime.spec.versions import VERSIONS

DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]
SIZE = ("--height", "64", "--width", "96", "--num-frames", "9")


@pytest.fixture
def batch(run, engines, tmp_path):
    """Makes version 0.9.5 and a file of two prompts; runs it with further options."""
    engines(SINGLE)
    (tmp_path / "p.txt").write_text("a fox\nan owl\n")
    return lambda *options: run("--prompts", "p.txt", *SIZE, "--steps", "2", *options)


def videos_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.mp4")}


def statuses(path):
    """Returns how many lines of each status a file of results has."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return Counter(line["status"] for line in lines if "status" in line)


def failing(stage, calls, error=MemoryError):
    """Returns a stage that raises an error in these of its calls, counted from 1."""
    original, count = fake_stages.STAGES[stage], [0]

    def run(feeds):
        count[0] += 1
        if count[0] in calls:
            raise error
        return original(feeds)

    return run


# --- rows and seeds -------------------------------------------------------------------------------


def test_every_prompt_is_made_with_every_seed_and_told_in_a_line(batch, tmp_path):
    code, out, err = batch("--seeds", "3,5")
    assert code == 0, err
    names = [f"{name}-{seed}.mp4" for name in ("0001-a-fox", "0002-an-owl") for seed in (3, 5)]
    assert sorted(videos_in(tmp_path)) == names
    assert [line.partition(":")[0] for line in out.splitlines()] == names
    requests = [read_record(tmp_path / name).request for name in names]
    assert [(one.prompt, one.seed) for one in requests] == [("a fox", 3), ("a fox", 5), ("an owl", 3), ("an owl", 5)]


def test_a_batch_makes_the_same_bytes_as_one_command_for_each_video(batch, run, tmp_path):
    assert batch("--seeds", "3,5")[0] == 0
    assert run("an owl", *SIZE, "--steps", "2", "--seed", "5", "-o", "alone.mp4")[0] == 0
    assert (tmp_path / "alone.mp4").read_bytes() == (tmp_path / "0002-an-owl-5.mp4").read_bytes()


def test_networks_are_opened_once(batch, diary):
    assert batch("--count", "3")[0] == 0
    assert sorted(note for note in diary if note.startswith("open")) == [
        "open text_encoder",
        "open transformer",
        "open vae_decoder",
    ]


def test_count_goes_on_from_the_seed_of_the_row_or_from_a_random_one(run, engines, tmp_path):
    engines(SINGLE)
    (tmp_path / "rows.csv").write_text("prompt,seed\na fox,7\nan owl,\n")
    code, out, err = run("--prompts", "rows.csv", *SIZE, "--steps", "1", "--count", "2", "--json")
    assert code == 0, err
    fox, fox_next, owl, owl_next = [json.loads(line)["seed"] for line in out.splitlines()]
    assert (fox, fox_next, owl_next) == (7, 8, owl + 1)


def test_what_is_typed_holds_for_every_row_and_the_rest_is_the_row_s_own(run, engines, tmp_path):
    engines(SINGLE)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (96, 64)).save(tmp_path / "in" / "a.png")
    rows = [
        {"prompt": "a fox", "image": "a.png", "height": 64, "width": 96, "num_frames": 17, "fps": 12},
        {"prompt": "an owl", "steps": 3, "negative_prompt": "snow", "output": "birds/owl.webm"},
    ]
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--prompts", "in/rows.jsonl", *SIZE, "--seed", "4", "--steps", "1", "--crf", "0", "--output-dir", "out")
    code, _, err = run(*words)
    assert code == 0, err
    fox, owl = read_record("out/0001-a-fox-4.mp4"), read_record("out/birds/owl.webm")
    assert (fox.request.num_frames, fox.request.fps, fox.request.steps, fox.options["crf"]) == (9, 12, 1, 0)
    assert fox.request.conditions[0].media.resolve() == tmp_path / "in" / "a.png"
    assert (owl.request.steps, owl.request.negative_prompt, owl.options["crf"]) == (1, "snow", 0)


def test_one_prompt_can_be_made_several_times_under_the_name_that_was_typed(run, engines, tmp_path):
    engines(SINGLE)
    assert run("a fox", *SIZE, "--steps", "1", "--seeds", "1,2", "-o", "fox.mp4")[0] == 0
    assert sorted(videos_in(tmp_path)) == ["fox-1.mp4", "fox-2.mp4"]


def test_a_plan_makes_nothing_and_counts(batch, diary, tmp_path):
    before = {*tmp_path.iterdir()}
    code, out, _ = batch("--count", "2", "--plan", "--json")
    plan = json.loads(out)
    assert (code, plan["videos"], plan["refused"]) == (0, 4, 0)
    assert plan["sizes"] == [{"width": 96, "height": 64, "frames": 9, "fps": SINGLE.fps, "videos": 4}]
    lines = batch("--count", "2", "--plan")[1].splitlines()
    assert lines[:2] == [f"4 videos, 36 frames and {36 / SINGLE.fps:.1f} s in all", "4 of 96x64, 9 frames at 30 fps"]
    assert plan["memory"]["needed_bytes"] > 0
    assert re.fullmatch(r"about .*B of memory at most, besides the weights", lines[2])
    assert ({*tmp_path.iterdir()}, diary) == (before, [])


def test_a_plan_counts_one_of_a_thing_as_one(run, engines, tmp_path):
    engines(SINGLE)
    (tmp_path / "rows.csv").write_text("prompt,seed\na fox,1\nan owl,-1\n")
    code, out, _ = run("--prompts", "rows.csv", *SIZE, "--plan")
    assert (code, out.splitlines()[0].partition(",")[0], out.splitlines()[-1]) == (3, "1 video", "1 row is refused")


def test_videos_for_which_the_machine_has_too_little_memory_are_planned_and_made_with_a_warning(
    batch, run, monkeypatch
):
    monkeypatch.setattr("ltx_runtime.planning.report.total_memory", lambda: 1000)
    warning = r"about .*B of memory are needed, but this machine has only .*B - ask for a smaller size or fewer frames"
    assert len(re.findall(f"^{warning}$", batch("--plan")[1], re.MULTILINE)) == 1
    assert len(re.findall(f"^{warning}$", run("a fox", *SIZE, "--plan")[1], re.MULTILINE)) == 1
    code, out, err = batch("--steps", "1")
    assert (code, out.count("\n"), len(re.findall(f"^note: {warning}$", err, re.MULTILINE))) == (0, 2, 1)


# --- what fails -----------------------------------------------------------------------------------


def test_bad_rows_are_told_first_and_the_others_are_made(run, engines, tmp_path):
    engines(SINGLE)
    bad = ['{"prompt": "a", "heigth": 64}', "{", '{"prompt": "b", "image": "none.png"}', '{"prompt": ""}']
    bad += [
        '{"prompt": "c", "output": "../c.mp4"}',
        '{"prompt": "d", "output": "same.mp4"}',
        '{"prompt": "e", "seed": -1}',
    ]
    good = ['{"prompt": "fox", "output": "same.mp4"}', '{"prompt": "owl"}']
    (tmp_path / "rows.jsonl").write_text("\n".join([good[0], *bad, good[1]]))
    code, out, err = run("--prompts", "rows.jsonl", *SIZE, "--steps", "1")
    assert (code, out.count("\n"), len(videos_in(tmp_path))) == (3, 2, 2)
    told = re.findall(r"^error: line (\d) of rows\.jsonl: .* - .*$", err, re.MULTILINE)
    assert told == ["2", "3", "4", "5", "6", "7", "8"]
    assert err.index("line 8 of") < err.index("1 of 2 videos")
    told = "7 rows were refused: correct what was told of them, in a file of their own, and give that to --prompts"
    assert err.splitlines()[-1] == f"note: {told}"
    assert "same.mp4 is the output of line 1 as well" in err
    assert statuses(tmp_path / "rows.results.jsonl") == {"planned": 2, "refused": 7, "done": 2}


def test_going_on_ends_with_code_0_when_all_but_refused_rows_are_made(run, engines, tmp_path, monkeypatch):
    engines(SINGLE)
    (tmp_path / "rows.csv").write_text("prompt,height\na fox,64\nan owl,abc\n")
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", failing("vae_decoder", {1, 2}))
        assert run("--prompts", "rows.csv", "--width", "96", "--num-frames", "9", "--steps", "1")[0] == 3
        code, _, err = run("--resume", "rows.results.jsonl")  # it still fails
        assert (code, err.count("1 row was refused when the batch was begun: correct")) == (3, 1)
    for made in (1, 0):
        code, out, err = run("--resume", "rows.results.jsonl")
        assert (code, out.count("\n")) == (0, made)
        assert "note: 1 row was refused when the batch was begun: correct what was told" in err.splitlines()[-1]


def test_a_row_that_has_no_text_for_a_prompt_is_told_what_to_call_it(run, engines, tmp_path):
    engines(SINGLE)
    (tmp_path / "rows.jsonl").write_text('{"text": "a fox"}\n')
    assert "line 1 of rows.jsonl: a request has no field 'text' - use prompt\n" in run("--prompts", "rows.jsonl")[2]


def test_a_batch_of_which_nothing_can_be_made_leaves_nothing(run, engines, tmp_path):
    engines(SINGLE)
    for content in ("", "# nothing\n", "{"):
        (tmp_path / "rows.jsonl").write_text(content)
        code, out, err = run("--prompts", "rows.jsonl", "--output-dir", "new")
        assert (code, out, (tmp_path / "new").exists()) == (2, "", False)
        assert re.search(r"rows\.jsonl (has no prompts - write|can be made - correct)", err)
    assert not list(tmp_path.glob("*.results.jsonl"))


@pytest.mark.parametrize("error", [MemoryError(), ValueError("an unforeseen case")])
def test_a_video_that_fails_is_told_and_is_tried_again_by_resume(batch, run, tmp_path, monkeypatch, error):
    assert batch("--seeds", "1", "--output-dir", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", failing("vae_decoder", {1}, error))
        code, out, err = batch("--seeds", "1", "--json")
    first, second = map(json.loads, out.splitlines())
    assert (code, "problem" in first, "problem" in second) == (3, True, False)
    assert "error: line 1, 0001-a-fox-1.mp4: " in err
    assert "note: 1 of 2 videos failed; try them again with: ltx-run --resume p.results.jsonl" in err
    assert statuses(tmp_path / "p.results.jsonl") == {"planned": 2, "failed": 1, "done": 1}
    code, out, _ = run("--resume", "p.results.jsonl")
    assert (code, out.count("\n")) == (0, 1)
    assert videos_in(tmp_path) == videos_in(tmp_path / "whole")
    code, out, err = run("--resume", "p.results.jsonl")
    assert (code, out, err) == (0, "", "note: all 2 videos are made\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompts", "p.txt", "--seeds", "1,1"), "seeds has 1 twice"),
        (("--prompts", "p.txt", "--seeds", "1,x"), "seeds must be comma-separated whole numbers; got '1,x'"),
        (
            ("--prompts", "p.txt", "--seeds", "1-3"),
            "got '1-3' - use e.g. 1,2,3, or --seed 1 --count 3 for seeds in a row",
        ),
        (("--prompts", "p.txt", "--seeds", ","), "seeds has no seed"),
        (("--prompts", "p.txt", "--seeds", "-1"), "seed must be from 0"),
        (("--prompts", "p.txt", "--count", "0"), "count must be at least 1; got 0"),
        (("--prompts", "p.txt", "--count", "2", "--seeds", "1"), "--seeds and --count both set the seeds"),
        (("--prompts", "p.txt", "--seed", "2", "--seeds", "1"), "--seeds and --seed both set the seeds"),
        (("--prompts", "p.txt", "-o", "a.mp4"), "--output has no effect on many videos - use --output-dir FOLDER"),
        (("a fox", "--prompts", "p.txt"), "the prompt has no effect on many videos"),
        (("--prompts", "p.txt", "--save-latents", "a"), "--save-latents has no effect on many videos"),
        (("--prompts", "none.txt"), "cannot read none.txt: no such file"),
        (("--prompts", "engines"), "cannot read engines: is a directory"),
        (("--count", "2"), "there is no prompt"),
        (("--resume", "none.jsonl"), "cannot read none.jsonl: no such file"),
        (("--resume", "rows.jsonl"), "line 1 of rows.jsonl is none of the results of a batch"),
        (("--resume", "p.txt"), "p.txt is no file to go on from - give it to --prompts to begin"),
        (
            ("--resume", "engines"),
            "is a folder, from which no run goes on - give a file that ends in .results.jsonl or",
        ),
        (
            ("--resume", "rows.jsonl", "--seed", "3"),
            "a batch that goes on - leave it out: rows and settings are in its",
        ),
        (("--resume", "rows.jsonl", "--prompts", "p.txt"), "--prompts has no effect on a batch that goes on - leave"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_a_wrong_command_ends_with_code_2_and_one_sentence(batch, run, tmp_path, words, message):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a fox"}\n')
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err


# --- going on -------------------------------------------------------------------------------------


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
