"""LoRAs as peft saves them, against alpha / rank * up @ down in float64 with the values of their configuration."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from oracles.networks import distance
from safetensors.numpy import save_file

from ltx_runtime.errors import LtxError
from ltx_runtime.weights.lora import Lora, merge, open_lora, parse_lora

EXACT = 1e-6
FACTORS, CONFIG, HEADER = "adapter_model.safetensors", "adapter_config.json", "lora_adapter_metadata"
# Our name of a weight -> (its module's name in diffusers and peft, out features, in features).
WEIGHTS = {
    "patchify_proj.weight": ("proj_in", 16, 6),
    "transformer_blocks.0.attn1.to_q.weight": ("transformer_blocks.0.attn1.to_q", 16, 16),
    "transformer_blocks.0.attn1.to_k.weight": ("transformer_blocks.0.attn1.to_k", 16, 16),
    "transformer_blocks.1.attn1.to_k.weight": ("transformer_blocks.1.attn1.to_k", 16, 16),
    "transformer_blocks.1.ff.net.2.weight": ("transformer_blocks.1.ff.net.2", 16, 64),
}
EXPECTED = {name: (out, inner) for name, (_, out, inner) in WEIGHTS.items()}
TO_Q = "transformer_blocks.0.attn1.to_q.weight"
EVERY_RANK = dict.fromkeys(WEIGHTS, 4)
# The configuration that peft 0.21.2 writes for LoraConfig(r=4, lora_alpha=16, target_modules=["to_q"]).
NOTHING = ("alora_invocation_tokens", "arrow_config", "base_model_name_or_path", "corda_config", "eva_config")
NOTHING += ("exclude_modules", "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform")
NOTHING += ("lora_ga_config", "megatron_config", "modules_to_save", "monteclora_config", "revision", "task_type")
NOTHING += ("target_parameters", "trainable_token_indices", "use_bdlora", "velora_config")
OFF = ("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora", "use_rslora")
SAVED = dict.fromkeys(NOTHING) | dict.fromkeys(OFF, False)
SAVED |= {"alpha_pattern": {}, "rank_pattern": {}, "loftq_config": {}, "lora_dropout": 0.0, "qalora_group_size": 16}
SAVED |= {"auto_mapping": {"base_model_class": "LTXVideoTransformer3DModel", "parent_library": "diffusers"}}
SAVED |= {"bias": "none", "inference_mode": True, "init_lora_weights": True, "megatron_core": "megatron.core"}
SAVED |= {"peft_type": "LORA", "peft_version": "0.21.2", "r": 4, "lora_alpha": 16, "target_modules": ["to_q"]}


def factors(name: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns down (rank, in) and up (out, rank) of a weight, seeded by the weight."""
    _, out, inner = WEIGHTS[name]
    draw = np.random.default_rng([*WEIGHTS].index(name))
    return tuple(draw.standard_normal(shape).astype(np.float32) for shape in ((rank, inner), (out, rank)))


def write_factors(file: Path, ranks=EVERY_RANK, prefix="base_model.model.", extra=(), metadata=None) -> Path:
    """Writes the file of factors as peft does: without alphas, and with nothing about the LoRA in its header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = dict(extra)
    for name, rank in ranks.items():
        module = prefix + WEIGHTS[name][0]
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = factors(name, rank)
    save_file({key: np.asarray(part) for key, part in tensors.items()}, file, metadata or {"format": "pt"})
    return file


def saved_by_peft(folder: Path, ranks=EVERY_RANK, **changes) -> Path:
    file = write_factors(folder / FACTORS, ranks)
    (folder / CONFIG).write_text(json.dumps(SAVED | changes, indent=2, sort_keys=True))
    return file


def assert_adds(lora: Lora, factor_of: dict[str, float], ranks=EVERY_RANK) -> None:
    """Checks that merging gives W + factor * up @ down for every weight with its own factors."""
    assert lora.pairs.keys() == ranks.keys() == factor_of.keys()
    for name, factor in factor_of.items():
        down, up = (part.astype(np.float64) for part in factors(name, ranks[name]))
        weight = np.random.default_rng(99).standard_normal(EXPECTED[name]).astype(np.float32)
        after = weight.copy()
        merge(after, name, [lora])
        assert distance(after, weight.astype(np.float64) + factor * up @ down) <= EXACT


def refusal(file: Path) -> str:
    """Returns the one sentence with which a LoRA is refused."""
    with pytest.raises(LtxError) as refused:
        open_lora(file, 1.0, EXPECTED)
    message = str(refused.value)
    assert message.count(" - ") == 1 and "\n" not in message and str(file.parent) in message
    return message


@pytest.mark.parametrize("scale", [1.0, -0.35])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 16), (8, 8), (3, 0.5), (16, 4), (2, -6)])
def test_alpha_over_rank_scales_every_layer(tmp_path, rank, alpha, scale):
    ranks = dict.fromkeys(WEIGHTS, rank)
    lora = open_lora(saved_by_peft(tmp_path, ranks, r=rank, lora_alpha=alpha), scale, EXPECTED)
    assert_adds(lora, dict.fromkeys(WEIGHTS, scale * alpha / rank), ranks)


@pytest.mark.parametrize(("rank", "factor"), [(4, 16 / 2), (9, 16 / 3), (2, 16 / math.sqrt(2))])
def test_rank_stabilised_loras_divide_by_the_root_of_the_rank(tmp_path, rank, factor):
    ranks = dict.fromkeys(WEIGHTS, rank)
    lora = open_lora(saved_by_peft(tmp_path, ranks, r=rank, use_rslora=True), 0.5, EXPECTED)
    assert_adds(lora, dict.fromkeys(WEIGHTS, 0.5 * factor), ranks)


@pytest.mark.parametrize(("stabilised", "root"), [(False, float), (True, math.sqrt)])
def test_patterns_give_layers_ranks_and_alphas_of_their_own(tmp_path, stabilised, root):
    """The first pattern that matches whole last components wins; `o_q` and `transformer_blocks.0` match none."""
    alphas = {".*s.1.*to_k": 5, "^proj_in": 2, "o_q": 99, "to_k": 7, "transformer_blocks.0": 99}
    own = {"alpha_pattern": alphas, "rank_pattern": {"to_k": 1, "proj_in": 9, "net.2": 25}}
    ranks = dict(zip(WEIGHTS, (9, 4, 1, 1, 25), strict=True))
    expected = {name: alpha / root(ranks[name]) for name, alpha in zip(WEIGHTS, (2, 16, 7, 5, 16), strict=True)}
    file = saved_by_peft(tmp_path, ranks, use_rslora=stabilised, **own)
    assert_adds(open_lora(file, 1.0, EXPECTED), expected, ranks)


@pytest.mark.parametrize(("text", "scale"), [("", 1.0), ("/", 1.0), (":0.25", 0.25), ("/:-2", -2.0)])
def test_a_folder_saved_by_peft_is_given_as_its_file(tmp_path, text, scale):
    file = saved_by_peft(tmp_path / "fox")
    typed = parse_lora(f"{file.parent}{text}")
    lora = open_lora(typed.file, typed.scale, EXPECTED)
    assert (lora.file, lora.scale) == (file, scale)
    assert_adds(lora, dict.fromkeys(WEIGHTS, 4 * scale))


@pytest.mark.parametrize("held", [[], [CONFIG], ["pytorch_lora_weights.safetensors"], [f"{FACTORS}/x"]])
def test_a_folder_without_the_file_of_factors_is_refused(tmp_path, held):
    for name in held:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(LtxError, match=rf"^{tmp_path} is a folder without {FACTORS} - give "):
        open_lora(tmp_path, 1.0, EXPECTED)


def test_the_configuration_lies_beside_the_name_that_was_given_as_in_a_cache_of_links(tmp_path):
    (tmp_path / "snapshot").mkdir()
    for place, blob in ((FACTORS, "a"), (CONFIG, "b")):
        saved_by_peft(tmp_path / "made").with_name(place).rename(tmp_path / blob)
        (tmp_path / "snapshot" / place).symlink_to(tmp_path / blob)
    assert_adds(open_lora(tmp_path / "snapshot" / FACTORS, 1.0, EXPECTED), dict.fromkeys(WEIGHTS, 4.0))


def test_without_its_configuration_the_strength_of_a_lora_of_peft_is_unknown(tmp_path):
    file = saved_by_peft(tmp_path)
    (tmp_path / CONFIG).unlink()
    assert "strength is unknown - put the adapter_config.json it was saved with" in refusal(file)
    one = {f"base_model.model.{WEIGHTS[TO_Q][0]}.alpha": np.float32(8)}
    assert "strength is unknown" in refusal(write_factors(tmp_path / "x.safetensors", extra=one))
    empty = {HEADER: '{"transformer.r": 4, "text_encoder.lora_alpha": 8}'}
    assert "strength is unknown" in refusal(write_factors(tmp_path / "y.safetensors", metadata=empty))


def test_alphas_that_the_file_holds_need_no_configuration_and_win_over_it(tmp_path):
    (tmp_path / CONFIG).write_text("not even JSON")
    stored = {f"base_model.model.{module}.alpha": np.float32(8) for module, *_ in WEIGHTS.values()}
    header = {HEADER: '{"transformer.r": 4, "transformer.lora_alpha": 12}'}
    for name, extra, metadata, factor in (("a", stored, None, 2), ("b", (), header, 3), ("c", stored, header, 2)):
        file = write_factors(tmp_path / f"{name}.safetensors", extra=extra, metadata=metadata)
        assert_adds(open_lora(file, 1.0, EXPECTED), dict.fromkeys(WEIGHTS, factor))


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model."])
def test_a_configuration_beside_a_file_of_another_trainer_is_not_its_own(tmp_path, prefix):
    saved_by_peft(tmp_path)
    file = write_factors(tmp_path / "other.safetensors", prefix=prefix)
    assert_adds(open_lora(file, 1.0, EXPECTED), dict.fromkeys(WEIGHTS, 1.0))


BROKEN = [
    (b"", "Expecting value"),
    (b'{"lora_alpha": 16', "delimiter"),
    (b"\xff\xfe\xff", "decode"),
    (b"[" * 100_000, "recursion|overflow"),
    (b"[16]", r"it is \[16\]"),
    (b"null", "it is None"),
    (b"{}", "it has no lora_alpha"),
    (b'{"lora_alpha": null, "r": 4}', "it has no lora_alpha"),
    (b'{"lora_alpha": "16"}', "lora_alpha is '16', not a valid number"),
    (b'{"lora_alpha": true}', "lora_alpha is True"),
    (b'{"lora_alpha": [16]}', r"lora_alpha is \[16\]"),
    (b'{"lora_alpha": NaN}', "lora_alpha is nan"),
    (b'{"lora_alpha": -Infinity}', "lora_alpha is -inf"),
    (b'{"lora_alpha": 1e39}', r"lora_alpha is 1e\+39"),
    (b'{"lora_alpha": 1' + b"0" * 400 + b"}", r"lora_alpha is 10+\.\.\.0+, not a valid number"),
    (b'{"lora_alpha": 16, "r": "4"}', "r is '4', not a valid number"),
    (b'{"lora_alpha": 16, "rank_pattern": {"to_q": null, "to_k": []}}', r"rank_pattern of 'to_k' is \[\]"),
    (b'{"lora_alpha": 16, "alpha_pattern": {"to_q": "x"}}', "alpha_pattern of 'to_q' is 'x'"),
    (b'{"lora_alpha": 16, "alpha_pattern": [1]}', r"alpha_pattern is \[1\]"),
    (b'{"lora_alpha": 16, "alpha_pattern": {"(": 1}}', r"alpha_pattern has '\('"),
    (b'{"lora_alpha": 16, "alpha_pattern": {"a{99999999999}": 1}}', "alpha_pattern has"),
    (b'{"lora_alpha": 16, "use_rslora": "yes"}', "use_rslora is 'yes'"),
]


@pytest.mark.parametrize(("raw", "match"), BROKEN, ids=[match for _, match in BROKEN])
def test_a_broken_configuration_is_refused_in_one_sentence(tmp_path, raw, match):
    file = write_factors(tmp_path / FACTORS)
    (tmp_path / CONFIG).write_bytes(raw)
    message = refusal(file)
    assert message.startswith(f"{tmp_path / CONFIG} is damaged (") and message.endswith(") - download it again")
    assert re.search(match, message)


@pytest.mark.parametrize(("excess", "is_read"), [(0, True), (1, False)])
def test_no_more_than_a_megabyte_is_read_of_a_configuration(tmp_path, excess, is_read):
    file = saved_by_peft(tmp_path)
    text = (tmp_path / CONFIG).read_text()
    (tmp_path / CONFIG).write_text(text.ljust((1 << 20) + excess))
    if is_read:
        assert_adds(open_lora(file, 1.0, EXPECTED), dict.fromkeys(WEIGHTS, 4.0))
    else:
        assert "is damaged (it is larger than 1048576 bytes)" in refusal(file)


def test_a_configuration_of_another_rank_is_not_that_of_the_file(tmp_path):
    message = refusal(saved_by_peft(tmp_path, EVERY_RANK | {TO_Q: 2}))
    assert message.startswith(f"{tmp_path / CONFIG} says rank 4 for {TO_Q}, which has 2 - give ")
    assert "says rank 3 for" in refusal(saved_by_peft(tmp_path, rank_pattern={"ff.net.2": 3}))


def test_a_configuration_without_a_rank_is_enough(tmp_path):
    file = saved_by_peft(tmp_path)
    (tmp_path / CONFIG).write_text('{"lora_alpha": 6}')
    assert_adds(open_lora(file, 1.0, EXPECTED), dict.fromkeys(WEIGHTS, 6 / 4))


NOT_PLAIN = [("peft_type", name) for name in ("LOHA", "LOKR", "ADALORA", "lora", 3)]
NOT_PLAIN += [("init_lora_weights", name) for name in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")]
NOT_PLAIN += [(name, True) for name in ("use_dora", "use_qalora", "fan_in_fan_out", "lora_bias")]
NOT_PLAIN += [(name, {"r": 1}) for name in ("use_bdlora", "arrow_config", "kasa_config", "monteclora_config")]
NOT_PLAIN += [("bias", "all"), ("bias", "lora_only"), ("use_dora", "false"), ("megatron_config", {"tp": 2})]
NOT_PLAIN += [("layer_replication", [[0, 1], [0, 2]]), ("alora_invocation_tokens", [1]), ("modules_to_save", ["x"])]
NOT_PLAIN += [("target_parameters", ["to_q.weight"]), ("trainable_token_indices", [5])]


@pytest.mark.parametrize(("field", "value"), NOT_PLAIN, ids=str)
def test_what_makes_more_of_two_factors_than_their_product_is_refused_by_name(tmp_path, field, value):
    what = f"sets {field} to {value!r}, which a plain LoRA does not have - "
    assert f"{tmp_path / CONFIG} {what}" in refusal(saved_by_peft(tmp_path, **{field: value}))
    header = {HEADER: json.dumps({f"transformer.{name}": told for name, told in (SAVED | {field: value}).items()})}
    file = write_factors(tmp_path / "x.safetensors", prefix="transformer.", metadata=header)
    assert f"the {HEADER} of {file} {what}" in refusal(file)


PLAIN = [("init_lora_weights", name) for name in (False, None, "gaussian", "eva", "orthogonal", "mica")]
PLAIN += [("lora_dropout", 0.1), ("layers_to_transform", [0]), ("exclude_modules", ["x"]), ("task_type", "FOX")]
PLAIN += [("loftq_config", {"loftq_bits": 4}), ("modules_to_save", []), ("a_field_of_tomorrow", 1), ("peft_type", None)]


@pytest.mark.parametrize(("field", "value"), PLAIN, ids=str)
def test_what_only_training_needs_changes_nothing(tmp_path, field, value):
    lora = open_lora(saved_by_peft(tmp_path, **{field: value}), 1.0, EXPECTED)
    assert_adds(lora, dict.fromkeys(WEIGHTS, 4.0))
