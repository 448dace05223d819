"""Laws of the library: a Pipeline plans at once, runs on request, keeps loaded what it should, and leaves nothing."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from fakes.requests import ROAD, SMALL
from fakes.runs import make
from fakes.stages import engines_of
from PIL import Image

import ltx_runtime
from ltx_runtime import Condition, LtxError, Pipeline, Request, Video
from ltx_runtime.folder.manifest import Preview
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.vae.preview import pictures_of

DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]


def test_the_public_names_are_there():
    for name in ltx_runtime.__all__:
        assert getattr(ltx_runtime, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = ltx_runtime.Nonsense
    assert set(ltx_runtime.__all__) <= set(dir(ltx_runtime))


# --- a request ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_prompt_alone_is_a_request_and_everything_else_is_the_version_s_own(version, spiece, diary):
    with Pipeline(engines_of(version, spiece), backend="fake") as pipe:
        video = pipe("a fox")
        own = (version.height, version.width, version.num_frames, version.fps, version.negative_prompt)
        request = video.plan.request
        assert (request.height, request.width, request.num_frames, request.fps, request.negative_prompt) == own
        assert pipe(Request("a fox")).plan.request.seed != request.seed  # a new random seed
    assert diary == []


def test_planning_runs_nothing_and_what_cannot_be_made_is_an_error_with_its_parts(pipe, diary):
    with pytest.raises(LtxError, match="height must be a multiple of 32; got 65"):
        pipe("a fox", height=65)
    with pytest.raises(
        LtxError, match=r"nothing called 'heigth' to ask for - use one of prompt, .*height.*save_latents"
    ):
        pipe("a fox", heigth=64)
    with pytest.raises(LtxError, match=r"cannot read missing\.png"):
        pipe("a fox", conditions=(Condition("missing.png"),))
    with pytest.raises(LtxError, match="unknown rng 'cuda'"):
        pipe("a fox", rng="cuda")
    assert diary == []


def test_changes_are_the_same_as_fields(pipe):
    asked = pipe(Request("a fox", **SMALL)).plan
    changed = pipe("a fox", **SMALL).plan
    assert asked.request == changed.request
    assert pipe(Request("a fox", height=32), **SMALL).plan.request == asked.request


def test_pictures_are_files_images_or_arrays_alike(spiece, diary, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "fox.png")
    given = (tmp_path / "fox.png", str(tmp_path / "fox.png"), Image.fromarray(pixels), pixels, pixels[None])
    given += (pixels.astype(np.float32) / 255, pixels.astype(np.float64) / 255)
    opaque = np.dstack([pixels, np.full((64, 96), 255, np.uint8)])
    given += (opaque, opaque[None] / 255, Image.fromarray(opaque))
    with Pipeline(engines_of(SINGLE, spiece), backend="fake") as pipe:
        videos = [pipe("a fox", conditions=(Condition(one),), steps=2, **SMALL).latents() for one in given]
    for video in videos[1:]:
        np.testing.assert_array_equal(video, videos[0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 64, 96), np.uint8), r"must be \(F, H, W, 3\) or \(H, W, 3\); got \(3, 64, 96\)"),
        (np.zeros((64, 96, 3), np.int32), "must be uint8, or float from 0 to 1; got int32"),
        (np.full((64, 96, 3), 1.5), "must be from 0 to 1; got 1.5 to 1.5"),
        (np.full((64, 96, 3), np.nan), "must be from 0 to 1; got nan to nan"),
    ],
)
def test_an_array_that_is_no_pictures_is_refused_when_it_is_planned(pipe, array, message):
    with pytest.raises(LtxError, match=message):
        pipe("a fox", conditions=(Condition(array),), **SMALL)


# --- a video --------------------------------------------------------------------------------------


def test_steps_tell_where_they_are_and_the_last_holds_the_latents(pipe):
    video = pipe("a fox", **SMALL)
    steps = list(video.steps())
    passes = video.plan.passes
    assert [(step.pass_number, step.index) for step in steps] == [
        (number, index) for number, one in enumerate(passes, start=1) for index in range(len(one.sigmas))
    ]
    for step in steps:
        one = passes[step.pass_number - 1]
        assert (step.steps, step.passes) == (len(one.sigmas), 2)
        assert step.sigma == (0 if step.index + 1 == step.steps else float(one.sigmas[step.index + 1]))
        assert step.latents.shape == (1, 4, 2, one.grid.rows, one.grid.columns)
    np.testing.assert_array_equal(steps[-1].latents, video.latents())
    # The last Euler step goes all the way to the predicted latents, and the first is still far from them.
    np.testing.assert_allclose(steps[-1].predicted, steps[-1].latents, atol=1e-5)
    assert not np.allclose(steps[0].predicted, steps[0].latents, atol=0.1)


def test_latents_of_a_step_cannot_be_written_to(pipe):
    for step in pipe("a fox", **SMALL).steps():
        for latents in (step.latents, step.predicted):
            with pytest.raises(ValueError, match="read-only"):
                latents[:] = 0


def test_a_preview_is_a_picture_of_every_latent_frame_by_the_colours_of_the_folder(spiece, diary):
    engines = engines_of(SINGLE, spiece)
    colours = Preview(tuple((0.1 * row, 0.2, -0.3, 0.4) for row in range(3)), (0.0, 0.1, 0.2))
    components = engines.manifest.components
    encoder = replace(components["vae_encoder"], preview=colours)
    coloured = replace(engines, manifest=replace(engines.manifest, components={**components, "vae_encoder": encoder}))
    with Pipeline(coloured, backend="fake") as pipe:
        for step in pipe("a fox", steps=2, **SMALL).steps():
            np.testing.assert_array_equal(step.preview(), pictures_of(step.predicted, colours))
            assert step.preview().shape == (*step.latents.shape[2:], 3)
    without = {name: entry for name, entry in components.items() if name != "vae_encoder"}
    for lacking in (engines, replace(engines, manifest=replace(engines.manifest, components=without))):
        with Pipeline(lacking, backend="fake") as pipe:
            step = next(pipe("a fox", steps=2, **SMALL).steps())
            with pytest.raises(LtxError, match="has no colours for previews - run: ltx-export download"):
                step.preview()


def test_leaving_the_loop_frees_the_network_and_leaves_nothing(pipe, diary, tmp_path):
    for number, _ in enumerate(pipe("a fox", **SMALL, save_latents=tmp_path / "kept.safetensors").steps(), start=1):
        if number == 2:
            break
    assert diary[-1] == "close transformer"
    assert diary.count("open transformer") == diary.count("close transformer") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_video_is_denoised_once_and_decoded_whenever_its_frames_are_asked_for(spiece, diary):
    for rng in ("numpy", "torch"):
        diary.clear()
        with Pipeline(engines_of(VERSIONS["0.9.1"], spiece), backend="fake") as pipe:
            video = pipe("a fox", steps=2, rng=rng, **SMALL)
            first, second = np.stack(list(video)), np.stack(list(video.frames()))
        np.testing.assert_array_equal(first, second)
        assert diary.count("open transformer") == 1
        assert diary.count("open vae_decoder") == 2


def test_the_choice_of_backends_is_noted_once_for_all_videos(engines):
    notes = []
    with Pipeline(engines(DEMO), note=notes.append) as pipe:
        for _ in range(2):
            list(pipe("a fox", **SMALL))
    assert notes == ["everything on cpu"]


def test_frames_are_those_of_the_command(pipe, spiece):
    request = Request("a fox", **SMALL)
    frames = list(pipe(request))
    assert {(frame.shape, frame.dtype) for frame in frames} == {((64, 96, 3), np.dtype(np.uint8))}
    np.testing.assert_array_equal(frames, make(engines_of(DEMO, spiece), request).video)


def test_saving_names_the_file_and_tells_the_seconds_of_every_stage(pipe, tmp_path):
    video = pipe("a fox", **SMALL)
    assert video.save(tmp_path / "fox.mp4") == tmp_path / "fox.mp4"
    assert video.save(str(tmp_path / "fox.png")) == tmp_path / "fox"
    assert len(list((tmp_path / "fox").iterdir())) == 9
    assert list(video.seconds) == ["text", "denoise 1", "upscale", "denoise 2", "decode"]
    assert video.backends == dict.fromkeys(dict.fromkeys(ROAD), "fake")
    for name, message in (("fox.xyz", "unknown output suffix"), ("nowhere/fox.mp4", "cannot write")):
        with pytest.raises(LtxError, match=message):
            video.save(tmp_path / name)


def test_saved_latents_become_the_same_frames(pipe, tmp_path):
    kept = tmp_path / "kept.safetensors"
    frames = list(pipe("a fox", save_latents=kept, **SMALL))
    video = pipe.decode(kept)
    assert isinstance(video, Video)
    assert video.plan is None
    np.testing.assert_array_equal(list(video), frames)
    with pytest.raises(LtxError, match="nothing called 'height' to ask for - use one of rng"):
        pipe.decode(kept, height=64)
    with pytest.raises(ValueError, match="have no steps"):
        next(video.steps())


def test_what_stands_for_the_progress_hears_every_unit(pipe):
    heard = {}

    class Told:
        def __init__(self, name, units):
            self.name, heard[name] = name, [units, 0]

        def __enter__(self):
            return lambda done: heard[self.name].__setitem__(1, heard[self.name][1] + done)

        def __exit__(self, *exception):
            pass

    list(pipe("a fox", **SMALL).frames(Told))
    assert all(units == done for units, done in heard.values())
    assert list(heard) == ["text", "denoise 1", "upscale", "denoise 2", "decode"]


# --- many requests --------------------------------------------------------------------------------


def test_many_requests_are_made_in_order_with_one_opening_and_a_failure_ends_none_of_the_others(
    pipe, diary, tmp_path, monkeypatch
):
    requests = [Request("a fox", **SMALL), Request("a cat", height=65), "a dog", Request("a fox", **SMALL)]
    changes = {name: SMALL[name] for name in ("width", "num_frames", "seed")}

    def path(index, video):
        return tmp_path / f"{index}-{video.plan.request.prompt}.gif"

    requests[2] = Request(requests[2], height=64)
    results = list(pipe.map(requests, path, **changes))
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert [result.error is None for result in results] == [True, False, True, True]
    assert "height must be a multiple of 32" in str(results[1].error)
    assert [result.path and result.path.name for result in results] == [
        "0-a fox.gif",
        None,
        "2-a dog.gif",
        "3-a fox.gif",
    ]
    assert all(result.path is None or result.path.is_file() for result in results)
    assert sorted(diary.opened()) == sorted(set(ROAD))
    assert sorted(line for line in diary if line.startswith("close")) == sorted(f"close {name}" for name in set(ROAD))


def test_leaving_many_requests_early_closes_what_they_kept(pipe, diary):
    with closing(pipe.map(["a fox", "a cat"], **SMALL)) as results:
        first = next(results)
    assert first.video.latents().shape[0] == 1
    assert diary.count("open text_encoder") == diary.count("close text_encoder") == 1


# --- work that is done once -----------------------------------------------------------------------


def test_a_run_plans_once_and_looks_for_each_network_once(spiece, diary, monkeypatch):
    from ltx_runtime import pipeline
    from ltx_runtime.planning import backends

    counted = {"plan": 0}
    found = []

    def plan(*arguments):
        counted["plan"] += 1
        return original_plan(*arguments)

    def find(engines, name, *arguments, **more):
        found.append(name)
        return original_find(engines, name, *arguments, **more)

    original_plan, original_find = pipeline.plan, backends.find
    monkeypatch.setattr(pipeline, "plan", plan)
    monkeypatch.setattr(backends, "find", find)
    with Pipeline(engines_of(DEMO, spiece), backend="fake") as pipe:
        video = pipe("a fox", **SMALL)
        video.report()
        list(video)
        assert counted == {"plan": 1}
        assert found == list(dict.fromkeys(ROAD))
        list(pipe("a cat", **SMALL))
        assert found == list(dict.fromkeys(ROAD))
