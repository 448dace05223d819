"""What is told of jobs: events to those who listen, and lines of JSON to the log."""

import json
import logging
import queue

import pytest
from fakes.crews import STEPS, working

from ltx_serve.making.events import Event, Listeners
from ltx_serve.making.logs import JsonFormatter


@pytest.fixture
def works(tmp_path):
    with working(tmp_path) as works:
        yield works


def told(events: queue.Queue, count: int | None = None) -> list[Event]:
    """Returns all events until the last one, or so many."""
    listed = [events.get(timeout=20)]
    while not listed[-1].is_last and len(listed) != count:
        listed.append(events.get(timeout=20))
    return listed


def test_who_listens_from_the_start_hears_every_step_with_its_preview_and_the_end(works):
    busy = works.add("wait")
    works.until(lambda: works.crew.busy["maker-1"] == busy)
    id = works.add("lose", "make")
    with works.crew.subscribe(id) as events:
        works.crew.cancel(busy)
        heard = told(events)
    steps = ["step"] * STEPS
    assert [event.kind for event in heard] == ["queued", "started", *steps, "queued", "started", *steps, "completed"]
    assert heard[0].data == {"position": 1}
    assert [event.data["step"] for event in heard if event.kind == "step"] == [*range(1, STEPS + 1)] * 2
    assert {event.preview for event in heard if event.kind == "step"} == {b"PNG"}
    assert {event.job for event in heard} == {id}
    assert heard[-1].progress == 100


def test_who_comes_late_hears_at_once_how_far_the_job_is(works):
    id = works.add("wait")
    works.until(lambda: works.store.get(id).progress == 30 * STEPS)
    with works.crew.subscribe(id) as events:
        (now,) = told(events, 1)
        assert (now.kind, now.data["step"], now.preview) == ("step", STEPS, b"PNG")
        works.crew.cancel(id)
        assert [event.kind for event in told(events)] == ["failed"]
    works.ended(id)
    with works.crew.subscribe(id) as events:
        (end,) = told(events)
        assert end.data == {"code": "cancelled", "message": "the video was cancelled"}


def test_the_present_state_of_every_job_is_told_as_it_is(works):
    (made,) = works.ended(works.add("make"))
    (refused,) = works.ended(works.add("refuse"))
    for id, kind in ((made.id, "completed"), (refused.id, "failed"), ("video_" + "0" * 32, "deleted")):
        with works.crew.subscribe(id) as events:
            assert [event.kind for event in told(events)] == [kind]


def test_everyone_who_listens_hears_that_a_job_was_deleted(works):
    id = works.add("wait")
    works.until(lambda: works.crew.busy["maker-1"] == id)
    with works.crew.subscribe(id) as first, works.crew.subscribe(id) as second:
        works.crew.delete(id)
        assert told(first)[-1].kind == told(second)[-1].kind == "deleted"


def test_who_is_too_slow_misses_steps_but_never_the_end_and_holds_up_nobody():
    listeners = Listeners()
    with listeners.listening("a", lambda: Event("queued", "a")) as events:
        for step in range(1000):
            listeners.tell(Event("step", "a", data={"step": step}))
        listeners.tell(Event("completed", "a"))
        heard = told(events)
    assert 10 < len(heard) < 200
    assert [event.data["step"] for event in heard[:-1]] == [*range(1000 - len(heard) + 1, 1000)]
    assert heard[-1].kind == "completed"


def test_the_end_that_is_known_comes_before_whatever_was_told_late():
    listeners = Listeners()
    for kind in ("failed", "step", "started", "queued", "decoding"):
        listeners.tell(Event(kind, "a"))
    with listeners.listening("a", lambda: Event("failed", "a")) as events:
        assert [event.kind for event in told(events)] == ["failed"]


def test_what_is_told_while_the_present_state_is_read_is_heard_in_its_place():
    listeners = Listeners()

    def present():
        listeners.tell(Event("step", "a", data={"step": 1}))
        return Event("started", "a")

    with listeners.listening("a", present) as events:
        listeners.tell(Event("completed", "a"))
        assert [event.kind for event in told(events)] == ["step", "completed"]


@pytest.fixture
def lines(works):
    """Returns a function that gives all lines of the log until now, read as JSON."""
    written: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(JsonFormatter())
    handler.emit = lambda record: written.append(handler.format(record))
    logger = logging.getLogger("ltx_serve")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lambda: [json.loads(line) for line in written]
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_everything_that_happens_to_a_job_is_a_line_of_the_log_and_its_prompt_is_not(works, lines):
    id = works.add("lose", "make", prompt="a secret fox")
    works.ended(id)
    refused = works.add("refuse")
    works.ended(refused)
    works.crew.delete(id)
    told = lines()
    assert [line["event"] for line in told if line["job"] == id] == [
        *["started", "queued again", "started", "completed", "deleted"]
    ]
    assert [line["event"] for line in told if line["job"] == refused] == ["started", "failed"]
    of_failure = next(line for line in told if line["event"] == "failed")
    assert (of_failure["code"], of_failure["level"]) == ("failed", "warning")
    assert [line["attempt"] for line in told if line["event"] == "started"] == [1, 2, 1]
    for line in told:
        assert line["time"].endswith("+00:00") and line["logger"] == "ltx_serve"
    assert "secret" not in json.dumps(told)


def test_an_error_of_the_program_is_logged_with_its_traceback(works, lines):
    works.ended(works.add("bug"))
    (bug,) = [line for line in lines() if line["event"] == "bug"]
    assert "ZeroDivisionError: of a secret" in bug["traceback"]
