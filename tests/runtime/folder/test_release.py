"""The release of a version folder has the sizes of the graph that is in it, whatever the table says of the release."""

from dataclasses import replace

import pytest
from fakes.requests import SMALL
from fakes.stages import CHANNELS, TEXT_CHANNELS, WIDTH, engines_of

from ltx_runtime import Pipeline
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.release import release_of
from ltx_runtime.spec.versions import VERSIONS, Version

STG_RELEASES = ("0.9.0", "0.9.5", "0.9.7-dev", "demo")


def deep(name: str, layers: int) -> Version:
    version = VERSIONS[name]
    return replace(version, transformer=replace(version.transformer, layers=layers))


@pytest.mark.parametrize("layers", [1, 5, 28, 60])
@pytest.mark.parametrize("name", STG_RELEASES)
def test_sizes_are_those_of_the_ports_and_all_else_is_the_releases(spiece, name, layers):
    release = release_of(engines_of(deep(name, layers), spiece).manifest)
    size = release.transformer
    assert (size.layers, size.width, size.channels, size.text_channels) == (layers, WIDTH, CHANNELS, TEXT_CHANNELS)
    assert replace(release, transformer=VERSIONS[name].transformer) == VERSIONS[name]


def test_a_folder_whose_graph_skips_nothing_has_the_releases_number_of_blocks(spiece):
    version = VERSIONS["0.9.8-2b-distilled"]
    assert release_of(engines_of(version, spiece).manifest).transformer.layers == version.transformer.layers
    lacking = engines_of(version, spiece, lacking=("transformer",))
    assert release_of(lacking.manifest) == version


@pytest.mark.parametrize("layers", [1, 5, 40])
def test_blocks_to_skip_are_checked_against_the_graph(spiece, diary, layers):
    with Pipeline(engines_of(deep("0.9.5", layers), spiece), backend="fake") as pipe:
        for block in (layers, 1000, -1):
            with pytest.raises(LtxError, match=f"skip-blocks must be from 0 to {layers - 1}; got {block} - use "):
                pipe("a fox", **SMALL, skip_blocks=(block,))
        assert list(pipe("a fox", **SMALL, skip_blocks=(layers - 1,)))


def test_a_preset_that_skips_a_block_that_the_graph_lacks_is_told_before_anything_runs(spiece, diary):
    with Pipeline(engines_of(deep("0.9.5", 12), spiece), backend="fake") as pipe:
        with pytest.raises(LtxError, match="skip-blocks must be from 0 to 11; got 19 - use 11"):
            pipe("a fox", **SMALL)
        assert diary == []
        assert list(pipe("a fox", **SMALL, stg_scale=0.0))
