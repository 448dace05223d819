"""Reports of a plan: JSON whose numbers add up to what would run, and lines that say the same."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fakes.requests import default_request
from fakes.stages import ROPE
from samples.graph_folders import folder_with_graphs

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import ComponentEntry, Engines, FileEntry, Manifest
from ltx_runtime.media.facts import Facts
from ltx_runtime.planning import report
from ltx_runtime.planning.backends import Size, choose, needed
from ltx_runtime.planning.media import NO_MEDIA, Given, GivenMedia
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import Plan, plan
from ltx_runtime.planning.report import Memory, _transformer_bytes, describe, memory_of
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.sessions.found import Found
from ltx_runtime.spec.components import (
    COMPONENT_NAMES,
    temporal_upsampler,
    text_encoder,
    transformer,
    upsampler,
    vae_decoder,
    vae_encoder,
)
from ltx_runtime.spec.versions import VERSIONS

TOKENIZER = Path(__file__).parents[2] / "golden" / "t5" / "spiece.model"
EVERY_VERSION = pytest.mark.parametrize("name", VERSIONS)
GB = 10**9
# Component -> the files of its weights, whose sizes are in SIZES. Three components share the checkpoint.
WEIGHTS = {
    "text_encoder": ("text_encoder.data",),
    "vae_encoder": ("checkpoint.safetensors",),
    "transformer": ("checkpoint.safetensors", "extra.data"),
    "upsampler": ("upscaler.safetensors",),
    "temporal_upsampler": ("temporal.safetensors",),
    "vae_decoder": ("checkpoint.safetensors",),
}
SIZES = {"text_encoder.data": 9, "checkpoint.safetensors": 6, "extra.data": 1, "upscaler.safetensors": 3}
SIZES["temporal.safetensors"] = 2
PLENTY = 10**13
LARGE = {"height": 704, "width": 1216, "num_frames": 121}
EVERYTHING = {
    "conditions": (Condition(Path("first.png"), 0), Condition(Path("clip.mp4"), 8, 0.5)),
    "temporal_upscale": True,
}

# What is known of EVERYTHING's image and clip.
IMAGE = Given(EVERYTHING["conditions"][0], Facts(704, 1216, 1, 1, transparent=True), 1, 3 * GB, 1 * GB, ())
CLIP = Given(
    EVERYTHING["conditions"][1],
    Facts(704, 1216, 99, 97, fps=60.0, sound=True, transfer="PQ"),
    25,
    5 * GB,
    2 * GB,
    ("its sound is dropped",),
)
MEDIA = GivenMedia((IMAGE, CLIP))


def manifest_of(name: str) -> Manifest:
    version = VERSIONS[name]
    dit = transformer(4, 6, version.transformer.width)
    signatures = (text_encoder(6), vae_encoder(4), dit, upsampler(4), temporal_upsampler(4))
    signatures += (vae_decoder(4, timestep=True),)
    components = {s.name: ComponentEntry(s, WEIGHTS[s.name], {"fp32": f"{s.name}.fp32.onnx"}) for s in signatures}
    files = {file: FileEntry(size * GB, "") for file, size in SIZES.items()}
    return Manifest(name, version.causal_positions, version.schedule, ROPE, "spiece.model", components, files)


folder_of = cache(lambda name: folder_with_graphs(manifest_of(name), TOKENIZER))


def asked(name: str, **changes) -> tuple[Plan, Request]:
    version = VERSIONS[name]
    request = replace(default_request(version, "a cat", 7), **changes)
    return plan(request, version), request


def described(
    name: str, options: RunOptions | None = None, manifest: Manifest | None = None, media=NO_MEDIA, **changes
) -> dict:
    planned, manifest, options = asked(name, **changes)[0], manifest or manifest_of(name), options or RunOptions()
    engines = Engines(folder_of(name), manifest)
    chosen = choose(engines, needed(planned, options), replace(options, backend="cpu"), Size(1, 1, 1, False))
    return describe(planned, chosen, engines, media)


def lines_of(name: str, options: RunOptions | None = None, **changes) -> list[str]:
    return list(report.lines_of(described(name, options, **changes)))


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize(
    "changes", [{}, EVERYTHING, {"single_pass": True, "video": Path("clip.mp4")}], ids=["", "all", "v"]
)
def test_the_json_is_what_the_plan_is_described_as(changes):
    for name in VERSIONS:
        text = json.dumps(described(name, **changes))
        assert json.loads(text, parse_constant=no_constant) == described(name, **changes), name


def test_forwards_add_up_from_steps_to_passes():
    for name in VERSIONS:
        for one, of_plan in zip(described(name)["passes"], asked(name)[0].passes, strict=True):
            assert len(one["steps"]) == len(of_plan.sigmas), name
            for step in one["steps"]:
                assert step["forwards"] == 1 + (step["guidance_scale"] > 1) + (step["stg_scale"] > 0), name
            assert one["forwards"] == sum(step["forwards"] for step in one["steps"]), name


@pytest.mark.parametrize(
    ("name", "forwards"),
    [("0.9.5", [120]), ("0.9.6-distilled", [8]), ("0.9.7-dev", [62, 26]), ("0.9.8-13b-dev", [62, 26])]
    + [(name, [7, 3]) for name in ("0.9.7-distilled", "0.9.8-2b-distilled", "0.9.8-13b-distilled")],
)
def test_the_presets_cost_the_known_number_of_forwards(name, forwards):
    assert [one["forwards"] for one in described(name)["passes"]] == forwards


@EVERY_VERSION
@pytest.mark.parametrize("changes", [{}, {"stg_scale": 0.0}], ids=["own", "without_stg"])
def test_every_step_is_told_with_its_noise_level_and_only_the_guidance_that_acts(name, changes):
    for one, of_plan in zip(described(name, **changes)["passes"], asked(name, **changes)[0].passes, strict=True):
        np.testing.assert_allclose([step["sigma"] for step in one["steps"]], of_plan.sigmas, atol=6e-7)
        for step, guidance in zip(one["steps"], of_plan.guidance, strict=True):
            assert (step["guidance_scale"], step["stg_scale"]) == (guidance.cfg_scale, guidance.stg_scale)
            by_stg = (step["rescaling_scale"], step["skip_blocks"])
            assert by_stg == ((guidance.rescale, [*guidance.skip_blocks]) if guidance.stg_scale else (1, []))
            assert step["cfg_star"] is (guidance.cfg_star and guidance.cfg_scale > 1)


@pytest.mark.parametrize("name", ["0.9.5", "0.9.8-13b-distilled"])
def test_the_output_is_what_was_asked_for_and_the_passes_what_is_made(name):
    said = described(name, height=147, width=102, num_frames=20, pad=True, fps=25.0)
    assert said["output"] == {"width": 102, "height": 147, "frames": 20, "fps": 25}
    assert (said["version"], said["seed"]) == (name, 7)
    sizes = [(one["width"], one["height"], one["frames"], one["tokens"]) for one in said["passes"]]
    if name == "0.9.5":
        assert sizes == [(128, 160, 25, 4 * 5 * 4)]
    else:  # two thirds of 128 and 160, rounded down, and twice that
        assert sizes == [(64, 96, 25, 4 * 3 * 2), (128, 192, 25, 4 * 6 * 4)]


def test_a_temporal_upscale_doubles_frames_and_speed_of_the_output():
    said = described("0.9.5", num_frames=25, fps=24.0, temporal_upscale=True)
    assert (said["output"]["frames"], said["output"]["fps"]) == (49, 48)
    assert said["passes"][0]["frames"] == 25


@EVERY_VERSION
def test_the_components_are_those_that_run_in_the_order_of_the_road(name):
    two = len(VERSIONS[name].passes) == 2
    assert [*described(name)["components"]] == [
        one
        for one in COMPONENT_NAMES
        if one in ("text_encoder", "transformer", "vae_decoder") or (one == "upsampler" and two)
    ]
    assert [*described(name, **EVERYTHING)["components"]] == [n for n in COMPONENT_NAMES if n != "upsampler" or two]
    assert "upsampler" not in described(name, single_pass=True)["components"]
    assert "vae_encoder" in described(name, single_pass=True, video=Path("clip.mp4"))["components"]
    assert "text_encoder" not in described(name, RunOptions(embeddings=Path("text.safetensors")))["components"]


def test_a_component_weighs_as_much_as_the_files_it_points_into():
    assert described("0.9.8-13b-dev", **EVERYTHING)["components"] == {
        name: {"backend": "cpu", "precision": "fp32", "weights_bytes": size}
        for name, size in {
            "text_encoder": 9 * GB,
            "vae_encoder": 6 * GB,
            "transformer": 7 * GB,
            "upsampler": 3 * GB,
            "temporal_upsampler": 2 * GB,
            "vae_decoder": 6 * GB,
        }.items()
    }


@pytest.mark.parametrize("lacking", ["text_encoder", "vae_encoder", "upsampler", "temporal_upsampler"])
def test_a_plan_that_needs_what_the_folder_lacks_is_refused(lacking):
    manifest = manifest_of("0.9.8-13b-dev")
    del manifest.components[lacking]
    with pytest.raises(LtxError, match=rf"no {lacking}\b"):
        described("0.9.8-13b-dev", manifest=manifest, **EVERYTHING)


def test_what_is_given_is_told_with_its_place_and_strength_and_the_tokens_it_adds():
    said = described("0.9.5", media=MEDIA, **LARGE, **EVERYTHING)
    assert [{name: one[name] for name in ("file", "frame", "frames", "strength")} for one in said["given"]] == [
        {"file": "first.png", "frame": 0, "frames": 1, "strength": 1},
        {"file": "clip.mp4", "frame": 8, "frames": 25, "strength": 0.5},
    ]
    assert [(one["tokens"], one["extra_tokens"]) for one in said["passes"]] == [(13376, 2 * 22 * 38)]
    assert said["video"] is None
    assert described("0.9.5", media=replace(MEDIA, video=CLIP))["video"]["file"] == "clip.mp4"


def test_the_json_says_of_each_image_and_clip_what_it_has_and_what_differs():
    said = described("0.9.5", media=MEDIA, fps=24.0, **EVERYTHING)
    image, clip = said["given"]
    assert (image["fps"], image["speed"], image["transparent"], image["remarks"]) == (None, 1, True, [])
    assert (clip["stored_frames"], clip["fps"], clip["speed"], clip["sound"], clip["hdr"]) == (99, 60, 0.4, True, "PQ")
    assert clip["remarks"] == ["its sound is dropped"]
    assert said["media_bytes"] == 3 * GB + 5 * GB + 2 * GB  # both are kept, and are read one after another


@EVERY_VERSION
def test_activations_hold_every_row_of_the_scores_and_low_memory_holds_one_at_a_time(name):
    usual, low = described(name)["passes"], described(name, RunOptions(low_memory=True))["passes"]
    for one, alone in zip(usual, low, strict=True):
        rows = max(step["forwards"] for step in one["steps"])
        assert one["activation_bytes"] == rows * alone["activation_bytes"]
        scores = 4 * VERSIONS[name].transformer.heads * one["tokens"] ** 2
        states = 4 * VERSIONS[name].transformer.width * one["tokens"]
        assert scores + 5 * states < alone["activation_bytes"] < scores + 20 * states


def test_attention_without_stored_scores_takes_memory_of_states_alone_and_half_of_it_in_half_precision():
    size, found = VERSIONS["0.9.5"].transformer, Found("openvino_q8", transformer(4, 6, 12), Path(), Path(), "q8")
    whole = _transformer_bytes(1000, size, found)
    assert 5 < whole / (4 * size.width * 1000) < 20
    assert whole == 2 * _transformer_bytes(1000, size, replace(found, backend="openvino", precision="bf16"))
    assert whole == _transformer_bytes(1000, size, replace(found, backend="cuda", gpu_bytes=1, precision="fp32"))
    assert whole < _transformer_bytes(1000, size, replace(found, backend="cpu", precision="fp32"))


@EVERY_VERSION
def test_memory_for_decoding_is_never_more_than_allowed_and_tiles_are_cut_for_less(name):
    whole = described(name, RunOptions(memory_bytes=PLENTY), **LARGE)["decode"]
    assert whole["tiles"] is None
    last = asked(name, **LARGE)[0].passes[-1].grid
    most = (last.frames, last.rows, last.columns)
    for part in (0.1, 0.3, 0.6):
        budget = int(whole["activation_bytes"] * part)
        tiled = described(name, RunOptions(memory_bytes=budget), **LARGE)["decode"]
        assert tiled["activation_bytes"] <= budget, part
        assert all(1 <= size <= limit for size, limit in zip(tiled["tiles"], most, strict=True)), part
        assert np.prod(tiled["tiles"]) < np.prod(most), part


def test_a_temporal_upscale_takes_about_twice_the_memory_to_decode():
    for name in VERSIONS:
        usual, doubled = (
            described(name, RunOptions(memory_bytes=PLENTY), temporal_upscale=twice, **LARGE)["decode"]
            for twice in (False, True)
        )
        once, twice = usual["activation_bytes"], doubled["activation_bytes"]
        assert 1.7 * once < twice <= 2 * once, name


@pytest.mark.parametrize(
    "size", [{}, LARGE, {"height": 128, "width": 128, "num_frames": 9}], ids=["own", "large", "small"]
)
def test_tiles_that_are_asked_for_where_all_would_fit_are_no_larger_than_what_is_decoded(size):
    for name in VERSIONS:
        last = asked(name, **size)[0].passes[-1].grid
        whole = [last.frames, last.rows, last.columns]
        tiles = described(name, RunOptions(memory_bytes=PLENTY, tiled=True), **size)["decode"]["tiles"]
        if size == LARGE:
            assert tiles is not None, name
        if tiles is not None:
            assert all(tile <= most for tile, most in zip(tiles, whole, strict=True)), name
            assert tiles != whole, name


@pytest.mark.parametrize("tone_map", [None, 0.0, 0.3])
def test_the_tone_map_is_told(tone_map):
    for name in VERSIONS:
        own = 0.6 if name == "0.9.8-13b-distilled" else 0
        told = described(name, tone_map=tone_map)["decode"]["tone_map"]
        assert told == (own if tone_map is None else tone_map), name


@EVERY_VERSION
def test_the_lines_begin_with_what_comes_out_and_have_one_for_each_pass_and_component(name):
    version = VERSIONS[name]
    lines = lines_of(name)
    size, length = f"{version.width}x{version.height}", f"{version.num_frames} frames at {version.fps:g} fps"
    assert lines[0] == f"{name}: {size}, {length}, seed 7"
    said = described(name)
    for number, one in enumerate(said["passes"], start=1):
        (line,) = [line for line in lines if line.startswith(f"pass {number}: ")]
        for number_and_word in (
            f"{one['width']}x{one['height']}",
            f"{one['tokens']} tokens",
            f"{one['forwards']} predictions",
            f"about {one['activation_bytes'] / (1e9 if name != 'demo' else 1e6):.2f} ",
        ):
            assert number_and_word in line
        assert re.search(rf" {len(one['steps'])} (stochastic )?steps,", line)
        assert ("stochastic" in line) is one["stochastic"]
    for component, one in said["components"].items():
        assert f"{component}: cpu in fp32, {one['weights_bytes'] // GB}.00 GB of weights on disk" in lines
    assert sum(line.startswith("decode: ") for line in lines) == 1


def test_steps_in_a_row_with_the_same_guidance_share_a_line():
    steps = [line for line in lines_of("0.9.8-13b-dev") if line.startswith("  ")]
    assert steps == [
        "  sigma 1 to 0.996667 (3 steps): no guidance; 1 prediction",
        "  sigma 0.995 to 0.993333 (2 steps): CFG 6 (star), STG 4 skipping 22, 35, 39, rescale 0.5; 3 predictions",
        "  sigma 0.991667 to 0.985 (5 steps): CFG 8 (star), STG 4 skipping 28, rescale 0.5; 3 predictions",
        "  sigma 0.983333 to 0.978333 (4 steps): CFG 6 (star), STG 4 skipping 28; 3 predictions",
        "  sigma 0.976667 to 0.932 (5 steps): STG 2 skipping 28; 2 predictions",
        "  sigma 0.900778 to 0.445778 (8 steps): STG 1 skipping 28; 2 predictions",
        "  sigma 0.954778 to 0.124111 (13 steps): STG 1 skipping 27; 2 predictions",
    ]


@EVERY_VERSION
def test_the_lines_of_a_pass_cover_all_its_steps_once_and_in_order(name):
    counted = []
    for line in lines_of(name):
        if line.startswith("pass "):
            counted.append(0)
        if found := re.match(r"  sigma [\d.e-]+( to [\d.e-]+ \((\d+) steps\))?: ", line):
            counted[-1] += int(found[2] or 1)
    assert counted == [len(one.sigmas) for one in asked(name)[0].passes]


def test_a_single_step_is_told_with_its_one_level():
    assert "  sigma 1: CFG 3, STG 1 skipping 19, rescale 0.7; 3 predictions" in lines_of("0.9.5", steps=1)


def test_images_clips_and_a_video_to_start_from_have_their_lines():
    lines = lines_of("0.9.5", media=replace(MEDIA, video=replace(CLIP, remarks=("a", "b"))), **EVERYTHING)
    assert lines[3:10] == [
        "condition: first.png from frame 0, strength 1",
        "condition: clip.mp4 from frame 8, strength 0.5",
        "  its sound is dropped",
        "video-to-video from: clip.mp4",
        "  a",
        "  b",
        "images and clips: about 15.00 GB while they are read",
    ]


def test_each_prompt_that_is_encoded_is_told_with_what_the_text_encoder_does_not_see():
    long = "the " * 300
    said = described("0.9.5", prompt="a fox, 雪", negative_prompt=long)["prompts"]
    assert [(one["name"], one["prompt"], one["unknown"]) for one in said] == [
        ("prompt", "a fox, 雪", ["雪"]),
        ("negative prompt", long, []),
    ]
    lines = lines_of("0.9.5", prompt="a fox, 雪", negative_prompt=long)
    assert lines[1] == f"prompt: {said[0]['tokens']} of at most 256 tokens"
    assert lines[2].startswith("  1 of 7 pieces of the prompt are unknown to the text encoder: '雪'; ")
    assert lines[3:5] == [
        "negative prompt: 301 of at most 256 tokens",
        f"  the negative prompt {long[:30]!r}... has 301 tokens; the model sees the first 256",
    ]
    assert described("0.9.5", RunOptions(embeddings=Path("text.safetensors")))["prompts"] == []
    assert [one["name"] for one in described("0.9.8-2b-distilled")["prompts"]] == ["prompt"]  # it has no CFG


@pytest.mark.parametrize("tiled", [False, True])
def test_the_line_about_decoding_says_whether_in_tiles(tiled):
    options = RunOptions(memory_bytes=5 * GB if tiled else PLENTY)
    for name in VERSIONS:
        said = described(name, options, **LARGE)["decode"]
        how = "in tiles of {} latent frames, {} rows, {} columns".format(*said["tiles"]) if tiled else "without tiles"
        memory = f"about {said['activation_bytes'] / 1e9:.2f} GB of activations"
        assert f"decode: {how}, {memory}" in lines_of(name, options, **LARGE), name


@pytest.mark.parametrize("changes", [{}, LARGE, EVERYTHING], ids=["", "large", "media"])
def test_the_memory_that_a_plan_needs_is_the_most_that_its_lines_tell(changes):
    media = MEDIA if changes is EVERYTHING else NO_MEDIA
    for name in VERSIONS:
        said = described(name, media=media, **changes)
        told = [one["activation_bytes"] for one in (*said["passes"], said["decode"])]
        assert said["memory"]["needed_bytes"] == max(*told, said["media_bytes"]), name


def test_what_runs_on_a_gpu_needs_no_memory_of_the_machine():
    planned, version = asked("0.9.5", **LARGE)[0], VERSIONS["0.9.5"]
    engines, options = Engines(folder_of("0.9.5"), manifest_of("0.9.5")), RunOptions(backend="cpu")
    chosen = choose(engines, needed(planned, options), options, Size(1, 1, 1, False))
    on_gpu = {name: replace(found, gpu_bytes=80 * GB) for name, found in chosen.found.items()}
    assert memory_of(planned, version, chosen).needed_bytes > 0
    assert memory_of(planned, version, replace(chosen, found=on_gpu)).needed_bytes == 0


def test_only_too_little_memory_is_told():
    assert not list(Memory(8 * GB, 8 * GB).lines())
    (line,) = Memory(491 * GB, 25 * GB).lines()
    assert line.startswith("about 491.00 GB of memory are needed, but this machine has only 25.00 GB - ")
