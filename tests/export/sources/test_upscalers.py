"""Upscaler files: which one is taken, what its header or shapes say, and every way in which it can be wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from oracles.networks import distance, shapes_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples.layouts import stored_shapes
from samples.tiny import Exported, export, tiny

from ltx_export.checkpoints.shapes import upsampler_part
from ltx_export.networks.upsampler import upsampler_config, upsampler_header
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, Sources, find_sources
from ltx_export.sources.upscalers import OPTIONS, has_upscaler, open_upscaler, temporal_upscaler_of
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session
from ltx_runtime.spec.components import temporal_upsampler, upsampler
from ltx_runtime.spec.versions import VERSIONS, Version

RELEASE, OFFICIAL = "0.9.8-13b-distilled", "ltxv-spatial-upscaler-0.9.8.safetensors"
TWO_PASSES = [name for name, version in VERSIONS.items() if len(version.passes) == 2]
TEMPORAL = "ltxv-temporal-upscaler-0.9.8.safetensors"
SPACE, TIME = (
    {"spatial_upsample": True, "temporal_upsample": False},
    {"spatial_upsample": False, "temporal_upsample": True},
)


def made(folder: Path, *names: str) -> Path:
    """Makes a folder with empty files, or folders where a name ends in a slash."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return folder


def found(version: Version, folder: Path, *names: str, **options: Path) -> Sources:
    made(folder, version.checkpoint, TEXT_ENCODER_FILE, TOKENIZER_FILE, *names)
    sources = find_sources(version, folder, **options)
    assert find_sources(version, folder / version.checkpoint, **options) == sources
    return sources


@pytest.mark.parametrize("name", TWO_PASSES)
def test_the_upscaler_of_a_release_is_found_by_its_name_before_anything_else(tmp_path, name):
    version = VERSIONS[name]
    takes = [found(version, tmp_path).upscaler]
    takes += [found(version, tmp_path, one).upscaler for one in ("latent_upsampler/",)]
    (tmp_path / "latent_upsampler").rmdir()
    takes += [found(version, tmp_path, one).upscaler for one in ("my-spatial-upscaler.safetensors", version.upscaler)]
    names = ["latent_upsampler", "my-spatial-upscaler.safetensors", version.upscaler]
    assert takes == [None, *(tmp_path / one for one in names)]


def test_a_temporal_upscaler_is_found_by_its_name(tmp_path):
    version = VERSIONS[RELEASE]
    assert found(version, tmp_path, OFFICIAL).temporal_upscaler is None
    assert found(version, tmp_path, TEMPORAL).temporal_upscaler == tmp_path / TEMPORAL
    assert found(version, tmp_path).upscaler == tmp_path / OFFICIAL


@pytest.mark.parametrize("name", [name for name in VERSIONS if name not in TWO_PASSES])
def test_a_release_that_no_upscaler_was_made_for_takes_only_one_that_is_named(tmp_path, name):
    version = VERSIONS[name]
    assert version.upscaler is temporal_upscaler_of(version) is None
    sources = found(version, tmp_path, OFFICIAL, TEMPORAL, "latent_upsampler/")
    assert (sources.upscaler, sources.temporal_upscaler) == (None, None)
    named = {"upscaler": tmp_path / OFFICIAL, "temporal_upscaler": tmp_path / TEMPORAL}
    sources = found(version, tmp_path, **named)
    assert (sources.upscaler, sources.temporal_upscaler) == (named["upscaler"], named["temporal_upscaler"])


@pytest.mark.parametrize(
    ("names", "option"),
    [
        (("a-spatial-upscaler.safetensors", "b-spatial-upscaler.safetensors"), "--upscaler"),
        (("a-spatial-upscaler.safetensors", "latent_upsampler/"), "--upscaler"),
        ((TEMPORAL, "ltxv-temporal-upscaler-0.9.7.safetensors"), "--temporal-upscaler"),
    ],
)
def test_of_several_upscalers_one_is_to_be_chosen(tmp_path, names, option):
    assert option in OPTIONS.values()
    listed = ", ".join(sorted(name.removesuffix("/") for name in names))
    with pytest.raises(LtxError, match=f"holds {listed} - choose one with {option}$"):
        found(VERSIONS[RELEASE], tmp_path, *names)
    argument = option.removeprefix("--").replace("-", "_")
    sources = found(VERSIONS[RELEASE], tmp_path, **{argument: tmp_path / names[0]})
    assert getattr(sources, argument) == tmp_path / names[0]


def test_an_upscaler_that_is_not_there_is_missed(tmp_path):
    for option in ("upscaler", "temporal_upscaler"):
        with pytest.raises(LtxError, match=r"none\.safetensors not found - check the path"):
            found(VERSIONS[RELEASE], tmp_path, **{option: tmp_path / "none.safetensors"})


def test_a_folder_has_an_upscaler_once_it_is_whole(tmp_path):
    made(tmp_path, OFFICIAL, "latent_upsampler/")
    assert not has_upscaler(tmp_path, "spatial") and not has_upscaler(tmp_path, "temporal")
    save_file({"initial_conv.weight": torch.zeros(2)}, tmp_path / "any-spatial-upscaler.safetensors")
    assert has_upscaler(tmp_path, "spatial") and not has_upscaler(tmp_path, "temporal")


def module(channels: int = 8, mid_channels: int = 32, blocks: int = 1, dims: int = 3, **scaled: bool):
    """Returns diffusers' model, with the same weights for the same sizes."""
    torch.manual_seed(0)
    return LTXLatentUpsamplerModel(channels, mid_channels, blocks, dims, **{**SPACE, **scaled}).eval()


def write(path: Path, model: torch.nn.Module, config: dict | None) -> Path:
    save_file(model.state_dict(), path, None if config is None else {"config": json.dumps(config)})
    return path


def words(channels: int, mid_channels: int, blocks: int, dims: int, **scaled: bool) -> dict:
    sizes = {"in_channels": channels, "mid_channels": mid_channels, "num_blocks_per_stage": blocks, "dims": dims}
    return sizes | {**SPACE, **scaled}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("scaled", [SPACE, TIME, {"temporal_upsample": True}], ids=["space", "time", "both"])
def test_sizes_are_read_off_shapes_where_there_is_no_header(scaled, dims):
    shapes = shapes_of(module(12, 64, 3, dims, **scaled).state_dict().items())
    assert upsampler_part(stored_shapes(shapes)) == words(12, 64, 3, dims, **scaled)


def test_what_a_header_leaves_out_is_what_the_official_class_takes(tmp_path):
    path = write(tmp_path / "x.safetensors", module(), {"mid_channels": 64})
    assert open_upscaler(path, "").config == words(4, 64, 4, 2)


@pytest.mark.parametrize("config", [None, {}, {"format": "pt"}, {"transformer": {}}])
def test_a_header_that_says_nothing_of_it_is_none(tmp_path, config):
    path = write(tmp_path / "x.safetensors", module(dims=2), config)
    assert open_upscaler(path, "").config == words(8, 32, 1, 2)


@pytest.mark.parametrize("name", TWO_PASSES)
def test_random_weights_are_an_upscaler_with_its_header(tmp_path, name):
    version = tiny(name)
    write_random_weights(version, tmp_path)
    with safe_open(tmp_path / version.upscaler, "pt") as file:
        header = json.loads(file.metadata()["config"])
        assert {file.get_tensor(one).dtype for one in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert header == upsampler_header(version)
    assert upsampler_config(header).blocks_per_stage == version.upsampler_size.blocks_per_stage
    state = load_file(tmp_path / version.upscaler)
    module(header["in_channels"], header["mid_channels"], header["num_blocks_per_stage"]).load_state_dict(state)


FIELDS = {
    "dims 4": ({"dims": 4}, "upsampler.dims is 4, not 2 or 3"),
    "dims true": ({"dims": True}, "upsampler.dims is True, not 2 or 3"),
    "mid 48": ({"mid_channels": 48}, "upsampler.mid_channels is 48, not a multiple of 32"),
    "mid 0": ({"mid_channels": 0}, "upsampler.mid_channels is 0, not an integer from 1 to 65536"),
    "no blocks": ({"num_blocks_per_stage": 0}, "upsampler.num_blocks_per_stage is 0, not an integer from"),
    "a word": ({"spatial_upsample": "false"}, "upsampler.spatial_upsample is 'false', not true or false"),
    "another class": ({"_class_name": "Other"}, "upsampler._class_name is 'Other', but only 'LatentUpsampler'"),
    "both": ({"temporal_upsample": True}, "scales both space and time, which no release does - give a spatial or"),
    "neither": ({"spatial_upsample": None}, "scales neither space nor time, which no release does - give"),
    "frames alone": (TIME | {"dims": 2}, "doubles the frame rate with dims 2, but that needs dims 3 - use"),
    "endless": ({"num_blocks_per_stage": 60_000}, "tensors for 60000 blocks in each stage - give a complete upscaler"),
    "narrower": ({"mid_channels": 64}, "wrongly shaped tensors ("),
    "deeper": ({"num_blocks_per_stage": 2}, "upsampler lacks 16 tensors (res_blocks.1.conv1.weight"),
    "channels": ({"in_channels": 12}, "takes 12 latent channels, but the transformer has 8 - give the upscaler that"),
    "temporal": (TIME, "is a temporal upscaler, given as a spatial one - give it with --temporal-upscaler"),
}


def refusal(release: Exported, folder: Path, **sources: Path) -> str:
    with pytest.raises(LtxError) as refused:
        export(release.version, replace(release.sources, **sources), folder / "engines" / RELEASE)
    assert not (folder / "engines").exists()
    message = str(refused.value)
    assert message.isprintable() and " - " in message
    return message


@pytest.mark.parametrize("case", FIELDS)
def test_a_header_that_cannot_be_or_does_not_fit_is_refused_by_the_field(exported, tmp_path, case):
    changes, expected = FIELDS[case]
    path = write(tmp_path / "x.safetensors", module(), words(8, 32, 1, 3) | changes)
    assert expected in refusal(exported(RELEASE), tmp_path, upscaler=path)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
@pytest.mark.parametrize("header", [True, False], ids=["header", "headerless"])
def test_a_tensor_too_few_too_many_or_of_another_shape_is_refused_by_its_name(exported, tmp_path, header, damage):
    state, name = module().state_dict(), "post_upsample_res_blocks.0.norm2.weight"
    values = state.pop(name) if damage == "missing" else state[name]
    if damage != "missing":
        state |= {f"{name}.extra": values.clone()} if damage == "unexpected" else {name: torch.ones(33)}
    save_file(state, tmp_path / "x.safetensors", {"config": json.dumps(words(8, 32, 1, 3))} if header else None)
    wrong = {
        "missing": "lacks 1 tensor",
        "unexpected": "has 1 unexpected tensor",
        "misshapen": "has 1 wrongly shaped tensor",
    }
    told = refusal(exported(RELEASE), tmp_path, upscaler=tmp_path / "x.safetensors")
    assert told.startswith(f"upsampler {wrong[damage]} ({name}")


@pytest.mark.parametrize("name", ["initial_conv.weight", "upsampler.0.weight"])
@pytest.mark.parametrize("shape", [None, (), (5,), (96, 32, 3, 3), (0, 32, 3, 3)])
def test_shapes_of_no_upscaler_are_refused(name, shape):
    shapes = shapes_of(module().state_dict().items()) | {name: shape}
    tensors = stored_shapes({key: one for key, one in shapes.items() if one is not None})
    if (name, shape) == ("initial_conv.weight", (96, 32, 3, 3)):
        assert upsampler_part(tensors)["dims"] == 2
        return
    with pytest.raises(LtxError, match=f"^{name} (is missing|is of shape|has shape).* - give a complete"):
        upsampler_part(tensors)


@pytest.mark.parametrize("wrong", ["checkpoint", "text_encoder", "spatial as temporal"])
def test_another_file_is_refused_by_what_it_holds(exported, tmp_path, wrong):
    release = exported(RELEASE)
    if wrong == "spatial as temporal":
        told = refusal(release, tmp_path, temporal_upscaler=release.sources.upscaler)
        assert told.endswith("is a spatial upscaler, given as a temporal one - give it with --upscaler")
    else:
        told = refusal(release, tmp_path, upscaler=getattr(release.sources, wrong))
        assert "holds no upsampler (it holds " in told


@pytest.mark.parametrize("kind", ["file", "headerless", "folder", "pipeline"])
def test_an_upscaler_is_taken_in_every_layout_for_space_and_for_time(exported, tmp_path, kind):
    """Weights keep the file's precision, and the graph computes what diffusers computes."""
    release, models = exported(RELEASE), {"upscaler": module(), "temporal_upscaler": module(**TIME)}
    given = {}
    for option, model in models.items():
        scaled = SPACE if option == "upscaler" else TIME
        if kind in ("file", "headerless"):
            config = words(8, 32, 1, 3, **scaled) if kind == "file" else None
            given[option] = write(tmp_path / f"{option}.safetensors", model, config)
        else:
            folder = tmp_path / option / ("latent_upsampler" if kind == "pipeline" else "")
            model.save_pretrained(folder)
            given[option] = tmp_path / option
    manifest = export(release.version, replace(release.sources, **given), tmp_path / RELEASE)
    names = [name for name in manifest.components if "upsampler" in name]
    assert names == ["upsampler", "temporal_upsampler"]
    assert [manifest.components[name].signature for name in names] == [upsampler(8), temporal_upsampler(8)]
    assert [manifest.components[name].weights for name in names] == [(f"{name}.safetensors",) for name in names]
    checkpoint = load_file(release.sources.checkpoint)
    mean, deviation = (
        checkpoint[f"vae.per_channel_statistics.{one}-of-means"].float()[:, None, None, None] for one in ("mean", "std")
    )
    latents = torch.randn(2, 8, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    for name, model in zip(names, models.values(), strict=True):
        with torch.no_grad():
            expected = (model(latents * deviation + mean) - mean) / deviation
        with open_session(find(open_engines(tmp_path / RELEASE), name, "cpu")) as session:
            assert distance(session.run({"latents": latents.numpy()})["upsampled"], expected) <= 1e-5
