"""Laws of --resume with a file that somebody else has written."""

import shutil

import platformdirs
import pytest

from ltx_runtime.outputs.record import read_record
from ltx_runtime.tensors import names_in, packed, read_metadata, read_tensors


@pytest.mark.parametrize("whose", ["nobody's", "another user's"])
def test_a_run_goes_on_beside_its_file_if_somebody_else_has_begun_it(run, interrupted, tmp_path, monkeypatch, whose):
    path, moved = tmp_path / "clip.mp4.unfinished", tmp_path / "copy" / "clip.mp4.unfinished"
    moved.parent.mkdir()
    (tmp_path / "copy" / "image.png").write_bytes((tmp_path / "image.png").read_bytes())
    if whose == "nobody's":
        metadata = {key: text for key, text in read_metadata(path).items() if key != "signature"}
        moved.write_bytes(packed(read_tensors(path, names_in(path)), metadata))
    else:
        shutil.copy(path, moved)
        monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path / "copy" / "data")
    (tmp_path / "copy" / "clip.mp4").write_bytes(b"a clip of mine")
    code, _, err = run("--resume", str(moved))
    assert code == 2 and "clip.mp4 exists" in err
    assert (tmp_path / "copy" / "clip.mp4").read_bytes() == b"a clip of mine"
    assert run("--resume", str(moved), "--overwrite")[0] == 0
    assert run("--resume", "clip.mp4.unfinished", "--output", "clip.mp4")[0] == 0
    assert read_record(tmp_path / "copy" / "clip.mp4").request.seed == 3
    assert (tmp_path / "copy" / "clip.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()


def test_a_file_that_the_record_has_no_checksum_of_is_not_read(run, interrupted, tmp_path):
    path = tmp_path / "clip.mp4.unfinished"
    metadata = {key: text.replace("inputs", "nothing") for key, text in read_metadata(path).items()}
    raw = packed(read_tensors(path, names_in(path)), metadata)
    path.write_bytes(raw)
    code, _, err = run("--resume", "clip.mp4.unfinished")
    assert code == 2
    assert "image.png is not what it was when the run began" in err
