"""Which upscalers a download fetches: the spatial one with its release, the temporal one only if requested."""

import pytest
import torch
from fakes.hub_server import RELEASE, UPSCALER, bring, found, lent_hub
from safetensors.torch import save

from ltx_export.sources.download import download, files_of
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import VERSIONS

TEMPORAL = "ltxv-temporal-upscaler-0.9.8.safetensors"
hub = pytest.fixture(lent_hub)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "ltxv-temporal-upscaler-0.9.7.safetensors") for name in ("0.9.7-dev", "0.9.7-distilled")),
        *((name, TEMPORAL) for name in ("0.9.8-2b-distilled", "0.9.8-13b-dev", "0.9.8-13b-distilled")),
    ],
)
def test_the_temporal_upscaler_is_the_one_published_with_the_spatial_one(name, expected):
    version = VERSIONS[name]
    without, with_it = (
        {one.name for one in files_of(version, "Q8_0", temporal_upscaler=flag)} for flag in (False, True)
    )
    assert with_it - without == {expected}
    (file,) = (one for one in files_of(version, "Q8_0", temporal_upscaler=True) if one.name == expected)
    assert (file.repository, file.target) == ("Lightricks/LTX-Video", expected)


@pytest.mark.parametrize("name", [one.name for one in VERSIONS.values() if one.repository and one.upscaler is None])
def test_a_release_without_upscalers_has_no_temporal_one(name, tmp_path):
    with pytest.raises(LtxError, match=f"no upscalers were published for {name} - leave --temporal-upscaler out"):
        download(VERSIONS[name], tmp_path / "weights", "Q8_0", print, temporal_upscaler=True)
    assert not (tmp_path / "weights").exists()


def test_a_temporal_upscaler_is_fetched_only_if_it_is_asked_for(hub, tmp_path):
    content = hub.publish("tests/video", TEMPORAL, b"doubles the frame rate").content
    bring(tmp_path)
    assert TEMPORAL not in found(tmp_path) and UPSCALER in found(tmp_path)
    download(RELEASE, tmp_path, "Q8_0", print, temporal_upscaler=True)
    assert found(tmp_path)[TEMPORAL] == content


@pytest.mark.parametrize("name", [UPSCALER, "my-spatial-upscaler.safetensors", "latent_upsampler/model.safetensors"])
def test_an_upscaler_that_an_export_would_take_is_not_fetched(hub, tmp_path, name):
    """A damaged file is not an upscaler, unless it has the official name: a download would overwrite it."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(save({"initial_conv.weight": torch.zeros(2)}))
    only_missing(tmp_path)
    assert (UPSCALER in found(tmp_path)) == (name == UPSCALER)
    (tmp_path / name).write_bytes(b"damaged")
    only_missing(tmp_path)
    assert found(tmp_path)[UPSCALER] == (b"damaged" if name == UPSCALER else hub.contents[UPSCALER])


def test_a_temporal_upscaler_that_is_there_is_not_fetched(hub, tmp_path):
    """It is not taken for the spatial one either, which is fetched."""
    mine = save({"initial_conv.weight": torch.zeros(2)})
    (tmp_path / "my-temporal-upscaler.safetensors").write_bytes(mine)
    only_missing(tmp_path, temporal_upscaler=True)
    assert TEMPORAL not in found(tmp_path)
    assert found(tmp_path)[UPSCALER] == hub.contents[UPSCALER]


def only_missing(folder, **options: bool) -> None:
    download(RELEASE, folder, "Q8_0", print, only_missing=True, **options)
