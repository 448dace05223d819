"""A version folder on the hub: what is fetched is what was published, byte for byte, or nothing."""

import json
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.hub_server import Fault, lent_hub
from fakes.stages import engines_of
from samples.demo import folder_with_demo

from ltx_export import cli as exporter
from ltx_export.publish import publish
from ltx_runtime import Pipeline, packages
from ltx_runtime.cli import main as runner
from ltx_runtime.errors import LtxError
from ltx_runtime.files import locked
from ltx_runtime.folder.manifest import MANIFEST, Engines, describe_files, write_manifest
from ltx_runtime.folder.reading import open_engines, read_manifest
from ltx_runtime.hub.folder import STATE
from ltx_runtime.hub.version_folder import fetch_version
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.trust.made_here import record_link

REPOSITORY = "tests/fox"
SPIECE = Path(__file__).parent / "golden" / "t5" / "spiece.model"
LARGE, LINKED = "transformer.data", "vae_decoder.data"
Usage = namedtuple("Usage", "total used free")
hub = pytest.fixture(lent_hub)
# huggingface_hub uploads with an argument that the HTTP library has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def exported(tmp_path) -> Engines:
    """A version folder with a large file, an empty one, an engine, and a file that lies elsewhere."""
    folder, elsewhere = tmp_path / "exported" / "demo", tmp_path / "elsewhere"
    for place in (folder / "portable-tensorrt_rtx-1.7", elsewhere):
        place.mkdir(parents=True)
    shutil.copy(SPIECE, folder)
    manifest = engines_of(VERSIONS["demo"], SPIECE).manifest
    names = {name for entry in manifest.components.values() for name in entry.files()}
    linked = {LINKED: str(elsewhere)}
    places = {name: Path(linked.get(name, folder)) / name for name in names} | {SPIECE.name: folder / SPIECE.name}
    for number, name in enumerate(sorted(names)):
        places[name].write_bytes(bytes([number]) * (50_000 if name == LARGE else 2000 * (number % 3)))
    (folder / "portable-tensorrt_rtx-1.7" / "transformer.bf16.engine").write_bytes(b"engine")
    files = describe_files(places)
    write_manifest(folder, replace(manifest, linked=linked, files=files))
    record_link(places[LINKED], files[LINKED].size_bytes, files[LINKED].checksum)
    return open_engines(folder)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "engines"


def published(exported):
    publish(exported, REPOSITORY, lambda line: None)


def fetched(root, repository=REPOSITORY):
    """Fetches the repository, and returns the folder and the lines that were reported."""
    lines = []
    return fetch_version(repository, root, lines.append), lines


def refusal(root, repository=REPOSITORY):
    """Returns the sentence with which fetching is refused; nothing appears in the root under a name that is used."""
    before = {path: path.is_dir() or path.read_bytes() for path in root.rglob("*") if ".tests--" not in str(path)}
    with pytest.raises(LtxError) as refused:
        fetched(root, repository)
    after = {path: path.is_dir() or path.read_bytes() for path in root.rglob("*") if ".tests--" not in str(path)}
    assert after == before
    sentence = str(refused.value)
    assert "\n" not in sentence and " - " in sentence
    return sentence


def changed(hub, **changes):
    """Commits a manifest in which top-level entries are changed by functions."""
    data = json.loads(hub.states[-1][f"{REPOSITORY}/{MANIFEST}"].content)
    for name, change in changes.items():
        data[name] = change(data[name])
    hub.publish(REPOSITORY, MANIFEST, json.dumps(data).encode(), in_lfs=False)


def test_what_is_fetched_is_what_was_published_without_engines_and_links(hub, exported, root):
    published(exported)
    folder, _ = fetched(root)
    assert folder == root / "demo"
    engines = open_engines(folder)  # checks every file of the manifest
    assert engines.manifest == replace(exported.manifest, linked={})
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {*exported.manifest.files, MANIFEST}
    for name in exported.manifest.files:
        assert (folder / name).read_bytes() == exported.manifest.place(exported.folder, name).read_bytes(), name
    assert [path.name for path in root.iterdir()] == ["demo"]


def test_a_fetched_version_makes_the_video_of_the_exported_one(hub, root):
    exported = open_engines(folder_with_demo() / "engines" / "demo")
    published(exported)
    made = []
    for folder in (exported.folder, fetched(root)[0]):
        with Pipeline(folder, backend="cpu", note=lambda note: None) as pipe:
            made.append(np.stack(list(pipe("a fox", height=64, width=96, num_frames=9, seed=7))))
    np.testing.assert_array_equal(*made)


def test_publishing_is_one_commit_and_uploads_nothing_that_is_there(hub, exported):
    before = len(hub.states)
    published(exported)
    assert len(hub.states) == before + 1
    assert any(one.name for one in hub.asked("PUT", "storage"))
    hub.requests.clear()
    published(exported)
    assert hub.asked("PUT", "storage") == []


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository_is_private_if_it_is_asked_for(hub, exported, private):
    publish(exported, REPOSITORY, lambda line: None, private=private)
    assert hub.repositories == {REPOSITORY: private}


def test_an_interrupted_download_goes_on_and_shows_nothing_before_it_is_whole(hub, exported, root):
    published(exported)
    hub.faults = [Fault(LARGE, break_at=20_480)]
    assert "is kept - run the command again to resume" in refusal(root)
    assert [path.name for path in root.iterdir()] == [".tests--fox.fetched"]
    hub.faults.clear()
    hub.requests.clear()
    folder, _ = fetched(root)
    assert open_engines(folder).manifest.files == exported.manifest.files
    starts = [one.start for one in hub.asked("GET", "storage") if one.name == LARGE]
    assert starts == [20_480]
    assert {one.name for one in hub.asked("GET")} <= {LARGE} | {
        name for name, entry in exported.manifest.files.items() if name > LARGE or not entry.size_bytes
    }


def test_a_folder_that_is_there_is_checked_and_not_fetched_again(hub, exported, root):
    published(exported)
    folder, _ = fetched(root)
    hub.requests.clear()
    again, lines = fetched(root)
    assert again == folder and lines[-1] == f"{folder} is this export already, and its files are intact"
    assert {one.name for one in hub.requests} == {MANIFEST}
    assert [path.name for path in root.iterdir()] == ["demo"]
    (folder / LARGE).write_bytes(b"x" * 50_000)
    assert f"{LARGE} has changed since the export" in refusal(root)


def test_another_export_of_the_same_version_is_not_replaced(hub, exported, root):
    published(exported)
    shutil.copytree(exported.folder, root / "demo")
    other = replace(exported.manifest, files={**exported.manifest.files, SPIECE.name: replace(
        exported.manifest.files[SPIECE.name], checksum="0" * 64)})  # fmt: skip
    write_manifest(root / "demo", other)
    assert "demo is another export of demo - move it away, or add --engines OTHER" in refusal(root)
    assert [path.name for path in root.iterdir()] == ["demo"]


def test_a_newer_state_of_the_repository_takes_what_it_can_of_an_interrupted_older_one(hub, exported, root):
    published(exported)
    hub.faults = [Fault(LARGE, break_at=20_480)]
    refusal(root)
    hub.faults.clear()
    smaller = replace(exported.manifest, components={
        name: entry for name, entry in exported.manifest.components.items() if name != "vae_encoder"
    })  # fmt: skip
    kept = {smaller.tokenizer, *(name for entry in smaller.components.values() for name in entry.files())}
    smaller = replace(smaller, files={name: exported.manifest.files[name] for name in kept})
    publish(Engines(exported.folder, smaller), REPOSITORY, lambda line: None)
    folder, _ = fetched(root)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {*kept, MANIFEST}


@pytest.mark.parametrize("name", [LARGE, SPIECE.name, MANIFEST])
def test_bytes_that_are_not_the_hub_s_are_not_kept(hub, exported, root, name):
    published(exported)
    content = hub.states[-1][f"{REPOSITORY}/{name}"].content
    hub.send_instead[name] = bytes([content[0] ^ 1]) + content[1:]
    assert f"{name} arrived with a wrong checksum and was deleted" in refusal(root)


@pytest.mark.parametrize("content", [b"x" * 50_000, b"x"], ids=["of the same size", "shorter"])
def test_a_file_that_is_not_the_manifest_s_is_refused(hub, exported, root, content):
    published(exported)
    hub.publish(REPOSITORY, LARGE, content)
    sentence = refusal(root)
    assert f"{REPOSITORY} is not what its manifest says: " in sentence and LARGE in sentence


OUTSIDE = ("../x", "/etc/x", "a/../../x", "a\\x", "C:x", ".cache/x", "a/.x", "a//x", "./x", "a\0", MANIFEST)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_cannot_name_files_outside_its_folder(hub, exported, root, name):
    published(exported)
    changed(hub, files=lambda files: files | {name: {"size_bytes": 0, "checksum": "0" * 64}})
    hub.requests.clear()
    assert repr(name) in refusal(root)
    assert {one.name for one in hub.requests} == {MANIFEST}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": lambda _: "../../x"}, "unknown version '../../x'"),
        ({"version": lambda _: "9.9"}, "unknown version '9.9' - update this program"),
        ({"format": lambda _: 99}, "manifest.json has another format than 6 - update this program"),
        ({"components": lambda _: None}, "manifest.json is damaged"),
        ({"linked": lambda _: {LARGE: "/etc"}}, f"names {LARGE!r}, which is outside its folder - do not use it"),
    ],
    ids=["outside", "unknown", "format", "damaged", "linked"],
)
def test_a_manifest_that_this_release_does_not_read_is_refused(hub, exported, root, changes, told):
    published(exported)
    changed(hub, **changes)
    sentence = refusal(root)
    assert REPOSITORY in sentence and told in sentence
    assert list(root.iterdir()) == []


def test_a_repository_that_is_none_is_refused(hub, root):
    assert "tests/none does not exist or is private - " in refusal(root, "tests/none")
    hub.publish("tests/other", "README.md", b"a model")
    assert "tests/other has no file manifest.json: it holds no version folder - " in refusal(root, "tests/other")
    for name in ("", "fox", "a b", "a/b/c", "../x", "--"):
        assert f"{name!r} is not the name of a repository - write it as OWNER/NAME" in refusal(root, name)
    assert not root.exists()


def test_space_is_looked_for_before_anything_large_is_fetched(hub, exported, root, monkeypatch):
    published(exported)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 0, 50_000))
    assert "more, but only 0.05 MB are free - free some space" in refusal(root)
    assert {one.name for one in hub.asked("GET")} == {MANIFEST}


def test_only_one_download_at_a_time_writes(hub, exported, root):
    published(exported)
    lock = root / ".tests--fox.fetched" / STATE
    lock.mkdir(parents=True)
    with locked(lock / "ltx-export.lock", "test"):
        assert "another download is writing" in refusal(root)


def test_a_hub_that_is_away_or_refuses_is_told(hub, exported, root):
    hub.faults = [Fault("create", status=403), Fault("create", status=401)]
    with pytest.raises(LtxError, match=r"tests/fox may not be written to \(status 403\) - set HF_TOKEN to a token"):
        published(exported)
    hub.faults = [Fault("main", method="POST", status=403)]
    with pytest.raises(LtxError, match="may not be written to"):
        published(exported)
    hub.faults.clear()
    assert f"{REPOSITORY}/{MANIFEST}" not in hub.states[-1]
    hub.close()
    assert "cannot be reached or is busy" in refusal(root)
    with pytest.raises(LtxError, match=r"cannot be reached or is busy .* - run the command again"):
        published(exported)


def called(monkeypatch, capsys, program, main, *arguments):
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    captured = capsys.readouterr()
    return left.value.code or 0, captured.out, captured.err


def test_both_programs_tell_what_comes_next(hub, exported, root, monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, "ltx-export", exporter.main, "publish", exported.folder, REPOSITORY)
    assert (code, out.splitlines()[-1].endswith(f"complete - get it with: ltx-run --fetch {REPOSITORY}")) == (0, True)
    given = ("--fetch", REPOSITORY, "--engines", root)
    code, out, err = called(monkeypatch, capsys, "ltx-run", runner.main, *given)
    assert (code, out.splitlines()[-1]) == (0, f"{root / 'demo'} is complete"), err
    assert read_manifest(root / "demo").version == "demo"
    code, _, err = called(monkeypatch, capsys, "ltx-run", runner.main, "a fox", *given)
    assert (code, err) == (2, "error: --fetch only downloads a version and makes no video - leave the prompt out\n")
    code, _, err = called(monkeypatch, capsys, "ltx-export", exporter.main, "publish", exported.folder, "fox")
    assert (code, err) == (2, "error: 'fox' is not the name of a repository - write it as OWNER/NAME\n")


def test_what_the_hub_needs_is_named_where_it_is_missing(exported, root, monkeypatch, capsys):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "huggingface_hub" else object())
    for program, main, given in (
        ("ltx-export", exporter.main, ("publish", exported.folder, REPOSITORY)),
        ("ltx-export", exporter.main, ("download", "0.9.5")),
        ("ltx-run", runner.main, ("--fetch", REPOSITORY)),
    ):
        code, _, err = called(monkeypatch, capsys, program, main, *given)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("error: huggingface_hub not installed - run: ")
        assert "huggingface-hub>=" in err and "torch" not in err.partition("run: ")[2]
