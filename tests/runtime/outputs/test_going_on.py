"""Laws of unfinished runs that somebody else has written: nothing beyond their folder, and no state is believed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fuzz.going_on import ABOUT, CHANNELS, GOING_ON, TEXT_CHANNELS, planned_fox, state_of_fox
from fuzz.reader import attempt
from samples.changed_values import VALUES, changed, places_in

from ltx_runtime.errors import LtxError
from ltx_runtime.outputs.places import confined
from ltx_runtime.outputs.state import check_state
from ltx_runtime.text.embeddings import Text

LATENTS = np.zeros((1, CHANNELS, 2, 1, 2), np.float32)
ROW, MASK = np.zeros((1, 5, TEXT_CHANNELS), np.float32), np.ones((1, 5), np.int64)
DRAW = ("pass1/initial", LATENTS.shape)
STATES = {
    "a step that the pass has not": {"steps": 8},
    "a step before the first": {"steps": -1},
    "steps without end": {"steps": 10**30},
    "steps without tokens": {"tokens": None},
    "tokens at the start": {"steps": 0},
    "tokens of other channels": {"tokens": np.zeros((1, 4, 3), np.float32)},
    "tokens of two videos": {"tokens": np.zeros((2, 4, CHANNELS), np.float32)},
    "tokens that are none": {"tokens": np.float32(1)},
    "a pass that is not": {"latents": {"pass9": LATENTS}},
    "a second pass without the first": {"latents": {"pass2": LATENTS}},
    "latents of another size": {"latents": {"pass1": LATENTS[:, :, :1]}},
    "latents of frames between": {"latents": {"temporal": LATENTS}},
    "text of other channels": {"text": Text(ROW[:, :, :3], MASK)},
    "text of two prompts": {"text": Text(np.repeat(ROW, 2, 0), MASK)},
    "a mask of another length": {"text": Text(ROW, MASK[:, :4])},
    "a mask of floats": {"text": Text(ROW, MASK.astype(np.float32))},
    "embeddings of whole numbers": {"text": Text(ROW.astype(np.int64), MASK)},
    "half a negative prompt": {"text": Text(ROW, MASK, ROW)},
    "a draw of all memory": {"drawn": [("pass1/initial", (10**9, 10**9))]},
    "a draw of less than nothing": {"drawn": [("pass1/initial", (-1, -5))]},
    "a draw of nothing": {"drawn": [("pass1/initial", ())]},
    "a draw of another name": {"drawn": [("../x", LATENTS.shape)]},
    "draws without end": {"drawn": [DRAW] * 10_000},
}


def check(state):
    check_state(state, planned_fox(), "fox.mp4.unfinished", CHANNELS, TEXT_CHANNELS)


def test_a_state_of_the_run_is_taken():
    check(state_of_fox())
    check(replace(state_of_fox(), tokens=None, steps=0))


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_none_of_the_run_is_refused(name):
    with pytest.raises(LtxError, match=r"^fox.mp4.unfinished holds a state that is none of its run - start the run"):
        check(replace(state_of_fox(), **STATES[name]))


def test_what_a_stranger_says_stays_beside_the_file_and_replaces_nothing(tmp_path):
    about = {**ABOUT, "options": {"overwrite": True, "tiled": True}}
    kept = confined(about, tmp_path / "x.mp4.unfinished")
    assert kept["output"] == str(tmp_path / "fox.mp4") and kept["options"] == {"tiled": True}
    beside = {"save_latents": str(tmp_path / "latents.safetensors")}
    assert confined({**ABOUT, "options": beside}, tmp_path / "x.mp4.unfinished")["options"] == beside


@pytest.mark.parametrize(
    "place", ["/etc/latents", "latents", "../latents", "{folder}/../latents", "{folder}/a/latents"]
)
@pytest.mark.parametrize("name", ["save_latents", "save_noise", "save_embeddings"])
def test_a_stranger_saves_no_file_elsewhere(tmp_path, name, place):
    about = {**ABOUT, "options": {name: place.format(folder=tmp_path)}}
    with pytest.raises(LtxError, match=r"x.mp4.unfinished was not written by you .* would also write"):
        confined(about, tmp_path / "x.mp4.unfinished")


@pytest.mark.parametrize("name", GOING_ON)
def test_whatever_a_stranger_writes_is_read_or_refused_in_one_line(tmp_path, name):
    reader = GOING_ON[name]
    path, data = tmp_path / f"x{reader.suffix}", json.loads(next(iter(reader.seeds()))[1:])
    texts = [json.dumps(changed(data, place, value)) for place in places_in(data) for value in VALUES]
    read = [attempt(reader, b"\0" + text.encode(), path) for text in texts]
    assert len(read) >= 400 and 0 < sum(read) < len(read)
