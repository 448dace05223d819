"""Laws of saved latents: they are read with all that decoding needs, and damaged files are refused, not decoded."""

import json
import os
from dataclasses import asdict

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.tensors import read_metadata, read_tensors, write_tensors
from ltx_runtime.vae.saved_latents import Ending, read_initial, read_latents, write_latents

CHANNELS = 4
GRID = Grid(3, 2, 5)
ENDING = Ending("demo", (64, 160), (3, 4, 5, 6), 15, 24.0, 2**64 - 1, 0.6, 0.05, 0.025)


def drawn(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


LATENTS = drawn(1, 1, CHANNELS, 3, 2, 5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "latents.safetensors"


def described(**changes):
    """Returns the metadata of a file; a change to None leaves the field out."""
    all_of_it = asdict(ENDING) | {"decode": "pass1"} | changes
    return {"ltx": json.dumps({name: value for name, value in all_of_it.items() if value is not None})}


def test_the_last_pass_and_its_ending_are_read_as_they_were_written(path):
    passes = {"pass1": drawn(0, 1, CHANNELS, 3, 1, 3), "pass2": drawn(2, 1, CHANNELS, 3, 2, 5), "temporal": LATENTS}
    write_latents(path, passes, ENDING)
    latents, ending = read_latents(path, CHANNELS)
    np.testing.assert_array_equal(latents, LATENTS, strict=True)
    assert ending == ENDING


def test_the_latents_of_every_pass_are_kept_under_their_names(path):
    passes = {"pass1": drawn(0, 1, CHANNELS, 3, 1, 3), "pass2": LATENTS}
    write_latents(path, passes, ENDING)
    for name, array in read_tensors(path, ("pass1", "pass2")).items():
        np.testing.assert_array_equal(array, passes[name], strict=True)


def test_a_file_that_is_written_after_every_pass_is_decoded_from_the_latest(path):
    passes = {}
    for number in (1, 2, 3):
        passes[f"pass{number}"] = drawn(number, 1, CHANNELS, 3, 2, 5)
        write_latents(path, passes, ENDING)
        np.testing.assert_array_equal(read_latents(path, CHANNELS)[0], passes[f"pass{number}"])


def test_latents_of_another_type_are_float32(path):
    whole = np.arange(LATENTS.size).reshape(LATENTS.shape)
    for dtype in (np.float16, np.float64, np.int64):
        write_tensors(path, {"pass1": whole.astype(dtype)}, described())
        np.testing.assert_array_equal(read_latents(path, CHANNELS)[0], whole.astype(np.float32), strict=True)


def refusal(path, case):
    """Returns the sentence with which a file is refused."""
    try:
        read_latents(path, CHANNELS)
    except LtxError as refused:
        return str(refused)
    pytest.fail(f"{case} is read")


def test_other_files_are_no_latents_of_ours(path):
    for metadata in (
        {},
        {"format": "pt"},
        {"ltx": ""},
        {"ltx": "{"},
        {"ltx": "[]"},
        {"ltx": "null"},
        {"ltx": "[" * 100_000},
        described(decode=None),
        described(unheard_of=1),
        *(described(**{name: None}) for name in asdict(ENDING)),
    ):
        write_tensors(path, {"pass1": LATENTS}, metadata)
        case = str(metadata)[:200]
        assert "contains no latents saved by ltx-run - give a file that --save-latents wrote" in refusal(path, case), (
            case
        )


NO_NUMBERS = ["x", [], {}, True, -1, float("nan"), [1]]
NO_PAIRS = ["x", 5, [], [64], [64, 96, 1], [0, 64], [64, -1], [64.5, 96], [64, "x"], [float("nan"), 1], {}, True]
DAMAGED = {
    "num_frames": (*NO_NUMBERS, 0, 1.5, float("inf"), 18),  # three latent frames decode to 17
    "fps": (*NO_NUMBERS, 0, float("inf")),
    "seed": (*NO_NUMBERS, 1.5, 2**64, float("inf")),
    "tone_map": NO_NUMBERS,
    "decode_timestep": NO_NUMBERS,
    "decode_noise_scale": NO_NUMBERS,
    "size": NO_PAIRS,
    "crop": (
        *([value, 0, 0, 0] for value in ("x", -1, 0.5, True, None)),
        *([], [0, 0, 0], [0] * 5, "0000", 0, {}),
        *([100, 60, 0, 0], [0, 0, 64, 0], [0, 0, 0, 10**9]),  # the crop leaves nothing
    ),
    "version": (5, [], {}, True),
    "decode": (5, [], {}, "pass3"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_an_ending_that_no_run_writes_is_refused(path, name):
    for value in DAMAGED[name]:
        write_tensors(path, {"pass1": LATENTS}, described(**{name: value}))
        said = refusal(path, value)
        assert str(path) in said, value
        assert " - " in said, value


@pytest.mark.parametrize(
    "shape", [(2, CHANNELS, 3, 2, 5), (1, 8, 3, 2, 5), (CHANNELS, 3, 2, 5), (1, CHANNELS, 0, 2, 5), (1, 30, CHANNELS)]
)
def test_latents_of_another_shape_are_refused_with_the_version_they_are_of(path, shape):
    write_tensors(path, {"pass1": drawn(0, *shape)}, described())
    with pytest.raises(LtxError, match=r"pass1 in .* is of shape .*demo"):
        read_latents(path, CHANNELS)


def test_a_file_cut_anywhere_is_refused(path):
    write_latents(path, {"pass1": LATENTS}, ENDING)
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(LtxError, match=r"is not a complete safetensors file .* - create it again"):
            read_latents(path, CHANNELS)


def test_what_cannot_be_written_is_said_and_leaves_the_older_file(path):
    write_latents(path, {"pass1": LATENTS}, ENDING)
    with pytest.raises(LtxError, match="cannot write"):
        write_latents(path.parent / "missing" / "x.safetensors", {"pass1": LATENTS}, ENDING)
    assert os.listdir(path.parent) == [path.name]
    assert json.loads(read_metadata(path)["ltx"])["decode"] == "pass1"


def test_initial_latents_are_tokens_cell_by_cell(path):
    tokens = drawn(3, 1, GRID.tokens, CHANNELS)
    write_tensors(path, {"initial_latents": tokens})
    initial = read_initial(path, GRID, CHANNELS)
    assert (initial.shape, initial.dtype) == (LATENTS.shape, np.float32)
    for place in range(GRID.tokens):
        frame, cell = divmod(place, GRID.rows * GRID.columns)
        row, column = divmod(cell, GRID.columns)
        np.testing.assert_array_equal(initial[0, :, frame, row, column], tokens[0, place])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_initial_latents_are_float32_whatever_they_are_stored_as(path, dtype):
    whole = np.arange(GRID.tokens * CHANNELS).reshape(1, GRID.tokens, CHANNELS)
    write_tensors(path, {"initial_latents": whole.astype(dtype)})
    assert read_initial(path, GRID, CHANNELS).dtype == np.float32


@pytest.mark.parametrize("shape", [(1, 29, CHANNELS), (1, 30, 8), (2, 30, CHANNELS), (30, CHANNELS), LATENTS.shape])
def test_initial_latents_of_another_size_are_refused_with_the_size_they_must_have(path, shape):
    write_tensors(path, {"initial_latents": drawn(0, *shape)})
    with pytest.raises(LtxError, match=r"not \[1, 30, 4\] - make them for 160x64 and 17 frames"):
        read_initial(path, GRID, CHANNELS)


def test_a_file_without_initial_latents_is_refused_with_what_it_holds(path):
    write_tensors(path, {"noise": LATENTS})
    with pytest.raises(LtxError, match="has no tensor initial_latents; it holds noise"):
        read_initial(path, GRID, CHANNELS)
