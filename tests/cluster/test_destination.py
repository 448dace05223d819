"""Where videos go: in a folder or on a file system of pyarrow's, each is there whole and once, or not at all."""

import pytest
from fakes.s3_server import S3Server

from ltx_runtime.cluster.destination import destination_of
from ltx_runtime.errors import LtxError
from ltx_runtime.media.video import TakenError

pytestmark = pytest.mark.ray
VIDEO = {"fox.mp4": b"first"}
FRAMES = {"night/0000.png": b"0", "night/0001.png": b"1"}


@pytest.fixture
def s3():
    """A server of S3."""
    with S3Server() as server:
        yield server
        server.shutdown()


@pytest.fixture(params=["a folder", "file://", "fsspec+memory://", "s3://"])
def destination(request, tmp_path, s3):
    """Every kind of place."""
    uris = {
        "a folder": None,
        "file://": (tmp_path / "videos").as_uri(),
        "fsspec+memory://": f"fsspec+memory:///{tmp_path.name}/videos",
        "s3://": s3.uri("bucket"),
    }
    return destination_of(uris[request.param], tmp_path / "folder")


def test_what_is_published_can_be_fetched_and_has_its_name(destination, tmp_path):
    for name, files in (("fox.mp4", VIDEO), ("night", FRAMES)):
        assert not destination.has(name)
        destination.publish(name, files, overwrite=False)
        assert destination.has(name)
    destination.fetch("fox.mp4", tmp_path / "copy.mp4")
    destination.fetch("night", tmp_path / "copy")
    assert (tmp_path / "copy.mp4").read_bytes() == b"first"
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
        "0000.png": b"0",
        "0001.png": b"1",
    }


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced(destination, tmp_path):
    for name, files in (("fox.mp4", VIDEO), ("night", FRAMES)):
        destination.publish(name, files, overwrite=False)
        other = dict.fromkeys(files, b"second")
        with pytest.raises(TakenError, match="exists"):
            destination.publish(name, other, overwrite=False)
        destination.publish(name, other, overwrite=True)
    destination.fetch("fox.mp4", tmp_path / "copy.mp4")
    assert (tmp_path / "copy.mp4").read_bytes() == b"second"


def test_a_shorter_video_leaves_no_frames_of_the_longer_one_that_it_replaces_and_other_files_stay(tmp_path):
    destination = destination_of(None, tmp_path)
    destination.publish("night", {f"night/frame_{number:04d}.png": b"old" for number in range(3)}, overwrite=False)
    (tmp_path / "night" / "notes.txt").write_bytes(b"mine")
    destination.publish("night", {"night/frame_0000.png": b"new"}, overwrite=True)
    found = {path.name: path.read_bytes() for path in (tmp_path / "night").iterdir()}
    assert found == {"frame_0000.png": b"new", "notes.txt": b"mine"}


def test_an_upload_that_is_refused_leaves_nothing_and_names_the_place_without_the_key(s3, tmp_path):
    destination = destination_of(s3.uri("bucket"), tmp_path)
    s3.fails = True
    with pytest.raises(LtxError) as told:
        destination.publish("fox.mp4", VIDEO, overwrite=False)
    assert str(told.value).startswith("cannot use s3://bucket: ") and "secret" not in str(told.value)
    s3.fails = False
    assert s3.objects == {} and not destination.has("fox.mp4")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LtxError, match="cannot write"):
        destination_of(None, tmp_path / "file").publish("fox.mp4", VIDEO, overwrite=False)


@pytest.mark.parametrize("uri", ["videos", "nowhere://videos", "https://host/videos"])
def test_an_address_that_pyarrow_does_not_know_is_refused(uri, tmp_path):
    with pytest.raises(LtxError, match="no place that pyarrow can write to"):
        destination_of(uri, tmp_path)
