"""Laws from typed arguments to requests: every option has an effect, and all else is the version's default."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from fakes.stages import ROPE

from ltx_runtime.cli.arguments import Arguments
from ltx_runtime.cli.request_from_arguments import pipeline_options_of, request_of, run_options_of
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines, Manifest
from ltx_runtime.noise.noise import RNGS
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.preset import read_preset
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.weights.lora import LoraFile

DEMO = VERSIONS["demo"]
FILE = Path("some.safetensors")

# Argument -> (typed value, the field of Request that it changes, the field's value).
OF_REQUEST: dict[str, tuple[object, str, object]] = {
    "prompt": ("a cat", "prompt", "a cat"),
    "negative_prompt": ("", "negative_prompt", ""),
    "image": (Path("a.png"), "conditions", (Condition(Path("a.png"), 0, 1.0),)),
    "condition": (["b@c.png@8:0.5"], "conditions", (Condition(Path("b@c.png"), 8, 0.5),)),
    "lora": (["b:c.safetensors:-0.5"], "loras", (LoraFile(Path("b:c.safetensors"), -0.5),)),
    "video": (Path("a.mp4"), "video", Path("a.mp4")),
    "strength": (0.0, "strength", 0.0),
    "fit": ("pad", "fit", "pad"),
    "image_cond_noise_scale": (0.0, "image_noise_scale", 0.0),
    "height": (64, "height", 64),
    "width": (96, "width", 96),
    "num_frames": (9, "num_frames", 9),
    "fps": (12.5, "fps", 12.5),
    "duration": (2.5, "duration", 2.5),
    "seed": (0, "seed", 0),
    "pad": (True, "pad", True),
    "single_pass": (True, "single_pass", True),
    "temporal_upscale": (True, "temporal_upscale", True),
    "steps": (0, "steps", 0),
    "timesteps": ("1, 0.975,.5", "timesteps", (1.0, 0.975, 0.5)),
    "skip_initial_steps": (0, "skip_initial_steps", 0),
    "skip_final_steps": (0, "skip_final_steps", 0),
    "stochastic_sampling": (False, "stochastic", False),
    "guidance_scale": (1.0, "guidance_scale", 1.0),
    "stg_scale": (0.0, "stg_scale", 0.0),
    "rescaling_scale": (1.0, "rescaling_scale", 1.0),
    "stg_mode": ("attention_skip", "stg_mode", "attention_skip"),
    "skip_blocks": ("11, 25", "skip_blocks", (11, 25)),
    "cfg_star": (False, "cfg_star", False),
    "decode_timestep": (0.0, "decode_timestep", 0.0),
    "decode_noise_scale": (0.0, "decode_noise_scale", 0.0),
    "tone_map_compression_ratio": (0.0, "tone_map", 0.0),
}
# The same for RunOptions.
OF_OPTIONS: dict[str, tuple[object, str, object]] = {
    "crf": (0, "crf", 0),
    "sample_posterior": (True, "sample_posterior", True),
    "rng": ("torch", "rng", "torch"),
    "noise_file": (FILE, "noise", FILE),
    "save_noise": (FILE, "save_noise", FILE),
    "initial_latents_file": (FILE, "initial_latents", FILE),
    "memory": (2.5, "memory_bytes", 2_500_000_000),
    "vae_tiling": (True, "tiled", True),
    "embeddings_file": (FILE, "embeddings", FILE),
    "cache": (False, "cache", False),
    "save_embeddings": (FILE, "save_embeddings", FILE),
    "save_latents": (FILE, "save_latents", FILE),
    "overwrite": (True, "overwrite", True),
    "metadata": (False, "metadata", False),
    "backend": ("fake", "backend", "fake"),
    "cpu_mode": ("exact", "cpu_mode", "exact"),
    "gpu_memory": (6.5, "gpu_memory_bytes", 6_500_000_000),
    "threads": (3, "threads", 3),
    "low_memory": (True, "low_memory", True),
}
# Arguments for the command itself (test_main.py), and one that has no effect.
OF_THE_COMMAND = {
    "words",
    "about",
    "help_all",
    "from_file",
    "resume",
    "prompts",
    "count",
    "seeds",
    "ray",
    "ray_cpus",
    "send_engines",
    "output_uri",
    "latents",
    "output",
    "output_dir",
    "engines",
    "version",
    "plan",
    "doctor",
    "fetch",
    "json",
}
OF_THE_COMMAND |= {"vae_slicing", "trust_engines"}


PRESET = "num_inference_steps: 4\nguidance_scale: 3\nstg_scale: 0\nrescaling_scale: 1\n"


def names_of(kind):
    return {field.name for field in fields(kind)}


def asked(**typed):
    return request_of(Arguments(**typed))


def options_of(typed):
    """Returns the options of a video requested with these arguments."""
    engines = Engines(Path(), Manifest("demo", True, DEMO.schedule, ROPE, "", {}))
    with Pipeline(engines, **pipeline_options_of(typed)) as pipe:
        return pipe._changed(Request(), run_options_of(typed))[1]


def changed(before, after):
    return {
        name: getattr(after, name) for name in names_of(type(before)) if getattr(before, name) != getattr(after, name)
    }


def test_no_argument_is_forgotten():
    assert OF_REQUEST.keys() | OF_OPTIONS.keys() | OF_THE_COMMAND | {"preset"} == names_of(Arguments)


def test_a_preset_is_read_from_its_file(tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text(PRESET)
    assert asked(preset=path) == replace(asked(), preset=read_preset(path))
    assert asked(preset=path).preset.passes[0].steps == 4


def test_nothing_that_can_be_asked_for_lacks_an_argument():
    assert {name for _, name, _ in OF_REQUEST.values()} | {"preset"} == names_of(Request)
    assert {name for _, name, _ in OF_OPTIONS.values()} == names_of(RunOptions)


@pytest.mark.parametrize("name", OF_REQUEST)
def test_an_argument_changes_its_field_of_the_request_alone(name):
    value, field, expected = OF_REQUEST[name]
    assert changed(asked(), asked(**{name: value})) == {field: expected}
    assert options_of(Arguments(**{name: value})) == RunOptions()


@pytest.mark.parametrize("name", OF_OPTIONS)
def test_an_argument_changes_its_field_of_the_options_alone(name):
    value, field, expected = OF_OPTIONS[name]
    assert changed(RunOptions(), options_of(Arguments(**{name: value}))) == {field: expected}
    assert asked(**{name: value}) == asked()


@pytest.mark.parametrize("name", sorted(OF_THE_COMMAND))
def test_what_is_the_command_s_changes_neither(name):
    typed = Arguments(**{name: "anything"})
    assert request_of(typed) == asked()
    assert options_of(typed) == RunOptions()


def test_what_is_left_out_is_asked_for_as_none():
    assert asked(prompt="a cat") == Request("a cat")
    assert options_of(Arguments()) == RunOptions()


def test_conditions_keep_their_order_behind_the_image():
    typed = {"image": Path("z.png"), "condition": ["b.png@8", "a.mp4@0:0", "b.png@8"]}
    assert [(one.media.name, one.frame, one.strength) for one in asked(**typed).conditions] == [
        ("z.png", 0, 1.0),
        ("b.png", 8, 1.0),
        ("a.mp4", 0, 0.0),
        ("b.png", 8, 1.0),
    ]


@pytest.mark.parametrize("text", ["1 0.5", "1,0.5", "1, 0.5", " 1,0.5, "])
def test_numbers_of_a_list_are_parted_by_commas_or_spaces(text):
    assert asked(timesteps=text).timesteps == (1.0, 0.5)


@pytest.mark.parametrize(("field", "kind"), [("timesteps", "numbers"), ("skip_blocks", "whole numbers")])
@pytest.mark.parametrize("text", ["1,x", "1;2", "one", "1,,0x2"])
def test_a_list_that_holds_something_else_is_refused(field, kind, text):
    with pytest.raises(LtxError, match=f"{field.replace('_', '-')} must be comma-separated {kind}; got '{text}'"):
        asked(**{field: text})


@pytest.mark.parametrize("text", ["", " ", ",", ", ,"])
def test_a_list_without_numbers_is_no_list_of_timesteps(text):
    with pytest.raises(LtxError, match="timesteps must be comma-separated numbers"):
        asked(timesteps=text)


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_memory_is_a_positive_number_of_bytes(memory):
    with pytest.raises(LtxError, match="memory must be a positive number of GB; got"):
        options_of(Arguments(memory=memory))


def test_an_unknown_generator_is_refused_with_those_that_are_known():
    with pytest.raises(LtxError, match=f"unknown rng 'cuda' - use one of {', '.join(RNGS)}"):
        options_of(Arguments(rng="cuda"))
    for rng in RNGS:
        assert options_of(Arguments(rng=rng)).rng == rng


@pytest.mark.parametrize("crf", [-1, 52])
def test_a_compression_that_h264_does_not_have_is_refused(crf):
    with pytest.raises(LtxError, match=f"crf must be from 0 to 51; got {crf} - use 29, or 0 for no compression"):
        options_of(Arguments(crf=crf))
