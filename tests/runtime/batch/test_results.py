"""Laws of the file of results of a batch: whole lines only, and what is made is not made again."""

import json

import pytest

from ltx_runtime.batch.results import About, reopen
from ltx_runtime.batch.results import begin as begin_noting
from ltx_runtime.batch.tasks import Outcome, Task
from ltx_runtime.errors import LtxError

TASKS = [Task(number, number, {"prompt": "a fox"}, f"{number}.mp4", 1.0) for number in (1, 2)]


def outcome(task, problem=""):
    """Returns an outcome of a task, well or not."""
    return Outcome(task, None if problem else {"file": task.output, "bytes": 3}, problem)


def begin(path, uri=None, *, asked="foxes", overwrite=False, notes=None):
    """Begins a batch of two tasks, with its videos in its own folder or elsewhere."""
    notes = [] if notes is None else notes
    about = About("demo", "engines/demo", {}, {}, uri, asked)
    return begin_noting(path, lambda: about, TASKS, notes.append, overwrite=overwrite)


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_line_that_does_not_fit_leaves_nothing(tmp_path, room):
    resource = pytest.importorskip("resource", reason="only POSIX systems limit the size of files")
    path = tmp_path / "foxes.results.jsonl"
    with begin(path) as results:
        before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))
        try:
            with pytest.raises(LtxError, match="write"):
                results.append(outcome(TASKS[0]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        results.append(outcome(TASKS[1]))
    with reopen(path) as results:
        assert list(results.done) == [2]


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        *((2, {"output": name}) for name in ("../fox.mp4", "/fox.mp4", "a/../../fox.mp4", "", ".", "a\0b", 3)),
        *((2, {name: []}) for name in ("number", "line", "fields", "work")),
        *((4, {"file": name}) for name in ("../fox.mp4", "/fox.mp4", None)),
        *((1, {"options": {name: "/fox"}}) for name in ("save_latents", "save_noise", "embeddings", "noise")),
        *((1, {name: 3}) for name in ("version", "engines", "pipeline", "options", "uri")),
    ],
)
def test_what_no_batch_has_written_is_refused(tmp_path, line, changes):
    path = tmp_path / "foxes.results.jsonl"
    with begin(path) as results:
        results.append(outcome(TASKS[0]))
    lines = [json.loads(raw) for raw in path.read_text().splitlines()]
    changed = lines[line - 1]["ltx-batch"] if line == 1 else lines[line - 1]
    changed.update(changes)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    with pytest.raises(LtxError, match=rf"line {line} of .*foxes.results.jsonl is none of the results of a batch"):
        reopen(path)


def test_what_is_stored_elsewhere_is_not_looked_for_here(tmp_path):
    path = tmp_path / "foxes.results.jsonl"
    with begin(path, "s3://bucket/foxes") as results:
        results.append(outcome(TASKS[0]))
        results.append(outcome(TASKS[1], "the disk is full"))
    with reopen(path) as results:
        assert [task.number for task in results.tasks()] == [2]
        assert results.left() == (1, 1.0)


def test_a_video_that_has_gone_is_made_again(tmp_path):
    path = tmp_path / "foxes.results.jsonl"
    with begin(path) as results:
        for task in TASKS:
            results.append(outcome(task))
        (tmp_path / "1.mp4").write_bytes(b"fox")
        assert [task.number for task in results.tasks()] == [2]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("ended", [False, True], ids=["under way", "ended"])
def test_a_batch_of_other_rows_never_touches_the_results_of_an_earlier_one(tmp_path, overwrite, ended):
    path, notes = tmp_path / "foxes.results.jsonl", []
    first = begin(path)
    if ended:
        first.close()
    before = path.read_bytes()
    with begin(path, asked="owls", overwrite=overwrite, notes=notes) as owls:
        assert owls.path == tmp_path / "foxes-2.results.jsonl"
    assert path.read_bytes() == before
    told = [f"another batch is not all made; go on with it by: ltx-run --resume {path}"]
    assert notes == (told if ended else [])
    first.close()


def test_the_same_rows_find_their_own_results_among_those_of_others(tmp_path):
    path = tmp_path / "foxes.results.jsonl"
    begin(path).close()
    begin(path, asked="owls").close()
    with pytest.raises(LtxError, match=r"an earlier run of this batch .* --resume .*foxes-2\.results\.jsonl"):
        begin(path, asked="owls")
    with begin(path, asked="owls", overwrite=True) as again:
        assert again.path == tmp_path / "foxes-2.results.jsonl"


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[]\n", b'{"ltx-batch": {"version": "demo"}}\n'])
def test_a_file_of_that_name_that_says_nothing_of_these_rows_is_left_alone(tmp_path, content):
    path, notes = tmp_path / "foxes.results.jsonl", []
    path.write_bytes(content)
    with begin(path, notes=notes, overwrite=True) as results:
        assert results.path == tmp_path / "foxes-2.results.jsonl"
    assert (path.read_bytes(), notes) == (content, [])
