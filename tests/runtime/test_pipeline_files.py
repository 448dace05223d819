"""Laws of files that a run saves and loads: noise, latents and embeddings give the same video bit for bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import stages as fake_stages
from fakes.runs import Made, decode_saved, make
from fakes.stages import CHANNELS, NOISE_MAPS, TEXT_CHANNELS, engines_of

from ltx_runtime.errors import LtxError
from ltx_runtime.noise.noise import RNGS, SeededNoise
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.geometry import tokens_of
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import read_metadata, read_tensors, write_tensors

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
DEMO, SINGLE, MAPPED = VERSIONS["demo"], VERSIONS["0.9.5"], VERSIONS["0.9.1"]
REQUEST = Request("a cat walks", "blurry", 96, 160, 17, 24.0, seed=7)
FEW = (1.0, 0.4219)  # sigmas that every version allows


@pytest.fixture
def file(tmp_path):
    return tmp_path / "kept.safetensors"


@pytest.fixture
def rich(tmp_path):
    """Returns a request with an image at the start, a keyframe, and a clip later on."""
    conditions = []
    for frames, frame in ((1, 0), (1, 3), (9, 8)):
        path = tmp_path / f"given{frame}.safetensors"
        media = np.random.RandomState(frame).uniform(-1, 1, (1, 3, frames, 96, 160)).astype(np.float32)
        write_tensors(path, {"media": media})
        conditions.append(Condition(path, frame, 1 - frame / 20))
    return replace(REQUEST, conditions=tuple(conditions))


def same(made, other):
    np.testing.assert_array_equal(made.video, other.video)


def stored(path):
    """Returns the shape of every tensor of a file."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def again(engines, path, **options):
    """Decodes saved latents and returns the results."""
    made = Made()
    decode_saved(engines, path, made.frames.append, made.progress, RunOptions("fake", **options))
    return made


# --- noise ----------------------------------------------------------------------------------------


def keys_of(version, request, sampled):
    """Returns every draw of a run in order, as docs/noise.md lists them; conditions are those of `rich`."""
    keys, passes = {}, plan(request, version).passes
    frames = {0: 1, 1: 1, 2: 2} if request.conditions else {}
    for p, one in enumerate(passes, start=1):
        grid = one.grid
        keys[f"pass{p}/initial"] = (1, CHANNELS, grid.frames, grid.rows, grid.columns)
        for i, count in frames.items():
            shape = (1, CHANNELS, count, grid.rows, grid.columns)
            keys |= {f"pass{p}/posterior_{i}": shape} if sampled else {}
            keys |= {f"pass{p}/keyframe_{i}": shape} if i else {}
        extra = sum(frames.get(i, 0) for i in (1, 2)) * grid.rows * grid.columns
        tokens = (1, extra + grid.tokens, CHANNELS)
        for n in range(len(one.sigmas)):
            keys |= {f"pass{p}/image_{n}": tokens} if frames else {}
            keys |= {f"pass{p}/step_{n}": tokens} if one.stochastic else {}
    if version.vae != "A":
        keys["decode"] = (1, CHANNELS, grid.frames, grid.rows, grid.columns)
    for block, (count, scale) in NOISE_MAPS.get(version.vae, {}).items():
        keys[f"decoder/noise_{block}"] = (count, scale * grid.rows, scale * grid.columns)
    return keys


@EVERY_VERSION
@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sampled"])
def test_a_file_of_noise_has_exactly_the_draws_of_the_run_and_repeats_it(version, sampled, spiece, diary, file, rich):
    engines = engines_of(version, spiece)
    for request in (REQUEST, rich):
        options = {"sample_posterior": sampled}
        made = make(engines, request, save_noise=file, **options)
        assert stored(file) == keys_of(version, request, sampled)
        same(make(engines, replace(request, seed=8), noise=file, **options), made)
        assert not np.array_equal(make(engines, replace(request, seed=8), **options).video, made.video)


@EVERY_VERSION
def test_every_draw_of_a_file_is_used(version, spiece, diary, file, rich):
    engines, request = engines_of(version, spiece), replace(rich, timesteps=FEW)
    make(engines, request, save_noise=file, sample_posterior=True)
    names = list(stored(file))
    tensors = read_tensors(file, names)
    used = [name for name in names if name != f"pass1/step_{len(FEW) - 1}"]  # none of that noise is left at sigma 0
    for changed in used:
        write_tensors(file, tensors | {changed: tensors[changed] + 1})
        make(engines, request, noise=file, sample_posterior=True)
    first, *others = diary.fed("vae_decoder")
    for changed, fed in zip(used, others, strict=True):
        assert any(not np.array_equal(fed[name], first[name]) for name in fed), changed


def test_the_noise_of_the_seed_lies_under_the_keys(spiece, diary, file):
    make(engines_of(MAPPED, spiece), REQUEST, save_noise=file)
    for name, shape in stored(file).items():
        np.testing.assert_array_equal(read_tensors(file, [name])[name], SeededNoise(7).draw(name, shape))


def test_a_file_without_a_draw_that_the_run_needs_is_refused_with_its_name(spiece, diary, file):
    engines = engines_of(DEMO, spiece)
    make(engines, replace(REQUEST, single_pass=True), save_noise=file)
    with pytest.raises(LtxError, match=r"has no noise pass2/initial; .*same settings|holds pass1/initial"):
        make(engines, REQUEST, noise=file)
    with pytest.raises(LtxError, match=r"holds .* this run draws .* - record noise with the same settings"):
        make(engines, replace(REQUEST, single_pass=True, num_frames=25), noise=file)


@pytest.mark.parametrize("rng", RNGS)
def test_each_generator_makes_a_video_of_its_own_and_repeats_it(rng, spiece, diary):
    engines = engines_of(MAPPED, spiece)
    first, second = (make(engines, REQUEST, rng=rng) for _ in range(2))
    same(first, second)
    for other in RNGS.keys() - {rng}:
        assert not np.array_equal(make(engines, REQUEST, rng=other).video, first.video)


# --- initial latents ------------------------------------------------------------------------------


@EVERY_VERSION
def test_initial_latents_of_a_file_stand_for_the_first_draw_alone(version, spiece, diary, file):
    engines, request = engines_of(version, spiece), replace(REQUEST, timesteps=FEW)
    shape = keys_of(version, request, sampled=False)["pass1/initial"]
    make(engines, request)
    for seed in (7, 8):
        write_tensors(file, {"initial_latents": tokens_of(SeededNoise(seed).draw("pass1/initial", shape))})
        make(engines, request, initial_latents=file)
    drawn, same_draw, other_draw = (fed["latents"] for fed in diary.fed("vae_decoder"))
    np.testing.assert_array_equal(same_draw, drawn)
    assert not np.array_equal(other_draw, drawn)


def test_initial_latents_of_another_size_are_refused_before_anything_is_opened(spiece, diary, file):
    write_tensors(file, {"initial_latents": np.zeros((1, 45, CHANNELS), np.float32)})
    for request, size in ((REQUEST, "96x32"), (replace(REQUEST, num_frames=25, single_pass=True), "160x96")):
        with pytest.raises(LtxError, match=f"initial_latents .* make them for {size} and"):
            make(engines_of(DEMO, spiece), request, initial_latents=file)
    assert diary == []


def test_initial_latents_that_were_given_are_kept_with_the_noise(spiece, diary, file, tmp_path):
    engines, request = engines_of(SINGLE, spiece), replace(REQUEST, stochastic=True)
    write_tensors(file, {"initial_latents": np.random.RandomState(3).randn(1, 45, CHANNELS).astype(np.float32)})
    kept = tmp_path / "noise.safetensors"
    made = make(engines, request, initial_latents=file, save_noise=kept)
    same(make(engines, replace(request, seed=9), noise=kept), made)


# --- latents --------------------------------------------------------------------------------------


@EVERY_VERSION
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"height": 90, "width": 150, "num_frames": 12, "pad": True},
        {"temporal_upscale": True},
        {"tone_map": 0.9},
        {"decode_timestep": 0.2, "decode_noise_scale": 0.4},
    ],
    ids=str,
)
def test_saved_latents_are_decoded_to_the_frames_of_the_run(version, change, spiece, diary, file):
    engines, request = engines_of(version, spiece), replace(REQUEST, seed=8, **change)
    made = make(engines, request, save_latents=file)
    opened = len(diary.stages)
    later = again(engines, file)
    same(later, made)
    assert diary.opened()[opened:] == ["vae_decoder"]
    assert later.units == {"decode": [len(made.frames)] * 2}
    with Pipeline(engines, backend="fake") as pipe:
        assert pipe.decode(file).ending == plan(request, version).ending


@EVERY_VERSION
def test_the_latents_of_every_pass_are_kept(version, spiece, diary, file):
    make(engines_of(version, spiece), replace(REQUEST, temporal_upscale=True), save_latents=file)
    passes = [f"pass{p}" for p in range(1, 1 + len(version.passes))]
    assert set(stored(file)) == {*passes, "temporal"}
    assert json.loads(read_metadata(file)["ltx"])["decode"] == "temporal"


@pytest.mark.parametrize("component", ["vae_decoder", "upsampler", "temporal_upsampler"])
def test_latents_survive_what_fails_after_them(component, spiece, diary, file, monkeypatch):
    engines, request = engines_of(DEMO, spiece), replace(REQUEST, temporal_upscale=True)
    whole = make(engines, request)

    def broken(feeds):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of luck"):
        patch.setitem(fake_stages.STAGES, component, broken)
        make(engines, request, save_latents=file)
    passes = {"upsampler": ["pass1"], "temporal_upsampler": ["pass1", "pass2"]}
    assert set(stored(file)) == {*passes.get(component, ["pass1", "pass2", "temporal"])}
    if component == "vae_decoder":
        same(again(engines, file), whole)


def test_latents_of_another_version_are_refused_with_its_name(spiece, diary, file):
    make(engines_of(DEMO, spiece), REQUEST, save_latents=file)
    with pytest.raises(LtxError, match=r"is of demo, not 0.9.5 - add --version demo"):
        again(engines_of(SINGLE, spiece), file)


def test_decoding_later_takes_and_keeps_noise_as_the_run_does(spiece, diary, file, tmp_path):
    engines, kept, later = engines_of(MAPPED, spiece), tmp_path / "noise.safetensors", tmp_path / "later.safetensors"
    made = make(engines, REQUEST, save_latents=file, save_noise=kept, rng="torch")
    assert not np.array_equal(again(engines, file).video, made.video)
    same(again(engines, file, noise=kept, save_noise=later), made)
    assert set(stored(later)) == {"decode", *(f"decoder/noise_{block}" for block in NOISE_MAPS["B"])}


def test_decoding_later_draws_with_the_generator_that_is_asked_for(spiece, diary, file):
    engines = engines_of(MAPPED, spiece)
    make(engines, REQUEST, save_latents=file)
    videos = {rng: again(engines, file, rng=rng).video for rng in RNGS}
    assert not np.array_equal(videos["numpy"], videos["torch"])
    assert not np.array_equal(videos["numpy"], videos["diffusers"])


def test_decoding_later_needs_nothing_but_the_decoder(spiece, diary, file):
    made = make(engines_of(DEMO, spiece), REQUEST, save_latents=file)
    later = again(engines_of(DEMO, spiece, ("vae_encoder", "upsampler", "temporal_upsampler")), file)
    same(later, made)


# --- embeddings -----------------------------------------------------------------------------------


@EVERY_VERSION
def test_saved_embeddings_make_the_same_video_without_the_text_encoder(version, spiece, diary, file):
    made = make(engines_of(version, spiece), REQUEST, save_embeddings=file)
    opened = len(diary.stages)
    request = replace(REQUEST, prompt="", negative_prompt="")
    later = make(engines_of(version, spiece, ("text_encoder",)), request, embeddings=file)
    same(later, made)
    assert "text_encoder" not in diary.opened()[opened:]
    assert "text" not in later.units
    names = {"prompt_embeds", "prompt_attention_mask"}
    if plan(REQUEST, version).uses_negative_prompt:
        names |= {f"negative_{name}" for name in names}
    assert set(stored(file)) == names


def test_embeddings_are_read_before_anything_is_opened(spiece, diary, file):
    engines = engines_of(DEMO, spiece)
    two = {"prompt_embeds": np.ones((2, 5, TEXT_CHANNELS), np.float32), "prompt_attention_mask": np.ones((2, 5))}
    two |= {f"negative_{name}": array for name, array in two.items()}
    for tensors, message in (
        (two, "has 2 prompts - give one, for one video"),
        ({"prompt_embeds": two["prompt_embeds"]}, "has no tensor prompt_attention_mask"),
        ({name: two[name][:1] for name in ("prompt_embeds", "prompt_attention_mask")}, "has no tensor negative_"),
    ):
        write_tensors(file, tensors)
        with pytest.raises(LtxError, match=message):
            make(engines, REQUEST, embeddings=file)
    assert diary == []
