"""LoRAs against torch in float64, diffusers' own key converters, and a transformer that keeps its LoRA beside it."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.encodings import encoded
from oracles.networks import diffusers_dit_key, distance, filled, normal, shapes_of
from oracles.weight_rule import weight as drawn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltx_export.models.dit import DitConfig, Transformer
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.lora import Lora, LoraFile, merge, open_lora, parse_lora

ROOT = Path(__file__).parents[3]
EXACT = 1e-6
SIZE = DitConfig(layers=2, heads=2, head_dim=8, channels=6, text_channels=10)
DIT = Transformer(SIZE)
EXPECTED = shapes_of(DIT.named_parameters())
LINEAR = [name for name, module in DIT.named_modules() if isinstance(module, nn.Linear)]
TO_Q = "transformer_blocks.0.attn1.to_q"
SUFFIXES = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)
PREFIXES = ("", "diffusion_model.", "transformer.", "model.diffusion_model.", "base_model.model.")
PREFIXES += ("module.", "base_model.model._orig_mod.", "_orig_mod.transformer.", "transformer.module.")
FILES = ("x.safetensors", "C:\\x.safetensors", "C:/x.safetensors", "a:b/x.safetensors", "a.safetensors:b/x")
FILES += ("a.safetensors:2.safetensors", "take:1_000", "a:b:c", "nan")
ALPHA_DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32]
BOTH_SPELLINGS = pytest.mark.parametrize("spelling", [str, diffusers_dit_key], ids=["official", "diffusers"])


def factors(module: str, rank: int = 2) -> tuple[Tensor, Tensor]:
    """Returns down (rank, in) and up (out, rank) of a module of the transformer, seeded by the module."""
    out, inner = EXPECTED[f"{module}.weight"]
    seed = LINEAR.index(module)
    return normal(2 * seed, rank, inner), normal(2 * seed + 1, out, rank)


def keyed(module: str, called: str | None = None, suffixes=SUFFIXES[0], rank: int = 2) -> dict[str, Tensor]:
    """Returns one module's LoRA under the keys of a style; `called` is the module's name in the file."""
    return {f"{called or module}{suffix}": part for suffix, part in zip(suffixes, factors(module, rank), strict=True)}


def every(call: Callable[[str], str], suffixes=SUFFIXES[0], rank: int = 2) -> dict[str, Tensor]:
    """Returns a LoRA for every linear layer."""
    return {key: part for name in LINEAR for key, part in keyed(name, call(name), suffixes, rank).items()}


def opened(path: Path, tensors: dict[str, Tensor], scale: float = 1.0, metadata: dict[str, str] | None = None) -> Lora:
    save_file(tensors, path, metadata)
    return open_lora(path, scale, EXPECTED)


def merged(before: Tensor, name: str, *loras: Lora) -> np.ndarray:
    after = before.float().numpy().copy()
    merge(after, name, loras)
    return after


def assert_changes(lora: Lora, module: str, factor: float, rank: int = 2) -> None:
    """Checks that the LoRA adds factor * up @ down of the module to its weight."""
    down, up = (part.double() for part in factors(module, rank))
    zeros = torch.zeros(EXPECTED[f"{module}.weight"])
    assert distance(merged(zeros, f"{module}.weight", lora), factor * up @ down) <= EXACT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "given.safetensors"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("tail", "scale"), [("", 1), (":-0.8", -0.8), (":+.5E-1", 0.05), (":2", 2), (":0", 0)])
def test_a_colon_parts_a_scale_only_from_the_file_before_it(file, tail, scale):
    assert parse_lora(file + tail) == LoraFile(Path(file), scale)


@pytest.mark.parametrize("scale", ["nan", "-inf", "Infinity", "1e999", "", "0,8", "strong", "1_000", "0x1"])
def test_a_scale_that_is_no_finite_number_is_refused(scale):
    with pytest.raises(LtxError, match=r"the scale of x\.safetensors must be a finite number; got .* - give one such"):
        parse_lora(f"x.safetensors:{scale}")


@pytest.mark.parametrize("text", ["", " ", ":0.5", "C:nan"])
def test_what_names_no_file_or_no_scale_is_refused(text):
    with pytest.raises(LtxError, match=" - give "):
        parse_lora(text)


def test_loras_are_merged_where_torch_is_not():
    blocked = "import sys; sys.modules['torch'] = None; import ltx_runtime.weights.lora"
    assert subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize("suffixes", SUFFIXES, ids=lambda pair: pair[0])
@pytest.mark.parametrize("prefix", PREFIXES)
@BOTH_SPELLINGS
def test_every_linear_layer_is_found_under_the_keys_of_every_style(path, prefix, suffixes, spelling):
    (path.parent / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 2}')  # needed for peft's keys
    lora = opened(path, every(lambda name: prefix + spelling(name), suffixes))
    assert set(lora.pairs) == {f"{module}.weight" for module in LINEAR}
    for module in LINEAR:
        assert_changes(lora, module, 1.0)


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_", "lycoris_", ""])
@BOTH_SPELLINGS
def test_names_whose_dots_became_underscores_are_found(path, prefix, spelling):
    tensors = every(lambda name: prefix + spelling(name).replace(".", "_"), SUFFIXES[2])
    alphas = {key.replace(".lora_up.weight", ".alpha"): torch.tensor(3.0) for key in tensors if "lora_up" in key}
    lora = opened(path, tensors | alphas)
    assert len(lora.pairs) == len(alphas) == len(LINEAR)
    for module in LINEAR:
        assert_changes(lora, module, 3 / 2)


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
@pytest.mark.parametrize("suffixes", [*SUFFIXES, (".down.weight", ".up.weight")], ids=lambda pair: pair[0])
def test_every_key_that_diffusers_converts_for_ltx_names_the_same_layer_here(path, prefix, suffixes):
    from diffusers.loaders.lora_pipeline import LTXVideoLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    legacy = suffixes not in SUFFIXES
    modules = [name for name in LINEAR if not legacy or ".attn" in name]
    tensors = {}
    for module in modules:
        before_peft = re.sub(r"\.(to_[a-z]+)(\.0)?$", r".processor.\1_lora", module)
        called = before_peft if legacy else diffusers_dit_key(module)
        tensors |= keyed(module, prefix + called, suffixes)
    theirs = LTXVideoLoraLoaderMixin.lora_state_dict(dict(tensors))
    if not any("lora_A" in key for key in theirs):
        theirs = convert_unet_state_dict_to_peft(theirs)
    downs = {
        re.split(r"\.lora_(?:A|down)", key)[0]: part for key, part in theirs.items() if re.search("lora_A|down", key)
    }
    lora = opened(path, tensors)
    ours = {diffusers_dit_key(f"transformer.{name.removesuffix('.weight')}"): pair for name, pair in lora.pairs.items()}
    assert len(ours) == len(modules)
    assert {name: pair.down.mapped().tobytes() for name, pair in ours.items()} == {
        name: part.numpy().tobytes() for name, part in downs.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.35, -2.0])
def test_merging_is_the_sum_of_all_loras_in_float64(tmp_path, dtype, scale):
    before = {name: torch.from_numpy(drawn(name, shape)).double() for name, shape in EXPECTED.items()}
    expected, loras = dict(before), []
    for number, modules in enumerate((LINEAR, LINEAR[::2], LINEAR[1::3])):
        tensors: dict[str, Tensor] = {}
        for place, module in enumerate(modules):
            rank, alpha = 1 + (number + place) % 5, 0.5 + place
            pair = {key: part.to(dtype) for key, part in keyed(module, rank=rank).items()}
            tensors |= pair | ({f"{module}.alpha": torch.tensor(alpha).to(dtype)} if number else {})
            down, up = (part.double() for part in pair.values())
            factor = scale * (number + 1) * (alpha / rank if number else 1)
            expected[f"{module}.weight"] = expected[f"{module}.weight"] + factor * up @ down
        loras.append(opened(tmp_path / f"{number}.safetensors", tensors, scale * (number + 1)))
    for name in EXPECTED:
        assert distance(merged(before[name], name, *loras), expected[name]) <= EXACT


def test_a_merged_transformer_answers_as_one_with_the_lora_beside_its_layers(path):
    plain, beside, changed = (filled(Transformer(SIZE), drawn) for _ in range(3))
    lora = opened(path, every(str) | {f"{module}.alpha": torch.tensor(0.2) for module in LINEAR}, 0.7)
    for name, values in changed.named_parameters():
        merge(values.numpy(), name, [lora])
    for module in LINEAR:
        down, up = factors(module)
        beside.get_submodule(module).register_forward_hook(
            lambda _, given, output, down=down, up=up: output + 0.7 * 0.2 / 2 * (given[0] @ down.T) @ up.T
        )
    encodings = encoded(SIZE, torch.full((1, 1), 0.6), normal(2, 1, 3, 5).abs())
    text = normal(3, 1, 4, SIZE.text_channels)
    given = normal(1, 1, 5, SIZE.channels), *encodings, text, torch.ones(1, 4)
    assert distance(changed(*given), beside(*given)) <= 1e-5
    assert distance(changed(*given), plain(*given)) > 0.1


def test_merging_writes_every_row_of_the_weight_it_is_given_and_nothing_else(path):
    """The weight is a strided half of an array, and larger than the row blocks in which it is merged."""
    down, up = normal(1, 2, 1100), normal(2, 9000, 2)
    save_file({"x.lora_A.weight": down, "x.lora_B.weight": up}, path)
    stored = path.read_bytes()
    both = np.ones((9000, 2200), np.float32)
    merge(both[:, ::2], "x.weight", [open_lora(path, 3.0, {"x.weight": (9000, 1100)})])
    assert distance(both[:, ::2], 1 + 3 * up.double() @ down.double()) <= EXACT
    assert (both[:, 1::2] == 1).all()
    assert path.read_bytes() == stored


@pytest.mark.parametrize(("scale", "alpha"), [(0.0, 1.0), (-0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_weights_to_which_nothing_is_added_keep_every_bit_whatever_their_shape(path, scale, alpha):
    lora = opened(path, keyed(TO_Q) | {f"{TO_Q}.alpha": torch.tensor(alpha)}, scale)
    for name in EXPECTED.keys() - ({f"{TO_Q}.weight"} if scale * alpha else set()):
        before = torch.full(EXPECTED[name], -0.0)
        assert merged(before, name, lora).tobytes() == before.numpy().tobytes()


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", ALPHA_DTYPES, ids=str)
def test_alpha_over_rank_scales_a_layer_in_every_dtype_that_trainers_write(path, shape, dtype):
    key = f"diffusion_model.{TO_Q}"
    alpha = {f"{key}.alpha": torch.full(shape, 12, dtype=dtype)}
    assert_changes(opened(path, keyed(TO_Q, key, rank=4) | alpha), TO_Q, 3.0, rank=4)


def saved_by_diffusers(folder: Path, config: dict) -> Path:
    """Writes a LoRA of rank 4 with LTXPipeline."""
    from diffusers import LTXPipeline

    LTXPipeline.save_lora_weights(folder, every(diffusers_dit_key, rank=4), transformer_lora_adapter_metadata=config)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(("stabilised", "factor"), [(False, 10 / 4), (True, 10 / 2)])
def test_the_alpha_that_diffusers_keeps_in_the_header_scales_every_layer(tmp_path, stabilised, factor):
    file = saved_by_diffusers(tmp_path, {"r": 4, "lora_alpha": 10, "use_rslora": stabilised})
    told = open_lora(file, 2.0, EXPECTED)
    untold = opened(tmp_path / "untold.safetensors", load_file(file), 2.0, {"format": "pt"})
    for module in LINEAR:
        assert_changes(told, module, 2.0 * factor, rank=4)
        assert_changes(untold, module, 2.0, rank=4)


def test_alpha_patterns_match_whole_last_components_and_the_first_wins(tmp_path):
    """The first match in the file wins, and diffusers sorts the patterns when it writes them."""
    patterns = {"to_k": 1, "^proj_in": 2, "time_embed.linear": 3, "o_v": 99, "blocks.1": 99, ".*s.1.attn1.to_.": 5}
    file = saved_by_diffusers(tmp_path, {"r": 4, "lora_alpha": 8, "alpha_pattern": patterns})
    expected = {name: 1 if name.endswith("to_k") else 8 for name in LINEAR}
    expected |= {"patchify_proj": 2, "adaln_single.linear": 3}
    expected |= {f"transformer_blocks.1.attn1.to_{leaf}": 5 for leaf in "qkv"}
    pairs = open_lora(file, 1.0, EXPECTED).pairs
    assert {name.removesuffix(".weight"): pair.alpha for name, pair in pairs.items()} == expected


DOWN, UP = (TO_Q + suffix for suffix in SUFFIXES[0])
PLAIN = keyed(TO_Q)
ONE, MATRIX, KERNEL = torch.ones(1), torch.ones(2, 16), torch.ones(2, 16, 1, 1)
REFUSED: list[tuple[dict[str, Tensor], str]] = [
    ({}, r"holds no LoRA \(no tensors\)"),
    ({f"{TO_Q}.weight": MATRIX, "vae.x": ONE}, rf"holds no LoRA \({TO_Q}\.weight, vae\.x\)"),
    (PLAIN | {"vae.x": ONE}, r"are not LoRA keys \(vae\.x\)"),
    (every(lambda name: f"double.{name}"), r"lacks modules of .* \(double\.\S+, (\S+, ){2}\S+ and 23 more\)"),
    (PLAIN | keyed(TO_Q, TO_Q.replace("0", "2")), r"lacks modules .*\(transformer_blocks\.2\.attn1\.to_q\)"),
    ({DOWN: torch.ones(2, 32), UP: torch.ones(32, 2)}, rf"has 32 x 32 for {TO_Q}\.weight of 16 x 16: .* another model"),
    ({DOWN: PLAIN[DOWN]}, rf"has down of {TO_Q}\.weight without up"),
    ({UP: PLAIN[UP], f"{TO_Q}.alpha": ONE}, "has alpha and up of .* without down"),
    ({f"{TO_Q}.alpha": ONE}, "has alpha of .* without down and up"),
    (PLAIN | {DOWN: torch.ones(3, 16)}, r"ranks 3 \(down\) and 2 \(up\)"),
    ({DOWN: torch.ones(0, 16), UP: torch.ones(16, 0)}, "ranks 0 .* must be equal and positive"),
    (PLAIN | keyed(TO_Q, f"transformer.{TO_Q}"), rf"down of {TO_Q}\.weight twice"),
    (PLAIN | {DOWN: MATRIX.int()}, "as I32"),
    (PLAIN | {UP: PLAIN[UP].to(torch.float8_e4m3fn)}, "as F8_E4M3 - give a LoRA in F32, F16, BF16"),
    ({DOWN: KERNEL, UP: torch.ones(16, 2, 1, 1)}, r"convolution's LoRA .*\[2, 16, 1, 1\]"),
    (PLAIN | {f"{TO_Q}.alpha": torch.ones(2)}, r"alpha .* F32 \[2\]"),
    (PLAIN | {f"{TO_Q}.alpha": torch.tensor(True)}, "alpha .* BOOL"),
    (PLAIN | {f"{TO_Q}.alpha": torch.tensor(float("nan"))}, "alpha of .* finite .* - download"),
]
FIXED = (f"{TO_Q}.bias", *(f"transformer_blocks.0.attn1.{x}" for x in ("q_norm", "norm_k")), "scale_shift_table")
REFUSED += [(keyed(TO_Q, called), r"biases, norms or tables \(\S+\) - ") for called in FIXED]
REFUSED += [(PLAIN | keyed(TO_Q, name), "text encoder") for name in ("text_encoder.x", "lora_te1_x", "te.x")]
DAMAGED = ("[]", "{", '{"lora_alpha": "x"}', '{"lora_alpha": NaN}', '{"alpha_pattern": {"(": 1}}')
OTHERS = [("DoRA", key) for key in (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.default.weight")]
OTHERS += [("LoHa", ".hada_w1_a"), ("LoKr", ".lokr_w1"), ("convolutions", ".lora_mid.weight")]
OTHERS += [("biases", key) for key in (".lora_B.bias", ".lora_B.default.bias", ".lora_up.bias")]
OTHERS += [("own", ".set_weight")]
REFUSED += [(PLAIN | {f"{TO_Q}{key}": ONE}, rf"holds .*{kind}.* \(\S*{key}\)") for kind, key in OTHERS]


@pytest.mark.parametrize(("tensors", "match"), REFUSED, ids=[match for _, match in REFUSED])
def test_what_is_no_plain_lora_of_this_transformer_is_refused_in_one_sentence(path, tensors, match):
    with pytest.raises(LtxError, match=match) as refused:
        opened(path, tensors)
    message = str(refused.value)
    assert str(path) in message and " - " in message and "\n" not in message


@pytest.mark.parametrize("config", DAMAGED)
def test_a_damaged_configuration_in_the_header_is_refused(path, config):
    with pytest.raises(LtxError, match=f"{path}.* - "):
        opened(path, PLAIN, metadata={"lora_adapter_metadata": config})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_or_a_factor_that_is_not_finite_never_reaches_a_weight(path, value):
    with pytest.raises(LtxError, match="finite number"):
        opened(path, PLAIN, value)
    for part in (DOWN, UP):
        lora = opened(path, PLAIN | {part: torch.full(PLAIN[part].shape, value)})
        with pytest.raises(LtxError, match=f"{TO_Q}.weight that are not finite - "):
            merged(torch.zeros(16, 16), f"{TO_Q}.weight", lora)
