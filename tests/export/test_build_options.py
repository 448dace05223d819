"""ExportOptions for the components of an export, and the sigmas that a header allows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples.tiny import Exported, export

from ltx_export.build import ExportOptions
from ltx_export.networks.header_fields import allowed_sigmas
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session
from ltx_runtime.spec.components import OPTIONAL, transformer
from ltx_runtime.spec.presets import DISTILLED_SIGMAS
from ltx_runtime.spec.versions import VERSIONS

DISTILLED, ONE_PASS = "0.9.8-13b-distilled", "0.9.6-distilled"
FIELD = "allowed_inference_steps"


def made(release: Exported, folder: Path, options: ExportOptions, **sources: object) -> tuple[object, list[str]]:
    """Exports a version folder with other options or sources; returns its manifest and the reported lines."""
    lines: list[str] = []
    manifest = export(
        release.version, replace(release.sources, **sources), folder, report=lines.append, options=options
    )
    assert open_engines(folder).manifest == manifest
    return manifest, lines


@pytest.mark.parametrize("name", VERSIONS)
def test_a_transformer_can_skip_layers_exactly_if_a_pass_of_its_release_does(exported, name):
    release = exported(name)
    layers = release.version.transformer.layers if VERSIONS[name].uses_stg else 0
    size = release.version.transformer
    expected = transformer(size.channels, size.text_channels, size.width, layers)
    assert release.manifest.components["transformer"].signature == expected


def test_a_transformer_can_skip_layers_without_a_preset_that_does_if_it_is_asked_to(exported, tmp_path):
    release = exported(DISTILLED)
    size = release.version.transformer
    assert not release.version.uses_stg
    manifest, _ = made(release, tmp_path / "out", ExportOptions(("fp32",), stg=True))
    signature = manifest.components["transformer"].signature
    sizes = size.channels, size.text_channels, size.width
    assert signature == transformer(*sizes, size.layers)
    assert release.manifest.components["transformer"].signature == transformer(*sizes)
    with open_session(find(open_engines(tmp_path / "out"), "transformer", "cpu")) as session:
        assert session.component.inputs[-1].name == "skip_mask"


def test_where_a_preset_skips_layers_asking_for_it_changes_nothing(exported, tmp_path):
    release = exported("0.9.5")
    manifest, _ = made(release, tmp_path / "out", ExportOptions(("fp32",), stg=True))
    assert manifest.components["transformer"] == release.manifest.components["transformer"]


@pytest.mark.parametrize("name", ["upsampler", "vae_encoder"])
def test_a_component_that_is_left_out_leaves_no_file(exported, tmp_path, name):
    release = exported(DISTILLED)
    assert name in release.manifest.components and name in OPTIONAL
    manifest, _ = made(release, tmp_path / "out", ExportOptions(("fp32",), without=(name,)))
    assert manifest.components.keys() == release.manifest.components.keys() - {name}
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(name)]


def told_of_the_second_pass(lines: list[str]) -> list[str]:
    return [line for line in lines if "--single-pass" in line]


def test_a_second_pass_without_an_upscaler_is_told_in_one_line_with_what_to_do(exported, tmp_path):
    release = exported(DISTILLED)
    manifest, lines = made(release, tmp_path / "out", ExportOptions(("fp32",)), upscaler=None)
    assert "upsampler" not in manifest.components
    (line,) = told_of_the_second_pass(lines)
    assert line.isprintable() and line.startswith(f"{DISTILLED} has a second pass, but there is no upscaler: ltx-run")
    assert line.endswith(f"give --upscaler {release.version.upscaler} and export again")
    _, lines = made(release, tmp_path / "out", ExportOptions(("fp32",), without=("upsampler",)))
    assert told_of_the_second_pass(lines)[0].endswith("leave --without upsampler out and export again")


@pytest.mark.parametrize("name", [DISTILLED, ONE_PASS])
def test_nothing_is_told_where_no_upscaler_is_missing(exported, tmp_path, name):
    _, lines = made(exported(name), tmp_path / "out", ExportOptions(("fp32",)))
    assert told_of_the_second_pass(lines) == []


def with_field(release: Exported, folder: Path, value: object) -> Path:
    with safe_open(release.sources.checkpoint, "pt") as file:
        header = json.loads(file.metadata()["config"])
    metadata = {"config": json.dumps(header | {FIELD: value})}
    save_file(load_file(release.sources.checkpoint), folder / "changed.safetensors", metadata)
    return folder / "changed.safetensors"


def test_the_noise_levels_of_a_header_win_over_those_of_the_release(exported, tmp_path):
    release = exported(ONE_PASS)
    assert release.manifest.allowed_sigmas == VERSIONS[ONE_PASS].allowed_sigmas == DISTILLED_SIGMAS
    given = [1, 0.99, 0.5, 1e-4]
    manifest, _ = made(
        release, tmp_path / "out", ExportOptions(("fp32",)), checkpoint=with_field(release, tmp_path, given)
    )
    assert manifest.allowed_sigmas == (1.0, 0.99, 0.5, 1e-4)
    assert all(type(sigma) is float for sigma in manifest.allowed_sigmas)


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("header", [{}, {FIELD: None}])
def test_a_silent_header_allows_what_the_release_does(name, header):
    version = VERSIONS[name]
    assert allowed_sigmas(header, version.allowed_sigmas) == version.allowed_sigmas
    assert bool(version.allowed_sigmas) == ("distilled" in name)


@pytest.mark.parametrize(
    "given", [[], [0.0], [1.5], [-1.0], [True], ["1.0"], [[1.0]], 1.0, "1.0", {"1.0": 1}, [1.0, None], [float("nan")]]
)
def test_noise_levels_that_are_none_are_refused_by_the_field(given):
    with pytest.raises(LtxError) as refused:
        allowed_sigmas({FIELD: given}, ())
    assert f"{FIELD} is {given!r}, not a list of numbers above 0 and at most 1 - use an" in str(refused.value)


def test_a_malformed_field_is_refused_before_anything_is_written(exported, tmp_path):
    release = exported(ONE_PASS)
    with pytest.raises(LtxError, match=FIELD):
        made(release, tmp_path / "out", ExportOptions(), checkpoint=with_field(release, tmp_path, [2.0]))
    assert not (tmp_path / "out").exists()
