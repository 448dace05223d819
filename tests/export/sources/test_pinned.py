"""Files whose checksums are known beside the hub: a hub that has others is refused before anything is fetched."""

import hashlib
import re
from dataclasses import replace

import pytest
from fakes.hub_server import RELEASE, UPSCALER, bring, found, lent_hub

from ltx_export.sources.download import PINNED
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import VERSIONS

OFFICIAL = VERSIONS[RELEASE.name].repository
hub = pytest.fixture(lent_hub)


def test_what_is_pinned_is_a_checksum_of_a_file_that_a_release_has():
    files = {(one.repository, name) for one in VERSIONS.values() for name in (one.checkpoint, one.upscaler)}
    assert PINNED and PINNED.keys() <= files
    assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in PINNED.values())


@pytest.mark.parametrize("other", [RELEASE.checkpoint, UPSCALER])
def test_a_hub_with_another_file_than_the_published_one_is_refused_and_nothing_is_fetched(
    hub, tmp_path, monkeypatch, other
):
    for name in (RELEASE.checkpoint, UPSCALER):
        stored = hub.publish(OFFICIAL, name, hub.contents[name])
        if name != other:
            monkeypatch.setitem(PINNED, (OFFICIAL, name), stored.checksum)
    with pytest.raises(
        LtxError, match=f"{other} has SHA-256 .{{64}}, but .* {PINNED[OFFICIAL, other]} - check HF.* --weights FILE"
    ):
        bring(tmp_path, release=replace(RELEASE, repository=OFFICIAL))
    assert found(tmp_path) == {}


def test_the_published_files_are_fetched(hub, tmp_path, monkeypatch):
    for name in (RELEASE.checkpoint, UPSCALER):
        hub.publish(OFFICIAL, name, hub.contents[name])
        monkeypatch.setitem(PINNED, (OFFICIAL, name), hashlib.sha256(hub.contents[name]).hexdigest())
    bring(tmp_path, release=replace(RELEASE, repository=OFFICIAL))
    assert found(tmp_path)[UPSCALER] == hub.contents[UPSCALER]
