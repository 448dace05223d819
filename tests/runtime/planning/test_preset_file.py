"""Reading official inference files: each gives its release's built-in preset; unclear entries are refused by name."""

import time
from dataclasses import fields

import pytest
from samples.preset_files import BASE, DEV_13B, DISTILLED_2B, OFFICIAL, changed

from ltx_runtime import Guidance, LtxError, Pass, Preset, read_preset
from ltx_runtime.spec.presets import LINEAR_QUADRATIC, Schedule
from ltx_runtime.spec.versions import VERSIONS


@pytest.fixture
def read(tmp_path):
    """Reads a text or bytes as a preset file called my.yaml."""

    def read_text(text: str | bytes) -> Preset:
        path = tmp_path / "my.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_preset(path)

    return read_text


@pytest.fixture
def refusal(read, tmp_path):
    """Returns the message with which reading a text is refused, without the folder of the file."""

    def refuse(text: str | bytes) -> str:
        with pytest.raises(LtxError) as caught:
            read(text)
        message = str(caught.value).replace(f"{tmp_path}/", "").replace(f"{tmp_path}\\", "")
        assert caught.value.advice
        assert "\n" not in message
        return message

    return refuse


def test_every_release_has_an_official_file_here():
    assert OFFICIAL.keys() == VERSIONS.keys() - {"demo"}


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_file_is_the_built_in_preset_of_its_release(name, read):
    preset, version = read(OFFICIAL[name]), VERSIONS[name]
    assert preset == Preset(
        passes=version.passes,
        first_pass_scale=version.first_pass_scale if len(version.passes) == 2 else None,
        stg_mode="attention_values",
        decode_timestep=version.decode_timestep,
        decode_noise_scale=version.decode_noise_scale,
    )


def test_fields_of_the_file_hold_for_both_passes_unless_a_pass_names_its_own(read):
    shared = changed(DEV_13B, "stochastic_sampling: false", "stochastic_sampling: true\ntone_map_compression_ratio: 1")
    shared = changed(
        shared, "  cfg_star_rescale: true\n\n", "  cfg_star_rescale: true\n  stochastic_sampling: false\n\n"
    )
    first, second = read(shared).passes
    assert (first.stochastic, second.stochastic, first.tone_map, second.tone_map) == (False, True, 1.0, 1.0)


def test_one_number_holds_for_every_entry_and_one_list_of_blocks_too(read):
    text = changed(DEV_13B, "rescaling_scale: [1, 1, 0.5, 0.5, 1, 1, 1]", "rescaling_scale: 0.5")
    text = changed(text, "[[], [11, 25, 35, 39], [22, 35, 39], [28], [28], [28], [28]]", "[28, 30]")
    guidance = read(text).passes[0].guidance
    assert len(guidance) == 7
    assert {(one.rescale, one.skip_blocks) for one in guidance} == {(0.5, (28, 30))}


def test_fields_that_may_be_left_out_are(read):
    text = "guidance_scale: 3\nstg_scale: 0\nrescaling_scale: 1\nnum_inference_steps: 5\nskip_block_list:\n"
    assert read(text) == Preset((Pass(steps=5, guidance=(Guidance(3.0),)),))
    assert all(type(value) is float for value in (read(text).passes[0].guidance[0].cfg_scale,))
    empty = read(f"{text}stochastic_sampling:\ndecode_timestep: null\nsampler: ~")
    assert all(getattr(empty, one.name) is None for one in fields(Preset) if one.name != "passes")


def test_the_samplers_and_modes_of_the_official_code_are_known_in_any_case(read):
    for name, schedule in (
        *(("from_checkpoint", None), ("uniform", Schedule("Uniform")), ("Uniform", Schedule("Uniform"))),
        ("linear-quadratic", LINEAR_QUADRATIC),
    ):
        assert read(changed(BASE, "from_checkpoint", name)).schedule == schedule
    for name, mode in (("stg_t", "transformer_block"), ("Attention_Skip", "attention_skip")):
        assert read(changed(BASE, "attention_values", name)).stg_mode == mode


def test_unknown_fields_are_refused_by_name(refusal):
    assert refusal(f"{BASE}\nguidance_scales: 3").startswith("unknown field 'guidance_scales' in my.yaml - use one of ")
    for name in ("decode_timestep", "pipeline_type", "first_pass", "precision", "nonsense"):
        message = refusal(f"{DISTILLED_2B}  {name}: 1\n")
        assert message.startswith(
            f"unknown field '{name}' in second_pass of my.yaml - use one of num_inference_steps, "
        )
    assert refusal(f"{BASE}\n7: 1").startswith("unknown field 7 in my.yaml")


def test_values_that_cannot_be_used_are_refused_by_name(refusal):
    for field, value, message in (
        ("guidance_scale", "high", "guidance_scale of my.yaml must be a number; got 'high'"),
        ("guidance_scale", "true", "guidance_scale of my.yaml must be a number; got True"),
        ("guidance_scale", "1e1", "guidance_scale of my.yaml must be a number; got '1e1'"),
        ("guidance_scale", ".nan", "guidance_scale of my.yaml must be a number; got nan"),
        ("guidance_scale", "-.inf", "guidance_scale of my.yaml must be a number; got -inf"),
        ("guidance_scale", "{a: 1}", "guidance_scale of my.yaml must be a number; got a mapping"),
        ("guidance_scale", "9" * 400, "guidance_scale of my.yaml must be a number; got a huge number"),
        ("guidance_scale", "0x" + "9" * 9000, "guidance_scale of my.yaml must be a number; got a huge number"),
        ("guidance_scale", "0.5", "guidance_scale of my.yaml must be at least 1; got 0.5"),
        ("guidance_scale", "101", "guidance_scale of my.yaml must be at least 1 and at most 100; got 101"),
        ("guidance_scale", "[3, 3]", "guidance_scale of my.yaml is a list and needs guidance_timesteps"),
        ("guidance_scale", "", "my.yaml has no guidance_scale"),
        ("stg_scale", "-1", "stg_scale of my.yaml must be at least 0; got -1"),
        ("rescaling_scale", "2", "rescaling_scale of my.yaml must be at least 0 and at most 1; got 2"),
        (
            "skip_block_list",
            "19",
            "skip_block_list of my.yaml must be a list of blocks, or a list of such lists; got 19",
        ),
        ("skip_block_list", "[[19]]", "skip_block_list of my.yaml is a list and needs guidance_timesteps"),
        ("skip_block_list", "[1.5]", "skip_block_list of my.yaml must be a whole number of at least 0; got 1.5"),
        ("skip_block_list", "[1, [2]]", "skip_block_list of my.yaml must be a whole number of at least 0; got a list"),
        ("skip_block_list", "[-1]", "skip_block_list of my.yaml must be a whole number of at least 0; got -1"),
        ("num_inference_steps", "4.5", "num_inference_steps of my.yaml must be a whole number of at least 0; got 4.5"),
        ("num_inference_steps", "-4", "num_inference_steps of my.yaml must be a whole number of at least 0; got -4"),
        ("num_inference_steps", "2001-01-01", "num_inference_steps of my.yaml must be a whole number .*date"),
        ("num_inference_steps", "", "my.yaml has no num_inference_steps"),
        ("stochastic_sampling", "0", "stochastic_sampling of my.yaml must be true or false; got 0"),
        ("decode_timestep", "[0.05]", "decode_timestep of my.yaml must be a number; got a list of 1"),
        ("decode_noise_scale", "3", "decode_noise_scale of my.yaml must be at least 0 and at most 1; got 3"),
        ("stg_mode", "residual", "stg-mode residual does nothing"),
        ("stg_mode", "sideways", "unknown stg-mode 'sideways'"),
        ("stg_mode", "3", "stg_mode of my.yaml must be a name; got 3"),
        ("sampler", "euler", "unknown sampler of my.yaml: 'euler' - use one of from_checkpoint, uniform, linear-quad"),
        ("pipeline_type", "triple", "unknown pipeline_type of my.yaml: 'triple' - use one of multi-scale, base"),
        ("pipeline_type", "multi-scale", "my.yaml has no first_pass - add first_pass, or use pipeline_type base"),
    ):
        line = next(line for line in BASE.splitlines() if line.startswith(f"{field}:"))
        said = refusal(changed(BASE, line, f"{field}: {value}"))
        before, _, after = message.partition(".*")
        assert said.startswith(before)
        assert after in said


def test_a_pass_is_named_with_its_field(refusal):
    for old, new, message in (
        (
            "[1, 1, 6, 8, 6, 1, 1]",
            "[1, 1]",
            "first_pass.guidance_scale of my.yaml has 2 entries for 7 guidance_timesteps",
        ),
        ("[0, 0, 4, 4, 4, 2, 1]", "[]", "first_pass.stg_scale of my.yaml has 0 entries for 7 guidance_timesteps"),
        ("[[], [11, 25, 35, 39]", "[[]", "first_pass.skip_block_list of my.yaml has 6 entries for 7"),
        ("[[], [11", "[[], 5, [11", "first_pass.skip_block_list of my.yaml has 8 entries for 7"),
        ("[28]]", "28]", "first_pass.skip_block_list of my.yaml must be a list of blocks, or a list of such lists"),
        (
            "[1.0, 0.996,",
            "[0.996, 1.0,",
            "first_pass.guidance_timesteps of my.yaml must be a list of numbers from 0 to 1 in descending order",
        ),
        (
            "[1.0, 0.996,",
            "[1.5, 0.996,",
            "first_pass.guidance_timesteps of my.yaml must be a list of numbers from 0 to 1 in descending order",
        ),
        (
            "guidance_timesteps: [1.0]",
            "guidance_timesteps: []",
            "second_pass.guidance_timesteps of my.yaml must be a list",
        ),
        (
            "guidance_timesteps: [1.0]",
            "guidance_timesteps: 1",
            "second_pass.guidance_timesteps of my.yaml must be a list",
        ),
        ("  stg_scale: [1]\n", "", "second_pass of my.yaml has no stg_scale - add stg_scale"),
        ("0.6666666", "0", "downscale_factor of my.yaml must be at least 0.1 and at most 1; got 0"),
        ("multi-scale", "base", "downscale_factor of my.yaml needs pipeline_type multi-scale"),
        ("pipeline_type: multi-scale", "", "downscale_factor of my.yaml needs pipeline_type multi-scale"),
    ):
        assert refusal(changed(DEV_13B, old, new)).startswith(message)
    whole, *_ = DEV_13B.partition("second_pass:")
    assert refusal(whole).startswith("my.yaml has no second_pass")
    assert refusal(f"{whole}second_pass: 3").startswith("second_pass of my.yaml must be a mapping of fields; got 3")


def test_a_list_of_timesteps_and_a_number_of_steps_must_agree(read, refusal):
    timesteps = "timesteps: [0.9094, 0.7250, 0.4219]"
    assert read(changed(DISTILLED_2B, timesteps, f"{timesteps}\n  num_inference_steps: 3")) == read(DISTILLED_2B)
    for more, message in (
        ("num_inference_steps: 8", "second_pass.num_inference_steps of my.yaml is 8 for 3 timesteps"),
        (
            "skip_initial_inference_steps: 1",
            "steps cannot be skipped with a list of timesteps: second_pass.timesteps of my.yaml",
        ),
    ):
        assert refusal(changed(DISTILLED_2B, timesteps, f"{timesteps}\n  {more}")).startswith(message)
    assert refusal(changed(DISTILLED_2B, timesteps, "timesteps: 0.9")).startswith(
        "second_pass.timesteps of my.yaml must"
    )


def test_what_is_no_file_of_fields_is_refused_in_one_sentence(refusal, tmp_path):
    for text, message in (
        ("", "my.yaml is not a mapping of fields; got nothing"),
        ("- 1\n- 2", "my.yaml is not a mapping of fields; got a list of 2"),
        ("just words", "my.yaml is not a mapping of fields; got 'just words'"),
        (BASE + "\n  : [", "my.yaml cannot be read as YAML in line 19"),
        ("a: b: c", "my.yaml cannot be read as YAML in line 1"),
        ("a: 1\n---\nb: 2", "my.yaml cannot be read as YAML in line 2"),
        ("? [a]\n: 1", "my.yaml cannot be read as YAML in line 1"),
        (b"a: \x00", "my.yaml cannot be read as YAML"),
        (b"a: \xff\xff", "my.yaml cannot be read as YAML"),
        ("a: 2001-99-99", "my.yaml has a number or a date that cannot be read"),
        ("a: " + "9" * 9000, "my.yaml has a number or a date that cannot be read"),
        ("a: &x [1]\nb: *x", "my.yaml has an alias or a tag, which no preset needs"),
        ("a: !!int ''", "my.yaml has an alias or a tag, which no preset needs"),
        ("!!python/object/apply:os.system ['true']", "my.yaml has an alias or a tag, which no preset needs"),
    ):
        assert refusal(text).startswith(message), text
    with pytest.raises(LtxError, match=r"cannot read .*missing\.yaml: no such file or directory - check the path"):
        read_preset(tmp_path / "missing.yaml")
    with pytest.raises(LtxError, match=r"cannot read .*give a file instead of a folder|check its permissions"):
        read_preset(str(tmp_path))


def test_a_file_that_would_take_long_to_read_is_refused_at_once(refusal):
    begun = time.monotonic()
    for text, message in (
        ("#" * 1_000_001, "my.yaml is larger than 1 MB"),
        ("[" * 999_000, "my.yaml has too many values or is nested too deeply"),
        ("a: [" + "1, " * 300_000 + "1]", "my.yaml has too many values or is nested too deeply"),
        ("a: {" * 5 + "}" * 5, "my.yaml has too many values or is nested too deeply"),
    ):
        assert refusal(text).startswith(message)
    assert time.monotonic() - begun < 10
