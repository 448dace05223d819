"""Laws of many videos by one command: a line for each, failures that end no other, and exactly one of each at the end.

Whatever ends a batch, `--resume` with its file of results makes the rest, with the same bytes.
"""

import json
import re

import pytest
from fakes import stages as fake_stages
from fakes.batches import SIZE, failing, statuses, videos_in
from PIL import Image

from ltx_runtime.outputs.record import read_record
from ltx_runtime.spec.versions import VERSIONS

DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]


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
        (("--resume", "clip.mp4"), "clip.mp4 is no unfinished run - give a file that ends in .unfinished"),
        (("--resume", "p.txt"), "p.txt is no file to go on from - give it to --prompts to begin"),
        (
            ("--resume", "engines"),
            "a folder, from which no run goes on - give a file that ends in .results.jsonl or",
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
    (tmp_path / "clip.mp4").write_bytes(b"a whole video")
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
