"""Laws of the file of results of a batch: whole lines only, and what is made is not made again."""

import pytest

from ltx_runtime.batch.results import About, begin, reopen
from ltx_runtime.batch.tasks import Outcome, Task
from ltx_runtime.errors import LtxError

TASKS = [Task(number, number, {"prompt": "a fox"}, f"{number}.mp4", 1.0) for number in (1, 2)]


def outcome(task, problem=""):
    """Returns an outcome of a task, well or not."""
    return Outcome(task, None if problem else {"file": task.output, "bytes": 3}, problem)


def about(uri=None):
    """Returns how a batch is made, with its videos in its own folder or elsewhere."""
    return About("demo", "engines/demo", {}, {}, uri)


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_line_that_does_not_fit_leaves_nothing(tmp_path, room):
    resource = pytest.importorskip("resource", reason="only POSIX systems limit the size of files")
    path = tmp_path / "foxes.results.jsonl"
    with begin(path, about(), TASKS, overwrite=False) as results:
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


def test_what_is_stored_elsewhere_is_not_looked_for_here(tmp_path):
    path = tmp_path / "foxes.results.jsonl"
    with begin(path, about("s3://bucket/foxes"), TASKS, overwrite=False) as results:
        results.append(outcome(TASKS[0]))
        results.append(outcome(TASKS[1], "the disk is full"))
    with reopen(path) as results:
        assert [task.number for task in results.tasks()] == [2]
        assert results.left() == (1, 1.0)


def test_a_video_that_has_gone_is_made_again(tmp_path):
    path = tmp_path / "foxes.results.jsonl"
    with begin(path, about(), TASKS, overwrite=False) as results:
        for task in TASKS:
            results.append(outcome(task))
        (tmp_path / "1.mp4").write_bytes(b"fox")
        assert [task.number for task in results.tasks()] == [2]
