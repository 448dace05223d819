"""A version folder appears whole or not at all, and replaces nothing but a version folder."""

import re
from pathlib import Path

import pytest

from ltx_export.weights.staging import refuse_foreign, staged
from ltx_runtime.errors import LtxError
from ltx_runtime.files import lock_name, partial_folder
from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.replacing.held import Held


def write(folder: Path, text: str) -> None:
    with staged(folder) as staging:
        (staging / MANIFEST).write_text(text)


def contents(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    for text in ("first", "second"):
        write(tmp_path / "deep" / "0.9.5", text)
        assert contents(tmp_path) == {f"deep/0.9.5/{MANIFEST}": text}


def test_leftovers_of_an_export_that_was_killed_vanish(tmp_path):
    with partial_folder(tmp_path) as left:
        pass
    left.mkdir()
    for path in (left / "0.9.5", tmp_path / lock_name("0.9.5")):
        path.write_text("x")
    (tmp_path / "0.9.5").mkdir()
    write(tmp_path / "0.9.5", "new")
    assert contents(tmp_path) == {f"0.9.5/{MANIFEST}": "new"}


def test_a_folder_that_someone_reads_stays_until_it_is_released_and_is_found_again(tmp_path):
    folder = tmp_path / "0.9.5"
    write(folder, "old")
    held = Held(folder)
    write(folder, "new")
    assert (folder / MANIFEST).read_text() == "new"
    assert held.now(folder / MANIFEST).read_text() == "old"
    held.release()
    assert contents(tmp_path) == {f"0.9.5/{MANIFEST}": "new"}


def test_a_link_stays_and_the_folder_it_leads_to_is_replaced(tmp_path):
    write(tmp_path / "disk" / "large", "before")
    (tmp_path / "0.9.5").symlink_to(tmp_path / "disk" / "large")
    for text in ("first", "second"):
        write(tmp_path / "0.9.5", text)
        assert (tmp_path / "0.9.5").is_symlink()
        assert contents(tmp_path / "disk") == {f"large/{MANIFEST}": text}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0.9.5", "disk"]


def test_a_second_export_of_the_same_folder_is_refused_and_leaves_the_first_alone(tmp_path):
    with staged(tmp_path / "0.9.5") as staging:
        (staging / MANIFEST).write_text("first")
        with pytest.raises(
            LtxError, match=r"another process is writing .*0\.9\.5 \(it holds .*\) - wait until it has ended"
        ):
            write(tmp_path / "0.9.5", "second")
        with staged(tmp_path / "0.9.6") as other:
            (other / MANIFEST).write_text("other")
    assert contents(tmp_path) == {f"0.9.5/{MANIFEST}": "first", f"0.9.6/{MANIFEST}": "other"}


def test_only_nothing_an_empty_folder_or_a_version_folder_is_replaced(tmp_path):
    empty, version = tmp_path / "empty", tmp_path / "version"
    for folder in (empty, version):
        folder.mkdir()
    (version / MANIFEST).write_text("{}")
    for fine in (tmp_path / "none", empty, version):
        refuse_foreign(fine)


def test_what_an_export_did_not_write_is_refused(tmp_path):
    foreign, file, dangling = tmp_path / "weights", tmp_path / "file", tmp_path / "dangling"
    foreign.mkdir()
    (foreign / "my_lora.safetensors").write_text("precious")
    file.write_text("x")
    dangling.symlink_to(tmp_path / "gone")
    for path in (foreign, file, dangling):
        with pytest.raises(
            LtxError, match=f"{re.escape(str(path))} exists and was not written by an export.* - move it"
        ):
            refuse_foreign(path)
