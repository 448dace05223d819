"""Answers of `inspect` about folders with files that are damaged, lie elsewhere, or belong to another program."""

import json
import shutil
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors.torch import load_file
from samples.layouts import gguf_t5_state, write_diffusers, write_gguf
from samples.tiny import Exported, export

from ltx_export import cli
from ltx_export.build import ExportOptions
from ltx_export.inspection.facts import Inspection
from ltx_export.inspection.inspect import inspect
from ltx_export.inspection.lines import lines_of
from ltx_export.sources.find import find_sources
from ltx_runtime.errors import LtxError

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def snapshot(files: list[Path], cache: Path) -> Path:
    """Stores files as the hub's cache does: named by their checksums, behind links with their real names."""
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "main").mkdir(parents=True)
    for file in files:
        blob = cache / "blobs" / sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (cache / "snapshots" / "main" / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return cache / "snapshots" / "main"


def weights(release: Exported, folder: Path) -> Path:
    """Copies a release's weights folder."""
    return Path(shutil.copytree(release.weights, folder))


def problems(told: Inspection) -> dict[str, str]:
    """Returns the problems of files by name; both forms of the answer must show every one."""
    found = {file.path: file.problem for file in told.files if file.problem}
    shown = json.loads(json.dumps(asdict(told)))["files"]
    assert {file["path"]: file["problem"] for file in shown if file["problem"]} == found
    assert all(f"{path}: unreadable: {problem}" in lines_of(told) for path, problem in found.items())
    return {Path(path).name: problem for path, problem in found.items()}


def test_a_version_folder_that_only_links_to_the_hubs_cache_is_told_whole(exported, tmp_path):
    release = exported("0.9.5")
    text = gguf_t5_state(load_file(release.sources.text_encoder), 2)
    t5 = write_gguf(tmp_path / "t5.gguf", "t5", text, "F16")
    folder = snapshot([*(path for path in release.weights.iterdir() if "text" not in path.name), t5], tmp_path / "hub")
    sources = find_sources(release.version, folder)
    export(release.version, sources, tmp_path / "0.9.5", options=ExportOptions(("fp32",), link=True))
    told = inspect(tmp_path / "0.9.5")
    assert (told.kind, told.versions, told.missing, problems(told)) == ("version folder", ["0.9.5"], [], {})
    assert [file.kind for file in told.files] == ["GGUF T5 text encoder", "official single file"]
    assert {Path(file.path).parent for file in told.files} == {tmp_path / "hub" / "blobs"}


def test_a_damaged_file_of_a_version_folder_is_told_beside_the_others(exported, tmp_path):
    folder = Path(shutil.copytree(exported("0.9.5").folder, tmp_path / "0.9.5"))
    (folder / "text_encoder.safetensors").write_bytes(b"no weights")
    told = inspect(folder)
    assert [*problems(told)] == ["text_encoder.safetensors"]
    assert [file.kind for file in told.files] == ["unreadable", "official single file"]


def test_every_damaged_file_of_a_folder_is_told_beside_the_others_and_refused_alone(exported, tmp_path):
    folder = weights(exported("0.9.5"), tmp_path / "w")
    whole = inspect(folder)
    (folder / "other.gguf").write_bytes(b"GGUF")
    (folder / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (folder / "folder.gguf").mkdir()
    (folder / "vae").mkdir()
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (folder / "vae" / name).touch()
    told = inspect(folder)
    expected = {
        "other.gguf": "is truncated: 4 bytes of at least 8 - download it again",
        "gone.safetensors": "no such file or directory - check the path",
        "folder.gguf": "holds no diffusion_pytorch_model.safetensors or model.safetensors - check the path",
        "vae": "holds both model.safetensors and model.safetensors.index.json - keep one of them",
    }
    assert problems(told).keys() == expected.keys()
    assert all(problem.endswith(expected[name]) for name, problem in problems(told).items())
    rest = replace(told, files=[file for file in told.files if not file.problem])
    assert rest == whole
    with pytest.raises(LtxError, match="is truncated"):
        inspect(folder / "other.gguf")


def test_the_command_ends_well_on_a_folder_with_a_damaged_file_and_not_on_the_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    codes = []
    for path in (tmp_path, tmp_path / "other.gguf"):
        monkeypatch.setattr(sys, "argv", ["ltx-export", "inspect", str(path)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        codes.append(int(ended.value.code or 0))
    out, err = capsys.readouterr()
    assert codes == [0, 2]
    assert (out.count("is truncated"), err.count("is truncated")) == (1, 1)


def test_a_layout_whose_shards_lack_their_index_is_told_so(exported, tmp_path):
    layout = write_diffusers(exported("0.9.5").version, exported("0.9.5").weights, tmp_path / "layout", "20KB")
    (layout / "transformer" / INDEX).unlink()
    (problem,) = problems(inspect(layout)).values()
    assert problem.startswith(f"{layout / 'transformer'} holds shards without their index - ")
    assert problems(inspect(layout / "transformer")) == {"transformer": problem}


def test_the_hidden_files_of_another_system_are_passed_over(exported, tmp_path):
    folder = weights(exported("0.9.5"), tmp_path / "w")
    whole = inspect(folder)
    for name in ("._text_encoder.safetensors", "._t5.gguf", "._transformer.fp32.onnx", "._model.safetensors"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert inspect(folder) == whole


def test_a_folder_of_version_folders_is_refused_with_their_names(tmp_path):
    for name in ("0.9.5", "demo", ".hidden"):
        (tmp_path / name).mkdir()
    with pytest.raises(LtxError, match=r"holds no known weights - give one of its folders: 0\.9\.5, demo$"):
        inspect(tmp_path)


def test_rewritten_weights_have_no_problem(exported, tmp_path):
    release = exported("0.9.5")
    export(release.version, release.sources, tmp_path / "0.9.5", options=ExportOptions(["fp32"], store="F32"))
    told = inspect(tmp_path / "0.9.5")
    assert problems(told) == {}
    assert not any("problem" in one["sizes"] for file in told.files for one in file.networks)
