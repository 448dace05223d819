"""Which files are taken, and every way in which they can be wrong: refused in one sentence that says what to do."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples.layouts import OFFICIAL, bare, gguf_t5_state, write_diffusers, write_gguf
from samples.tiny import Exported, export

from ltx_export.checkpoints.readers import open_weights, weights_file
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, Sources, find_sources, open_sources
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import VERSIONS

V095 = VERSIONS["0.9.5"]
EVERY_RELEASE = pytest.mark.parametrize("name", [name for name in VERSIONS if name != "demo"])


def refusal(call: Callable[..., object], *args: object, **options: object) -> str:
    """Returns the one line with which a call is refused: what is wrong, and what to do."""
    with pytest.raises(LtxError) as refused:
        call(*args, **options)
    message = str(refused.value)
    assert message.isprintable() and " - " in message
    return message


def made(folder: Path, *names: str) -> Path:
    """Makes a folder with empty files, or folders where a name ends in a slash."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return folder


BESIDE = (TEXT_ENCODER_FILE, TOKENIZER_FILE)


@EVERY_RELEASE
def test_the_official_file_of_a_release_is_found_by_its_name_before_anything_else(tmp_path, name):
    version, official = VERSIONS[name], Path(VERSIONS[name].checkpoint)
    fp8 = f"{official.stem}-fp8.safetensors"
    found = [found_in(tmp_path, version, *BESIDE, "ltx-video.gguf")]
    found += [found_in(tmp_path, version, one) for one in ("transformer/", fp8, official.name)]
    assert found == [tmp_path / "ltx-video.gguf", tmp_path, tmp_path / fp8, tmp_path / official.name]


def found_in(folder: Path, version, *names: str) -> Path:
    return find_sources(version, made(folder, *names)).checkpoint


@pytest.mark.parametrize("suffix", [".safetensors", "-fp8.safetensors", "-Q4_K_M.gguf", ".gguf"])
@EVERY_RELEASE
def test_a_file_that_bears_the_name_of_another_release_is_refused(tmp_path, name, suffix):
    file = f"{Path(VERSIONS[name].checkpoint).stem}{suffix}"
    made(tmp_path, *BESIDE, file)
    assert find_sources(VERSIONS[name], tmp_path / file).checkpoint == tmp_path / file
    for other in VERSIONS.values():
        if other.name != name:
            message = refusal(find_sources, other, tmp_path / file)
            assert f"{file} has the file name of {name}, not of {other.name} - use the checkpoint's own" in message


@pytest.mark.parametrize("t5", [TEXT_ENCODER_FILE, "text_encoder/", "t5xxl_fp16.safetensors", "t5-v1_1-xxl-Q8_0.gguf"])
@pytest.mark.parametrize("tokenizer", [TOKENIZER_FILE, "tokenizer/spiece.model", "spiece.model"])
def test_the_text_encoder_and_its_tokenizer_are_found_under_their_usual_names(tmp_path, t5, tokenizer):
    folder = made(tmp_path, V095.checkpoint, t5, tokenizer)
    for weights in (folder, folder / V095.checkpoint):
        found = find_sources(V095, weights)
        assert found == Sources(folder / V095.checkpoint, folder / t5, folder / tokenizer)


@pytest.mark.parametrize("tokenizer", ["t5/spiece.model", "t5/shards/spiece.model", "t5/tokenizer/spiece.model"])
def test_the_tokenizer_may_be_with_the_text_encoder(tmp_path, tokenizer):
    made(tmp_path, f"w/{V095.checkpoint}", "t5/shards/", tokenizer)
    found = find_sources(V095, tmp_path / "w", t5=tmp_path / "t5" / "shards")
    assert found.tokenizer == tmp_path / tokenizer


def test_of_two_text_encoders_one_is_to_be_chosen(tmp_path):
    made(tmp_path, V095.checkpoint, *BESIDE, "t5xxl_fp16.safetensors")
    message = refusal(find_sources, V095, tmp_path)
    assert "text_encoder.safetensors, t5xxl_fp16.safetensors" in message or "t5xxl_fp16.safetensors, text" in message
    assert message.endswith("choose one with --t5")
    chosen = tmp_path / "t5xxl_fp16.safetensors"
    assert find_sources(V095, tmp_path, t5=chosen).text_encoder == chosen


def test_of_two_quantized_transformers_one_is_to_be_chosen(tmp_path):
    made(tmp_path, *BESIDE, "ltx-video-2b-v0.9.5-Q4_0.gguf", "ltx-video-2b-v0.9.5-Q8_0.gguf")
    assert refusal(find_sources, V095, tmp_path).endswith("Q8_0.gguf - choose one with --weights")


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        (BESIDE, {}, "ltx-video-2b-v0.9.5.safetensors not found, and no diffusers layout beside it - run: ltx-export"),
        ((V095.checkpoint, TOKENIZER_FILE), {}, "no T5 encoder in"),
        ((V095.checkpoint, TEXT_ENCODER_FILE), {}, "or name it with --tokenizer"),
        ((V095.checkpoint, *BESIDE), {"t5": "t5.gguf"}, "t5.gguf not found - check the path"),
        ((V095.checkpoint, *BESIDE), {"vae": "vae"}, "vae not found - "),
        ((V095.checkpoint, *BESIDE), {"tokenizer": "spiece.model"}, "spiece.model not found - "),
    ],
)
def test_what_is_not_there_is_named_with_what_to_do(tmp_path, files, options, expected):
    made(tmp_path, *files)
    message = refusal(find_sources, V095, tmp_path, **{name: tmp_path / path for name, path in options.items()})
    assert expected in message


LEFT_OUT = {
    "text_encoder": {"t5": "t5.gguf", "tokenizer": "pieces"},
    "upsampler": {"upscaler": "space"},
    "temporal_upsampler": {"temporal_upscaler": "time"},
}


@pytest.mark.parametrize("component", LEFT_OUT)
def test_files_of_a_component_that_is_left_out_are_not_looked_for_and_not_taken(tmp_path, component):
    release, options = VERSIONS["0.9.8-13b-dev"], LEFT_OUT[component]
    made(tmp_path, release.checkpoint, *(name for one in LEFT_OUT.values() for name in one.values()))
    given = {option: tmp_path / name for one in LEFT_OUT.values() for option, name in one.items()}
    others = {option: path for option, path in given.items() if option not in options}
    found = find_sources(release, tmp_path, **others, without=[component])
    named = {"t5": "text_encoder"}
    for option in given:
        assert getattr(found, named.get(option, option)) == others.get(option)
    for option in options:
        message = refusal(find_sources, release, tmp_path, **others, **{option: given[option]}, without=[component])
        expected = f"--{option.replace('_', '-')} {given[option]} has no effect with --without {component}"
        assert message == f"{expected} - leave one of them out"


def test_a_file_of_any_other_name_or_the_folder_above_are_what_weights_may_be(tmp_path):
    made(tmp_path, *BESIDE, "my_finetune.safetensors")
    assert refusal(find_sources, V095, tmp_path).endswith(", or give --weights the file itself if it has another name")
    assert find_sources(V095, tmp_path / "my_finetune.safetensors").checkpoint == tmp_path / "my_finetune.safetensors"
    made(tmp_path / "repo", "transformer/model.safetensors", "vae/model.safetensors", "text_encoder/")
    for name in ("transformer", "vae", "text_encoder"):
        message = refusal(find_sources, V095, tmp_path / "repo" / name)
        assert message.endswith(f"layout - give --weights the folder above, {tmp_path / 'repo'}, or a file")


def test_hidden_files_are_none_of_the_weights(tmp_path):
    made(tmp_path, *BESIDE, "my-ltx.gguf", "._my-ltx.gguf", "._t5.gguf", "._vae.safetensors", "vae/")
    found = find_sources(V095, tmp_path)
    assert (found.checkpoint.name, found.text_encoder.name) == ("my-ltx.gguf", TEXT_ENCODER_FILE)


@pytest.mark.parametrize("beside", [(), BESIDE], ids=["alone", "beside a text encoder"])
def test_weights_that_do_not_exist_are_missed_first(tmp_path, beside):
    made(tmp_path, *beside)
    assert refusal(find_sources, V095, tmp_path / "0.9.5").endswith(
        "not found - run: ltx-export download 0.9.5, or check the path"
    )


INDEX = "diffusion_pytorch_model.safetensors.index"
NAMES = {
    "": ["diffusion_pytorch_model.safetensors"],
    "bf16": ["model.bf16.safetensors"],
    "fp16": [f"{INDEX}.fp16.json", *(f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2))],
    "fp8": [f"{INDEX}.fp8.json", *(f"diffusion_pytorch_model-0000{i}-of-00002.fp8.safetensors" for i in (1, 2))],
}


@pytest.mark.parametrize("variant", NAMES)
def test_the_weights_of_a_folder_are_chosen_by_variant(tmp_path, variant):
    made(tmp_path, "config.json", *(name for names in NAMES.values() for name in names))
    assert weights_file(tmp_path, variant) == tmp_path / NAMES[variant][0]


@pytest.mark.parametrize("variant", NAMES)
def test_the_only_weights_of_a_folder_need_no_choice(tmp_path, variant):
    assert weights_file(made(tmp_path, "config.json", *NAMES[variant])) == tmp_path / NAMES[variant][0]


def test_a_variant_that_is_not_there_or_not_chosen_is_told_with_those_that_are(tmp_path):
    made(tmp_path, *NAMES["bf16"], *NAMES["fp16"])
    listed = f"{NAMES['fp16'][0]}, {NAMES['bf16'][0]}"
    assert f"no weights of variant 'fp8', but {listed} - choose" in refusal(weights_file, tmp_path, "fp8")
    assert f"holds {listed} - choose one with --variant" in refusal(weights_file, tmp_path)


def test_weights_that_are_there_twice_are_refused(tmp_path):
    made(tmp_path, "model.safetensors", "model.safetensors.index.json")
    assert "model.safetensors and model.safetensors.index.json - keep one" in refusal(weights_file, tmp_path)


def test_a_folder_or_file_of_another_kind_is_refused(tmp_path):
    made(tmp_path, "config.json", "pytorch_model.bin")
    assert "holds no diffusion_pytorch_model.safetensors or model.safetensors" in refusal(open_weights, tmp_path)
    assert "pytorch_model.bin is not in a supported checkpoint format" in refusal(
        open_weights, tmp_path / "pytorch_model.bin"
    )
    assert "config.json is not an index of shards" in refusal(open_weights, tmp_path / "config.json")


def sharded(release: Exported, folder: Path) -> tuple[Sources, Path, dict]:
    """Writes a diffusers layout in shards; returns its sources, and its transformer's index as path and content."""
    layout = write_diffusers(release.version, release.weights, folder / "layout", shard_size="20KB")
    index = layout / "transformer" / f"{INDEX}.json"
    return find_sources(release.version, layout), index, json.loads(index.read_text())


def test_a_missing_shard_is_named(exported, tmp_path):
    sources, index, listed = sharded(exported("0.9.5"), tmp_path)
    shard = sorted(set(listed["weight_map"].values()))[1]
    (index.parent / shard).unlink()
    assert f"names {shard}, not found beside it - download" in refusal(open_sources, sources)


@pytest.mark.parametrize("change", ["promised", "forgotten", "misplaced"])
def test_a_shard_that_disagrees_with_the_index_is_named_with_the_tensor(exported, tmp_path, change):
    sources, index, listed = sharded(exported("0.9.5"), tmp_path)
    name, shard = next(iter(listed["weight_map"].items()))
    if change == "promised":
        name, listed["weight_map"]["extra.weight"] = "extra.weight", shard
    elif change == "forgotten":
        del listed["weight_map"][name]
    else:
        shard = next(file for file in listed["weight_map"].values() if file != shard)
        listed["weight_map"][name] = shard
    index.write_text(json.dumps(listed))
    message = refusal(open_sources, sources)
    assert f"and {index.name} disagree about {name} - download both again" in message


@pytest.mark.parametrize("path", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "a\\b", 3, None])
def test_an_index_may_name_files_beside_it_only(exported, tmp_path, path):
    sources, index, listed = sharded(exported("0.9.5"), tmp_path)
    listed["weight_map"][next(iter(listed["weight_map"]))] = path
    index.write_text(json.dumps(listed))
    assert f"{index.name} is not an index of shards" in refusal(open_sources, sources)


def official_state(release: Exported) -> dict[str, torch.Tensor]:
    return load_file(release.sources.checkpoint)


def wrong_files(release: Exported, folder: Path) -> dict[str, Sources]:
    """Returns sources with one wrong file each, by case."""
    sources, state = release.sources, official_state(release)
    transformer = bare(state, OFFICIAL)
    files = {
        "alone": {OFFICIAL + name: values for name, values in transformer.items()},
        "upscaler": {"initial_conv.weight": torch.zeros(2), "upsampler.0.weight": torch.zeros(2)},
        "lora": {"diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 2)},
        "stranger": {"model.layers.0.weight": torch.zeros(2)},
        "empty": {},
        "mixed": state | {"model.layers.0.weight": torch.zeros(2)},
        "twice": transformer | {"proj_in.bias": torch.zeros(2)},
    }
    for name, tensors in files.items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / f"{name}.safetensors")
    made = {name: replace(sources, checkpoint=folder / name / f"{name}.safetensors") for name in files}
    text = gguf_t5_state(load_file(sources.text_encoder), 2)
    llama = write_gguf(folder / "llama.gguf", "llama", text, "F32")
    return made | {
        "t5 as checkpoint": replace(sources, checkpoint=sources.text_encoder),
        "t5 gguf as checkpoint": replace(sources, checkpoint=write_gguf(folder / "t5.gguf", "t5", text, "F32")),
        "checkpoint as t5": replace(sources, text_encoder=sources.checkpoint),
        "checkpoint as vae": replace(sources, vae=sources.text_encoder),
        "llama as checkpoint": replace(sources, checkpoint=llama),
        "llama as t5": replace(sources, text_encoder=llama),
    }


WRONG = {
    "alone": "alone.safetensors holds no VAE, and there is none beside it - name its file or folder with --vae",
    "upscaler": "upscaler.safetensors holds no transformer (it holds upsampler) - give the file that does",
    "lora": "patchify_proj.weight is missing",
    "stranger": "stranger.safetensors has 1 tensor (model.layers.0.weight) not belonging to any known network - give",
    "empty": "empty.safetensors holds no transformer (it holds nothing)",
    "mixed": "mixed.safetensors has 1 tensor (model.layers.0.weight) not belonging to any known network",
    "twice": "twice.safetensors has two tensors for patchify_proj.bias",
    "t5 as checkpoint": "holds no transformer (it holds text_encoder)",
    "t5 gguf as checkpoint": "t5.gguf is a GGUF of architecture 't5', not ltxv - give the transformer's file",
    "checkpoint as t5": "holds no text_encoder (it holds transformer, vae)",
    "checkpoint as vae": "holds no vae (it holds text_encoder)",
    "llama as checkpoint": "llama.gguf is a GGUF of architecture 'llama', not ltxv - give the transformer's file",
    "llama as t5": "llama.gguf is a GGUF of architecture 'llama', not t5 or t5encoder - give the text_encoder's file",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_of_something_else_is_refused_by_what_it_holds(exported, tmp_path, case):
    release = exported("0.9.5")
    sources = wrong_files(release, tmp_path)[case]
    if case == "lora":
        sources = replace(sources, vae=release.sources.checkpoint)
    assert WRONG[case] in refusal(export, release.version, sources, tmp_path / "engines" / "0.9.5")
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize("config", ['{"num_attention_heads": 0}', '{"num_attention_heads": "2"}', "[]", "{", "\xff"])
def test_a_configuration_without_a_number_of_heads_is_refused(exported, tmp_path, config):
    layout = write_diffusers(exported("0.9.5").version, exported("0.9.5").weights, tmp_path / "layout")
    (layout / "transformer" / "config.json").write_text(config, encoding="latin-1")
    message = refusal(open_sources, find_sources(exported("0.9.5").version, layout))
    assert f"{layout / 'transformer' / 'config.json'} " in message


def test_a_layout_without_configurations_has_the_heads_of_the_release(exported, tmp_path):
    release = exported("0.9.5")
    layout = write_diffusers(release.version, release.weights, tmp_path / "layout")
    for folder in ("scheduler", "transformer", "vae", "text_encoder"):
        for path in (layout / folder).glob("*config.json"):
            path.unlink()
    shutil.rmtree(layout / "scheduler")
    assert open_sources(find_sources(release.version, layout)).heads is None
