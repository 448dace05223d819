"""Laws of what a manifest may list: plain names, the same on every system, of ordinary files inside the folder."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_runtime.errors import LtxError
from ltx_runtime.trust.listed import MOST_FILES, check_inside, check_link, check_names, ordinary_size, read_small
from ltx_runtime.trust.made_here import record_link

MANIFEST = "manifest.json"
OUTSIDE = ["/etc/passwd", "..", "../spiece.model", "a/../../b", "a/..", "/", ".", ""]
ODD = [
    "a//b",
    "./a",
    "a/",
    "a\\b",
    "..\\b",
    "C:/a",
    "C:a",
    "a\0b",
    "a\nb",
    "a\x1b[31m",
    "a\u202eb",
    "a?",
    "a*",
    "\ud800",
]
FOR_WINDOWS = ["NUL", "con.onnx", "a/COM1.bin", "LPT9", "aux .x", "CONIN$", "a. ", "a.", "b /c", "com\u00b9"]
HIDDEN = [".a", "a/.b", ".cache/x", "a/.lock"]
LONG = ["a" * 256, "\u00e4" * 128, "/".join(["a" * 200] * 6)]
FINE = [
    "a",
    "transformer.fp32.onnx",
    "tokenizer/spiece.model",
    "a-00001-of-00002.safetensors",
    "\u00e4 \u5b57.bin",
    "null",
    "a..b",
]


def refusal(*names, linked=None):
    with pytest.raises(ValueError, match=r"\S+ .+") as raised:
        check_names(MANIFEST, names, linked or {})
    return str(raised.value)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (OUTSIDE, "is outside the folder"),
        (ODD, "is not a plain name"),
        (FOR_WINDOWS, "is no name for a file on Windows"),
        (HIDDEN, "is a hidden name"),
        (LONG, "is too long for a name"),
    ],
    ids=["outside", "odd", "windows", "hidden", "long"],
)
def test_a_name_that_is_no_plain_one_on_every_system_is_refused(names, reason):
    for name in names:
        assert reason in refusal("a", name), name
        assert len(refusal(name)) < 200


def test_plain_names_are_accepted():
    check_names(MANIFEST, FINE, {})


@given(st.text())
def test_an_accepted_name_leads_to_a_place_in_the_folder(name):
    try:
        check_names(MANIFEST, [name], {})
    except ValueError:
        return
    assert os.path.normpath(os.path.join("/folder", name)) == f"/folder/{name}" != f"/folder/{MANIFEST}"


def test_names_that_are_the_same_on_some_systems_are_refused():
    for one, other in (("a.bin", "A.bin"), ("\u00e4", "a\u0308"), ("stra\u00dfe", "STRASSE"), ("x", "Manifest.JSON")):
        assert "is the same name as" in refusal(one, other)
    assert "is the same name as" in refusal(MANIFEST)


def test_more_files_than_any_export_has_are_refused():
    check_names(MANIFEST, map(str, range(MOST_FILES)), {})
    assert f"{MOST_FILES} are the most" in refusal(*map(str, range(MOST_FILES + 1)))


def test_a_link_names_a_file_below_a_whole_path_and_is_listed():
    check_names(MANIFEST, ["models:v2/.hidden/a"], {"models:v2/.hidden/a": os.path.abspath("weights")})
    for name in ("/etc/passwd", "../a", "a/../../b", "", "a\0"):
        assert "is outside the folder that it is linked to" in refusal(name, linked={name: os.path.abspath("w")})
    for folder in ("weights", "", "~", "."):
        assert "is not a whole path" in refusal("a", linked={"a": folder})
    assert "which it does not list" in refusal("a", linked={"b": os.path.abspath("w")})


def test_a_link_is_one_of_the_user_only_with_the_same_place_size_and_checksum(tmp_path):
    place = tmp_path / "elsewhere" / "a"
    with pytest.raises(LtxError, match=r"that you have not made on this machine - give --trust-engines"):
        check_link(tmp_path, place, 1, "sum")
    record_link(place, 1, "sum")
    check_link(tmp_path, place, 1, "sum")


def test_a_path_that_leads_out_of_its_folder_by_a_link_at_any_place_is_refused(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "real").mkdir(parents=True)
    outside.mkdir()
    (folder / "a").touch()
    (folder / "real" / "b").touch()
    (folder / "inside").symlink_to("real/b")
    (folder / "out").symlink_to(outside / "c")
    (folder / "dir").symlink_to(outside)
    (folder / "round").symlink_to("round")
    for name in ("a", "real/b", "inside"):
        check_inside(folder, folder / name)
    check_inside(folder / ".." / "folder", folder / "a")
    with pytest.raises(LtxError, match="round cannot be used: too many levels of symbolic links"):
        ordinary_size(folder / "round")
    for name in ("out", "dir/c", "dir"):
        with pytest.raises(LtxError, match=f"{name} is a link out of its folder, to "):
            check_inside(folder, folder / name)


def test_paths_and_advice_are_whole_however_long_they_are(tmp_path):
    elsewhere = tmp_path / ("long " * 20) / "a"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").symlink_to(elsewhere)
    whole = re.escape(f"{elsewhere}")
    yours = r"give --trust-engines \(in Python: trust_engines=True\) if you trust whoever made the folder"
    with pytest.raises(LtxError, match=f"to {whole} - copy the file there$"):
        check_inside(tmp_path / "folder", tmp_path / "folder" / "a")
    with pytest.raises(LtxError, match=f"reads {whole}, a link that you have not made on this machine - {yours}"):
        check_link(tmp_path / "folder", elsewhere, 1, "sum")


def test_of_a_snapshot_in_the_hub_s_cache_the_command_is_named_that_gets_its_files(tmp_path):
    snapshot = tmp_path / "models--someone--a-video-model" / "snapshots" / ("0" * 40)
    blob = snapshot.parents[1] / "blobs" / "manifest"
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    blob.touch()
    (snapshot / MANIFEST).symlink_to(f"../../blobs/{blob.name}")
    with pytest.raises(LtxError, match=r"nothing but links - run: ltx-run --fetch someone/a-video-model$"):
        check_inside(snapshot, snapshot / MANIFEST)
    for other in ("datasets--someone--a", "models--a", "models--a--b--c"):
        moved = blob.parents[1].rename(tmp_path / other) / "snapshots" / snapshot.name
        with pytest.raises(LtxError, match="is a link out of its folder, to "):
            check_inside(moved, moved / MANIFEST)
        moved.parents[1].rename(blob.parents[1])


def test_only_ordinary_files_have_a_size_and_are_read_and_no_more_of_them_than_fits(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    assert (ordinary_size(tmp_path / "a"), read_small(tmp_path / "a", 5)) == (5, b"12345")
    assert ordinary_size(tmp_path / "none") is ordinary_size(tmp_path / "a" / "none") is None
    assert read_small(tmp_path / "none", 5) is None
    for place in (tmp_path, tmp_path / "pipe", os.devnull, "/dev/zero"):
        with pytest.raises(LtxError, match="is no ordinary file"):
            read_small(tmp_path / place, 5)
    with pytest.raises(LtxError, match="has 5 bytes, and 4 are the most"):
        read_small(tmp_path / "a", 4)
