"""Readers of the files from which runs and batches go on, which a stranger may have written."""

import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from fakes.stages import engines_of
from fuzz.folders import edited, json_seeds
from fuzz.reader import Reader

from ltx_runtime.batch.results import reopen
from ltx_runtime.errors import LtxError
from ltx_runtime.outputs.state import State, check_state
from ltx_runtime.outputs.unfinished import SUFFIX, Unfinished, open_unfinished
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Request, resolved
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import packed
from ltx_runtime.text.embeddings import Text

DEMO = VERSIONS["demo"]
MANIFEST = engines_of(DEMO, Path("tokenizer.model")).manifest
SIZE = {"height": 64, "width": 96, "num_frames": 9}
CHANNELS, TEXT_CHANNELS, TOKENS = 128, 64, 4
RECORD = {"ltx-engines": "0.1.0", "version": "demo", "request": {"prompt": "a fox", "seed": 3, **SIZE}}
ABOUT = {
    "record": json.dumps(RECORD),
    "engines": "engines/demo",
    "options": {"threads": 2, "tiled": True, "memory_bytes": 4_000_000_000},
    "output": "/elsewhere/fox.mp4",
    "state": {"steps": 3, "drawn": [["pass1/initial", [1, CHANNELS, 2, 1, 2]]], "saved": {"/a/b": "/a/b-2"}},
}
BATCH = [
    {"ltx-batch": {"version": "demo", "engines": "engines/demo", "pipeline": {"threads": 2}, "options": {"crf": 0}}},
    {"number": 1, "line": 1, "status": "planned", "output": "a/1.mp4", "work": 1.5, "fields": {"prompt": "a fox"}},
    {"line": 2, "status": "refused", "problem": "no prompt"},
    {"number": 1, "line": 1, "status": "done", "file": "a/1.mp4", "bytes": 3},
]


def planned_fox():
    """Returns the plan of the run that is interrupted in its first pass."""
    request = resolved(Request("a fox", seed=3, **SIZE), DEMO)
    return plan(request, DEMO, MANIFEST.schedule, MANIFEST.allowed_sigmas)


def state_of_fox() -> State:
    """Returns a state that fits this run."""
    embeddings, mask = np.zeros((1, 5, TEXT_CHANNELS), np.float32), np.ones((1, 5), np.int64)
    tokens = np.zeros((1, TOKENS, CHANNELS), np.float32)
    return State(Text(embeddings, mask, embeddings, mask), {}, tokens, 3, [("pass1/initial", (1, CHANNELS, 2, 1, 2))])


def read_unfinished(path: Path) -> None:
    """Opens the file of an unfinished run, and looks at all that it says."""
    unfinished: Unfinished = open_unfinished(path)
    try:
        with suppress(LtxError):  # names the video, whose record it is
            unfinished.recorded()
        check_state(unfinished.state, planned_fox(), path, CHANNELS, TEXT_CHANNELS)
    finally:
        unfinished.unlock()


def with_tensors(file_of: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Returns a function that puts the JSON of `file_of` into a file of the state's tensors."""
    tensors = {"tokens": np.zeros((1, TOKENS, CHANNELS), np.float32)}

    def whole(content: bytes) -> bytes:
        text = file_of(content).decode("utf-8", "replace")
        return packed(tensors, {"ltx-unfinished": text, "signature": "0" * 64})

    return whole


def read_results(path: Path) -> None:
    """Opens a file of results, and goes through the tasks that are left."""
    with reopen(path) as results:
        results.check_unchanged()
        for _ in itertools.islice(results.tasks(), 100):
            pass


def lines_of(file_of: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Returns a function that writes the entries of a list in JSON as lines."""

    def whole(content: bytes) -> bytes:
        raw = file_of(content)
        try:
            entries = json.loads(raw)
        except (ValueError, RecursionError):
            return raw
        return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries) if isinstance(entries, list) else raw

    return whole


GOING_ON = {
    "unfinished": Reader(read_unfinished, json_seeds(ABOUT), with_tensors(edited(ABOUT)), SUFFIX),
    "results": Reader(read_results, json_seeds(BATCH), lines_of(edited(BATCH)), ".results.jsonl"),
}
