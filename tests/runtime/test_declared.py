"""Laws of values from Python: numpy's numbers and lists are as good as Python's; anything else is refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.stages import engines_of
from PIL import Image

from ltx_runtime import Condition, Guidance, LtxError, Pass, Pipeline, Preset, Request
from ltx_runtime.declared import declared, path_of
from ltx_runtime.planning.options import RunOptions, check_options
from ltx_runtime.spec.presets import Schedule
from ltx_runtime.spec.versions import VERSIONS

PICTURE = np.zeros((64, 96, 3), np.uint8)
PRESET = Preset((Pass(4, (Guidance(),)),))


@pytest.fixture
def pipe(spiece, diary):
    with Pipeline(engines_of(VERSIONS["0.9.5"], spiece), backend="fake") as pipe:
        yield pipe


def test_what_has_the_declared_types_stays_as_it_is():
    request = Request("a fox", height=64, timesteps=(1.0, 0.5), conditions=(Condition(PICTURE),), preset=PRESET)
    assert replace(declared(request), conditions=()) == replace(request, conditions=())
    assert declared(request).conditions[0].media is PICTURE
    assert declared(RunOptions(noise=Path("noise"))) == RunOptions(noise=Path("noise"))


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({"height": np.int64(64), "seed": np.uint64(7)}, {"height": 64, "seed": 7}),
        ({"height": 64.0, "width": np.float32(96)}, {"height": 64, "width": 96}),
        ({"guidance_scale": np.float64(3), "fps": np.int16(24)}, {"guidance_scale": 3.0, "fps": 24.0}),
        ({"timesteps": [1, 0.5]}, {"timesteps": (1.0, 0.5)}),
        ({"timesteps": np.array([1.0, 0.5])}, {"timesteps": (1.0, 0.5)}),
        ({"skip_blocks": np.array([3, 5])}, {"skip_blocks": (3, 5)}),
        ({"pad": np.True_}, {"pad": True}),
        ({"conditions": [Condition("fox.png", np.int32(0), 1)]}, {"conditions": (Condition(Path("fox.png")),)}),
    ],
    ids=str,
)
def test_numbers_of_numpy_whole_floats_and_lists_are_taken_for_what_they_are(changes, plain):
    request = declared(Request("a fox", **changes))
    assert request == Request("a fox", **plain)
    for name, value in plain.items():
        assert type(getattr(request, name)) is type(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": 3}, "prompt must be text; got 3 of type int"),
        ({"prompt": "\ud800"}, "prompt is not valid text"),
        ({"height": "64"}, "height must be a whole number; got '64' of type str"),
        ({"height": 64.5}, "height must be a whole number; got 64.5 of type float"),
        ({"steps": True}, "steps must be a whole number; got True of type bool"),
        ({"guidance_scale": "3"}, "guidance_scale must be a number"),
        ({"image_noise_scale": None}, "image_noise_scale must be a number; got None"),
        ({"pad": "no"}, "pad must be True or False; got 'no'"),
        ({"timesteps": "1.0"}, "timesteps must be a list; got '1.0'"),
        ({"skip_blocks": 3}, "skip_blocks must be a list"),
        ({"conditions": Condition(PICTURE)}, "conditions must be a list"),
        ({"conditions": ("fox.png",)}, "conditions must be a Condition; got 'fox.png'"),
        ({"conditions": (Condition(None),)}, "media must be a path, a PIL image or an array; got None"),
        ({"conditions": (Condition(PICTURE, "0"),)}, "frame must be a whole number"),
        ({"conditions": (Condition(PICTURE, strength=float("nan")),)}, "the strength of a condition must be"),
        ({"conditions": (Condition(PICTURE, strength=2),)}, "the strength of a condition must be"),
        ({"video": 3}, "video must be a path"),
        ({"video": "a\0b"}, "video has a NUL character"),
        ({"preset": "f.yaml"}, "preset must be a Preset; got 'f.yaml'"),
        ({"preset": replace(PRESET, passes=(Pass(4, (Guidance("3"),)),))}, "cfg_scale must be a number; got '3'"),
        ({"preset": replace(PRESET, passes=(Pass(4, (Guidance(from_sigma=float("nan")),)),))}, "from_sigma of pass 1"),
        ({"preset": replace(PRESET, schedule=Schedule("x"))}, "the preset has the schedule 'x'"),
        ({"crf": "29"}, "crf must be a whole number"),
        ({"noise": 3}, "noise must be a path"),
        ({"noise": "missing.safetensors"}, r"cannot read missing\.safetensors"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_anything_else_is_refused_by_name_before_anything_is_loaded(
    pipe, diary, tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LtxError, match=message):
        pipe("a fox", **{"height": 64, "width": 96, "num_frames": 9, **changes})
    assert diary == []


@pytest.mark.parametrize("prompt", [None, 3, "", Path("fox")])
def test_a_prompt_that_is_none_is_refused(pipe, prompt):
    with pytest.raises(LtxError, match=r"prompt must be text|there is no prompt"):
        pipe(prompt)
    with pytest.raises(LtxError, match="there is no prompt"):
        pipe()


@pytest.mark.parametrize("requests", ["fox", Request("fox")])
def test_one_request_is_no_list_of_requests(pipe, requests):
    with pytest.raises(LtxError, match="map takes a list of requests"):
        pipe.map(requests)


@pytest.mark.parametrize("threads", [0, 257, 10**11, 1.5, "2"])
def test_threads_are_a_number_that_a_machine_may_have(threads):
    with pytest.raises(LtxError, match="threads must be"):
        check_options(RunOptions(threads=threads))


def test_places_are_paths_or_text(pipe, tmp_path):
    assert path_of("a/b", "path") == path_of(Path("a/b"), "path") == Path("a/b")
    video = pipe("a fox", height=64, width=96, num_frames=9)
    for call in (
        lambda: Pipeline(None),
        lambda: pipe.decode(3),
        lambda: video.save(None),
        lambda: video.check_output(3),
    ):
        with pytest.raises(LtxError, match="must be a path; got"):
            call()


def test_a_picture_of_pil_is_known_without_pil(pipe):
    image = Image.fromarray(PICTURE)
    assert declared(Condition(image)).media is image
