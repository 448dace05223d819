"""Version folders of strangers: whatever their manifests and files say, nothing outside the folder is read."""

import json
import os
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile.conftest import small_video

from ltx_runtime.folder.manifest import checksum

WEIGHTS, TOKENIZER, GRAPH = "checkpoint.safetensors", "tokenizer.model", "transformer.fp32.onnx"
LARGE_BYTES = 1 << 40  # of a file of holes

# Names of the tokenizer: each leads elsewhere, means something else on another system, or can be no name.
NAMES = [
    *(
        "/etc/passwd",
        "../../outside/secret.bin",
        "a/../../../outside/secret.bin",
        "..",
        ".",
        "",
        "/dev/zero",
    ),
    *(
        "..\\..\\outside\\secret.bin",
        "C:\\Windows\\win.ini",
        "C:secret.bin",
        "\\\\server\\share\\a",
        "file:///etc/passwd",
    ),
    *("NUL", "con.model", "a/COM1", ".hidden", "./tokenizer.model", "a//b", "tokenizer.model.", "tokenizer.model "),
    *("tokenizer\0.model", "tokenizer\n.model", "\x1b[31mtokenizer", "\ud800", "t" * 300, "t/" * 4000 + "t"),
    *("manifest.json", "Manifest.JSON", "CHECKPOINT.safetensors"),
]


def test_the_folder_that_nobody_has_changed_makes_a_video_and_reads_nothing_outside(watched, stranger, tmp_path):
    ended = watched("ltx-run", *small_video(stranger.folder))
    assert ended.code == 0, ended.err
    assert (tmp_path / "work" / "fox.mp4").stat().st_size > 0
    assert ended.outside(stranger.folder.parent, tmp_path / "work") == set()


def test_the_watch_sees_a_file_outside_that_a_run_is_told_to_read(watched, stranger, tmp_path):
    ended = watched("ltx-run", *small_video(stranger.folder), "--image", stranger.outside / "secret.bin")
    assert str(stranger.outside / "secret.bin") in ended.outside(stranger.folder.parent, tmp_path / "work")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
def test_a_name_that_leads_elsewhere_on_any_system_is_refused(refused, stranger, name):
    entry = {"size_bytes": 1, "checksum": "0"}
    stranger.change(lambda data: data.update(tokenizer=name, files=data["files"] | {name: entry}))
    assert "manifest.json is damaged" in refused()


def link(stranger, name, target, folder=None):
    """Lists a file as a link to one with its size and checksum; the folder of the link is that of the file."""
    stranger.list(name, target)
    stranger.change(lambda data: data["linked"].update({name: str(folder or target.parent)}))


def test_a_link_to_the_root_makes_nothing_readable(refused, stranger):
    stranger.change(lambda data: data.update(linked={"etc/passwd": "/"}))
    assert "it does not list" in refused()
    entry = {"size_bytes": Path("/etc/passwd").stat().st_size, "checksum": checksum(Path("/etc/passwd"))}
    stranger.change(lambda data: data["files"].update({"etc/passwd": entry}))
    assert "/etc/passwd, a link that you have not made on this machine" in refused()


@pytest.mark.parametrize("role", ["weights", "tokenizer", "graph", "recorded", "integers", "unused"])
def test_a_link_that_the_user_has_not_made_is_refused_even_with_the_right_checksum(refused, stranger, role):
    target = stranger.outside / "secret.bin"
    names = {"weights": "upsampler.safetensors", "tokenizer": TOKENIZER, "graph": GRAPH}
    names |= {"recorded": "transformer.recorded.npz", "integers": "transformer.q8.safetensors"}
    old = names.get(role, "unused")
    stranger.rename(old, target.name)
    link(stranger, target.name, target)
    reason = refused()
    assert "a link that you have not made" in reason or "only weights can be" in reason or "of integers" in reason


@pytest.mark.parametrize("folder", ["../outside", "", "~", "outside", ["/"], None, 1, "/\0"], ids=ascii)
def test_the_folder_of_a_link_that_is_no_whole_path_is_refused(refused, stranger, folder):
    stranger.change(lambda data: data.update(linked={WEIGHTS: folder}))
    refused()


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "/proc/self/environ", "/proc/kcore"])
def test_a_link_to_what_has_no_end_is_not_opened(refused, stranger, target):
    name = Path(target).name
    stranger.rename("upsampler.safetensors", name)
    stranger.change(lambda data: data["linked"].update({name: str(Path(target).parent)}))
    assert "a link that you have not made" in refused()


def test_weights_of_one_network_in_two_folders_are_refused(refused, stranger):
    stranger.change(lambda data: data["components"]["transformer"]["weights"].append("upsampler.safetensors"))
    link(stranger, "upsampler.safetensors", stranger.outside / "secret.bin")
    assert "are in more than one folder" in refused()


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER, GRAPH, "manifest.json"])
def test_a_symbolic_link_out_of_the_folder_is_refused_even_with_the_right_checksum(refused, stranger, name):
    moved = stranger.outside / name
    (stranger.folder / name).rename(moved)
    (stranger.folder / name).symlink_to(moved)
    assert f"{name} is a link out of its folder, to " in refused()


def test_a_linked_folder_on_the_way_to_a_file_is_refused(refused, stranger):
    (stranger.folder / "pieces").symlink_to(stranger.outside)
    stranger.rename(TOKENIZER, "pieces/secret.bin")
    stranger.list("pieces/secret.bin")
    assert "pieces/secret.bin is a link out of its folder, to " in refused()


def test_links_that_stay_inside_the_folder_lead_to_listed_files_only(watched, refused, stranger):
    (stranger.folder / TOKENIZER).rename(stranger.folder / "pieces.model")
    (stranger.folder / TOKENIZER).symlink_to("pieces.model")
    assert watched("ltx-run", *small_video(stranger.folder), "--plan").code == 0
    (stranger.folder / TOKENIZER).unlink()
    (stranger.folder / TOKENIZER).symlink_to("../demo/../../outside/secret.bin")
    assert "is a link out of its folder" in refused()


def test_a_hard_link_is_the_file_that_is_listed_or_refused_unread(refused, stranger):
    (stranger.folder / TOKENIZER).unlink()
    os.link(stranger.outside / "secret.bin", stranger.folder / TOKENIZER)
    assert "bytes instead of" in refused()


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER, GRAPH, "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "loop", "device"])
def test_what_is_no_ordinary_file_is_refused_without_being_opened(refused, stranger, name, kind, monkeypatch):
    path = stranger.folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(stranger.folder)  # since such names must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(name if kind == "loop" else "/dev/zero")
    refused()


@pytest.mark.parametrize("name", [TOKENIZER, GRAPH, "transformer.recorded.npz", "manifest.json"])
def test_a_file_that_is_read_as_a_whole_and_has_no_end_in_sight_is_refused(refused, stranger, name):
    path = stranger.folder / name
    os.truncate(path, LARGE_BYTES)
    if name != "manifest.json":
        stranger.list(name)
    reason = refused()
    assert "has more than" in reason or "are the most" in reason


@pytest.mark.parametrize(
    ("size", "reason"),
    [(0, "bytes instead of"), *((value, "is damaged") for value in (-1, 1 << 70, True, "1", 1.5, None, [1]))],
)
def test_sizes_that_are_not_those_of_the_files_are_refused(refused, stranger, size, reason):
    stranger.change(lambda data: data["files"][WEIGHTS].update(size_bytes=size))
    assert reason in refused()


@pytest.mark.parametrize("value", ["", "0" * 64, None, 3, ["a"]], ids=ascii)
def test_checksums_that_are_not_those_of_the_files_are_refused(refused, stranger, value):
    stranger.change(lambda data: data["files"][TOKENIZER].update(checksum=value))
    reason = refused()
    assert "has changed since the export" in reason or "is damaged" in reason


def test_a_manifest_that_lists_more_than_any_folder_has_is_refused(refused, stranger):
    entry = {"size_bytes": 0, "checksum": "0"}
    stranger.change(lambda data: data["files"].update({f"{number}": entry for number in range(5_000)}))
    assert "files, and 1000 are the most" in refused()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[" * 100_000,
            "[0" + ",0" * 1_900_000 + "]",
            "[{}" + ",{}" * 1_000_000 + "]",
            '{"format": ' + "9" * 5000 + "}",
        ),
        *('{"format": 6, "files": {}, "files": 1}', "\ufeff{}", '"', "nul"),
    ],
    ids=["deep", "long", "many", "digits", "twice", "mark", "quote", "word"],
)
def test_a_manifest_that_is_large_or_no_object_takes_little_memory(refused, stranger, text):
    stranger.manifest.write_text(text, "utf-8")
    refused()


@pytest.mark.parametrize("version", ["demo; rm -rf ~", "$(id)", "../../demo", "x" * 900, "", 1, None, ["demo"]])
def test_the_name_of_a_version_is_never_part_of_a_command_as_it_is(refused, stranger, version):
    stranger.change(lambda data: data.update(version=version))
    os.truncate(stranger.folder / TOKENIZER, 1)
    reason = refused()
    assert "ltx-export download demo; rm" not in reason and " $(id)" not in reason


# Every program that opens a version folder, before anything else happens.
PROGRAMS = {
    "plan": ("ltx-run", ("--engines", "FOLDER", "A red fox", "--plan")),
    "batch": ("ltx-run", ("--engines", "FOLDER", "A red fox", "--count", "2")),
    "check": ("ltx-export", ("check", "FOLDER")),
    "inspect": ("ltx-export", ("inspect", "FOLDER")),
    "engine": ("ltx-export", ("engine", "demo", "--engines", "FOLDER", "--builder", "tensorrt_rtx")),
    "publish": ("ltx-export", ("publish", "FOLDER", "somebody/something")),
    "bundle": ("ltx-export", ("bundle", "demo", "out.tar", "--engines", "FOLDER")),
    "calibrate": ("ltx-export", ("calibrate", "demo", "--engines", "FOLDER")),
    "serve": ("ltx-serve", ("--engines", "FOLDER", "--port", "0", "--data", "data")),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_refuses_a_stranger_s_folder_alike(refused, stranger, tmp_path, name):
    program, arguments = PROGRAMS[name]
    given = [str(stranger.folder) if one == "FOLDER" else one for one in arguments]
    whole = stranger.manifest.read_text()
    stranger.rename("upsampler.safetensors", "secret.bin")
    link(stranger, "secret.bin", stranger.outside / "secret.bin")
    assert "a link that you have not made on this machine" in refused(*given, program=program)
    stranger.manifest.write_text(whole)
    stranger.rename(TOKENIZER, "../../outside/secret.bin")
    assert "is outside the folder" in refused(*given, program=program)
    stranger.manifest.unlink()
    os.mkfifo(stranger.manifest)
    assert "is no ordinary file" in refused(*given, program=program)
    assert [path.name for path in (tmp_path / "work").iterdir()] in ([], ["data"])


def test_the_doctor_tells_of_a_stranger_s_folder_and_reads_nothing_outside(watched, stranger, tmp_path):
    stranger.rename("upsampler.safetensors", "secret.bin")
    link(stranger, "secret.bin", stranger.outside / "secret.bin")
    ended = watched("ltx-run", "--engines", stranger.folder, "--doctor")
    assert ended.code == 0
    assert "a link that you have not made on this machine - give --trust-engines" in ended.out.partition("advice:")[2]
    assert ended.outside(stranger.folder.parent, tmp_path / "work") == set() and "Traceback" not in ended.err


def test_a_folder_that_is_trusted_may_have_links(watched, stranger):
    moved = stranger.outside / "upsampler.safetensors"
    (stranger.folder / moved.name).rename(moved)
    stranger.change(lambda data: data["linked"].update({moved.name: str(stranger.outside)}))
    assert watched("ltx-run", *small_video(stranger.folder)).code == 2
    for option, environment in ((["--trust-engines"], {}), ([], {"LTX_TRUST_ENGINES": "1"})):
        ended = watched("ltx-run", *small_video(stranger.folder), "--plan", *option, **environment)
        assert ended.code == 0, ended.err
    assert watched("ltx-export", "inspect", stranger.folder, "--trust-engines").code == 0


@pytest.mark.parametrize("name", [WEIGHTS, "manifest.json"])
def test_a_symbolic_link_out_of_the_folder_is_refused_by_every_program_also_where_the_folder_is_trusted(
    watched, stranger, name
):
    moved = (stranger.folder / name).rename(stranger.outside / name)
    (stranger.folder / name).symlink_to(moved)
    told = f"{name} is a link out of its folder, to {moved}"
    for program in (["ltx-run", *small_video(stranger.folder)], ["ltx-export", "check", stranger.folder]):
        ended = watched(*program, "--trust-engines")
        assert ended.code == 2 and f"{told} - copy the file there" in ended.err, ended.err
    assert told in watched("ltx-run", "--engines", stranger.folder, "--doctor", "--trust-engines").out


@pytest.mark.parametrize("name", [".ltx-a.partial", ".ltx-demo.lock", ".ltx-a.partial.onnx", ".ltx-demo.new"])
@pytest.mark.parametrize("kind", ["pipe", "link", "file", "folder"])
def test_what_only_looks_as_if_a_killed_run_had_left_it_is_not_followed(watched, stranger, tmp_path, name, kind):
    for folder in (stranger.folder, stranger.folder / "portable-tensorrt_rtx-1.0"):
        (folder / "demo").mkdir(parents=True)  # which it seems to replace
        (folder / "demo" / "photo").write_text("precious")
        if kind == "pipe":
            os.mkfifo(folder / name)
        elif kind == "link":
            (folder / name).symlink_to(stranger.outside)
        elif kind == "file":
            os.link(stranger.outside / "secret.bin", folder / name)
        else:
            (folder / name).mkdir()
            (folder / name / "link").symlink_to(stranger.outside)
    for words in (["--plan"], []):
        ended = watched("ltx-run", *small_video(stranger.folder), *words)
        assert ended.code == 0, ended.err
        assert {path.read_text() for path in stranger.folder.rglob("photo")} == {"precious"}
    assert ended.outside(stranger.folder.parent, tmp_path / "work") == set()
    assert [path.name for path in stranger.outside.iterdir()] == ["secret.bin"]


@pytest.mark.parametrize("kind", ["bomb", "objects", "header"])
def test_recorded_inputs_that_unpack_to_more_than_they_are_are_refused(refused, stranger, kind):
    name = "text_encoder.recorded.npz"
    path = stranger.folder / name
    with np.load(path) as arrays:
        whole = dict(arrays)
    path.unlink()
    if kind == "bomb":
        np.savez_compressed(path, **whole | {"mask": np.zeros((1, 3_000_000), np.int64)})
    elif kind == "objects":
        np.savez(path, allow_pickle=True, **whole | {"mask": np.array([print], object)})
    else:
        del whole["mask"]
        np.savez(path, **whole)
        with zipfile.ZipFile(path, "a") as file:
            header = {"descr": "<i8", "fortran_order": False, "shape": (1, 1 << 40)}
            with file.open("mask.npy", "w") as array:
                np.lib.format.write_array_header_1_0(array, header)
    stranger.list(name)
    assert "is not a record of text_encoder" in refused("check", stranger.folder, program="ltx-export")


def test_a_stranger_s_recorded_run_does_not_say_that_folders_are_trusted(refused, stranger, tmp_path):
    results = tmp_path / "work" / "a.results.jsonl"
    about = {"version": "demo", "engines": str(stranger.folder), "options": {}, "release": "0", "asked": ""}
    about["pipeline"] = {"backend": "cpu", "trust_engines": True, "note": 1}
    results.write_text(json.dumps({"ltx-batch": about}) + "\n")
    link(stranger, "upsampler.safetensors", stranger.outside / "secret.bin")
    assert "a link that you have not made on this machine" in refused("--resume", results)
