"""Laws of the table of options: each is a field, each can be typed, and those not typed keep their defaults."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ltx_runtime.cli.arguments import Arguments, command_of

NAMES = [field.name for field in fields(Arguments) if field.name != "help_all"]  # it prints the help and exits
# Field -> (typed words, value); the names of options are those of the fields.
TYPED: dict[str, tuple[list[str], object]] = {
    "words": (["a dog"], "a dog"),
    "prompt": (["--prompt", "a cat"], "a cat"),
    "prompts": (["--prompts", "-"], Path("-")),
    "negative_prompt": (["--negative-prompt", ""], ""),
    "from_file": (["--from", "a.mp4"], Path("a.mp4")),
    "image": (["--image", "a.png"], Path("a.png")),
    "condition": (["--condition", "a.png@0", "--condition", "b:c.mp4@8:0.5"], ["a.png@0", "b:c.mp4@8:0.5"]),
    "video": (["--video", "a.mp4"], Path("a.mp4")),
    "lora": (["--lora", "a.safetensors:0.5", "--lora", "b"], ["a.safetensors:0.5", "b"]),
    "strength": (["--strength", "0.3"], 0.3),
    "fit": (["--fit", "pad"], "pad"),
    "image_cond_noise_scale": (["--image-cond-noise-scale", "0"], 0.0),
    "crf": (["--crf", "0"], 0),
    "sample_posterior": (["--sample-posterior"], True),
    "height": (["--height", "64"], 64),
    "width": (["--width", "96"], 96),
    "num_frames": (["--num-frames", "9"], 9),
    "duration": (["--duration", "4"], 4.0),
    "fps": (["--fps", "12.5"], 12.5),
    "pad": (["--pad"], True),
    "single_pass": (["--single-pass"], True),
    "temporal_upscale": (["--temporal-upscale"], True),
    "preset": (["--preset", "a.yaml"], Path("a.yaml")),
    "steps": (["--steps", "4"], 4),
    "timesteps": (["--timesteps", "1.0,0.5"], "1.0,0.5"),
    "skip_initial_steps": (["--skip-initial-steps", "2"], 2),
    "skip_final_steps": (["--skip-final-steps", "2"], 2),
    "stochastic_sampling": (["--no-stochastic-sampling"], False),
    "guidance_scale": (["--guidance-scale", "1"], 1.0),
    "stg_scale": (["--stg-scale", "0"], 0.0),
    "rescaling_scale": (["--rescaling-scale", "1"], 1.0),
    "stg_mode": (["--stg-mode", "transformer_block"], "transformer_block"),
    "skip_blocks": (["--skip-blocks", "1,2"], "1,2"),
    "cfg_star": (["--cfg-star"], True),
    "seed": (["--seed", str(2**64 - 1)], 2**64 - 1),
    "seeds": (["--seeds", "1,2"], "1,2"),
    "count": (["--count", "4"], 4),
    "rng": (["--rng", "torch"], "torch"),
    "noise_file": (["--noise-file", "n.safetensors"], Path("n.safetensors")),
    "save_noise": (["--save-noise", "n.safetensors"], Path("n.safetensors")),
    "initial_latents_file": (["--initial-latents-file", "i.safetensors"], Path("i.safetensors")),
    "decode_timestep": (["--decode-timestep", "0"], 0.0),
    "decode_noise_scale": (["--decode-noise-scale", "0"], 0.0),
    "tone_map_compression_ratio": (["--tone-map-compression-ratio", "0"], 0.0),
    "memory": (["--memory", "2.5"], 2.5),
    "vae_tiling": (["--vae-tiling"], True),
    "vae_slicing": (["--vae-slicing"], True),
    "embeddings_file": (["--embeddings-file", "e.safetensors"], Path("e.safetensors")),
    "cache": (["--no-cache"], False),
    "save_embeddings": (["--save-embeddings", "e.safetensors"], Path("e.safetensors")),
    "latents": (["--latents", "l.safetensors"], Path("l.safetensors")),
    "save_latents": (["--save-latents", "l.safetensors"], Path("l.safetensors")),
    "output": (["--output", "a.mp4"], Path("a.mp4")),
    "output_dir": (["--output-dir", "videos"], Path("videos")),
    "overwrite": (["--overwrite"], True),
    "metadata": (["--no-metadata"], False),
    "resume": (["--resume", "a.mp4.unfinished"], Path("a.mp4.unfinished")),
    "engines": (["--engines", "elsewhere"], Path("elsewhere")),
    "trust_engines": (["--trust-engines"], True),
    "version": (["--version", "demo"], "demo"),
    "backend": (["--backend", "fake"], "fake"),
    "cpu_mode": (["--cpu-mode", "q8"], "q8"),
    "gpu_memory": (["--gpu-memory", "6.5"], 6.5),
    "threads": (["--threads", "3"], 3),
    "low_memory": (["--low-memory"], True),
    "ray": (["--ray", "auto"], "auto"),
    "ray_cpus": (["--ray-cpus", "2"], 2),
    "send_engines": (["--send-engines"], True),
    "output_uri": (["--output-uri", "s3://bucket/folder"], "s3://bucket/folder"),
    "fetch": (["--fetch", "owner/name"], "owner/name"),
    "plan": (["--plan"], True),
    "doctor": (["--doctor"], True),
    "json": (["--json"], True),
    "about": (["--about"], True),
}
ALSO = {
    "--frame-rate": (["--frame-rate", "25"], {"fps": 25.0}),
    "--ltxv-version": (["--ltxv-version", "0.9.8"], {"version": "0.9.8"}),
    "--stochastic-sampling": (["--stochastic-sampling"], {"stochastic_sampling": True}),
    "--no-cfg-star": (["--no-cfg-star"], {"cfg_star": False}),
}


def typed(*words, environment=None):
    """Returns the arguments that a command line gives, and the result with exit code and output."""
    got, app = [], typer.Typer(add_completion=False)

    def run(arguments):
        """Hands them over."""
        got.append(arguments)

    app.command()(command_of(run, Arguments))
    ended = CliRunner().invoke(app, list(words), env={"LTX_ENGINES": None, "COLUMNS": "200"} | (environment or {}))
    return got, ended


def option_of(name):
    return "--from" if name == "from_file" else f"--{name.replace('_', '-')}"


def test_every_field_is_an_option_of_the_same_name_and_every_one_is_tested():
    assert list(TYPED) == NAMES
    for name, (words, _) in TYPED.items():
        if name == "words":
            continue  # typed without an option
        assert words[0].replace("--no-", "--") == option_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_typed_is_the_field_and_the_others_keep_their_defaults(name):
    words, value = TYPED[name]
    (arguments,), _ = typed(*words)
    assert arguments == Arguments(**{name: value})
    assert arguments != Arguments()


@pytest.mark.parametrize("words_and_changes", ALSO.values(), ids=ALSO)
def test_some_options_have_a_second_name(words_and_changes):
    words, changes = words_and_changes
    (arguments,), _ = typed(*words)
    assert arguments == Arguments(**changes)


def test_all_options_can_be_typed_together():
    (arguments,), _ = typed(*(word for words, _ in TYPED.values() for word in words))
    assert arguments == Arguments(**{name: value for name, (_, value) in TYPED.items()})


def test_nothing_typed_is_every_default():
    assert typed()[0] == [Arguments()]


def test_the_environment_names_the_engines_unless_they_are_typed():
    for words, folder in (((), "from-environment"), (("--engines", "typed"), "typed")):
        (arguments,), _ = typed(*words, environment={"LTX_ENGINES": "from-environment"})
        assert arguments == Arguments(engines=Path(folder))


def test_help_tells_every_option_and_what_the_command_does():
    shown = {}
    for how in ("--help", "--help-all"):
        got, ended = typed(how)
        assert (got, ended.exit_code) == ([], 0)
        assert "Hands them over." in ended.output
        shown[how] = {name for name in NAMES if re.search(rf"{option_of(name)}(?![\w-])", ended.output)}
    assert shown["--help-all"] == {*NAMES} - {"words"}
    assert {"prompt", "prompts", "seed", "output", "plan"} < shown["--help"]
    assert {"rng", "skip_blocks", "save_noise"} & shown["--help"] == set()
    assert len(shown["--help"]) <= 27


def test_help_keeps_what_stands_in_brackets():
    _, ended = typed("--help")
    assert "(default: named after the prompt)" in " ".join(ended.output.split())


def test_every_option_has_a_help_and_a_place_in_it():
    _, *parameters = inspect.signature(command_of(lambda arguments: None, Arguments)).parameters.values()
    for parameter in parameters:
        (option,) = parameter.annotation.__metadata__
        assert option.help.endswith(".")
        assert option.rich_help_panel


@pytest.mark.parametrize("words", [["--unheard-of"], ["--steps", "four"], ["--fps"], ["a", "cat"]], ids=str)
def test_what_is_no_option_or_no_number_ends_with_code_2_and_runs_nothing(words):
    got, ended = typed(*words)
    assert (got, ended.exit_code) == ([], 2)
