"""The archive: the same bytes for the same files, every name inside one folder, and whole or not there."""

import hashlib
import os
import subprocess
import tarfile

import pytest

from ltx_export.bundle.archive import SUMS, archive_at, archive_bytes
from ltx_runtime.errors import LtxError

FILES = {"a": b"", "b/c.txt": b"x" * 511, "b/d": bytes(range(256)) * 5000, "n" * 150: b"long name"}


def written(folder, name="x.tar", files=FILES):
    """Writes an archive of files whose dates, modes and owners are whatever they are; returns it and its SHA-256."""
    digests = []
    with archive_at(folder / name, "bundle", digests.append) as archive:
        archive.add_text("install.py", "print()", program=True)
        for number, (member, content) in enumerate(files.items()):
            place = folder / f"{name}-{number}"
            place.write_bytes(content)
            archive.add_file(member, place)
        archive.add_sums()
    return folder / name, digests[0]


def test_the_same_files_make_the_same_bytes(tmp_path):
    one, digest = written(tmp_path, "one.tar")
    os.utime(tmp_path / "one.tar-1", (1e9, 1e9))
    (tmp_path / "one.tar-1").chmod(0o600)
    two, again = written(tmp_path, "two.tar")
    assert one.read_bytes() == two.read_bytes()
    assert digest == again == hashlib.sha256(one.read_bytes()).hexdigest()
    with tarfile.open(one) as tar:
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in tar} == {(0, 0, "", "", 315_532_800)}
        assert {m.mode for m in tar} == {0o644, 0o755}


def test_tar_and_sha256sum_read_it(tmp_path):
    archive, _ = written(tmp_path)
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    ended = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path / "bundle", capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == len(FILES) + 1
    for name, content in FILES.items():
        assert (tmp_path / "bundle" / name).read_bytes() == content


def test_its_size_is_known_before(tmp_path):
    archive, _ = written(tmp_path)
    sizes = {name: len(content) for name, content in FILES.items()} | {"install.py": 7}
    assert archive.stat().st_size <= archive_bytes(sizes) <= archive.stat().st_size + 2000 * (len(sizes) + 1) + 10_240


def test_a_file_of_more_than_8_gb_keeps_its_size(tmp_path):
    """Writes only the header of such a file, since a sparse one would take a minute to hash."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(9 << 30)

    def stop(done):
        raise StopIteration

    with pytest.raises(StopIteration), archive_at(tmp_path / "x.tar", "bundle", print) as archive:
        archive.add_file("large", large, stop)
    with tarfile.open(tmp_path / "x.tar", ignore_zeros=False) as tar:
        assert tar.next().size == 9 << 30


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\x", "a\nb"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(LtxError, match="is outside the bundle's folder"):
        written(tmp_path, files={name: b""})


def test_a_file_that_becomes_shorter_is_told(tmp_path):
    place = tmp_path / "file"
    place.write_bytes(b"x" * 3_000_000)
    with (
        pytest.raises(LtxError, match="file became shorter while it was read - run the command again"),
        archive_at(tmp_path / "x.tar", "bundle", print) as archive,
    ):
        archive.add_file("file", place, lambda done: os.truncate(place, 1_500_000))
