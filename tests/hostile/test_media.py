"""Images, clips and tensors of strangers: each is refused in a sentence or read within 1 GB; no other is opened."""

import pytest
from hostile.clips import CLAIMING, LEADING, ODD, film_of_8k, mp4, referring
from hostile.conftest import small_video
from hostile.pictures import NOT_READ, TOO_LARGE, honest_photo, png
from hostile.tensors import GGUF, HEADERS
from hostile.watched import MOST_BYTES

# What decides about everything else that a video is.
WITHOUT_PROMPT = ("--latents", "--from")


@pytest.fixture
def given(watched, honest, tmp_path):
    """Gives a file to ltx-run, which plans a video with it; returns the run, which has opened nothing else."""

    def give(path, *arguments):
        arguments = arguments or ("--image", path, "--plan")
        video = ("--engines", honest) if arguments[0] in WITHOUT_PROMPT else small_video(honest)
        ended = watched("ltx-run", *video, *arguments)
        assert ended.outside(honest, tmp_path / "work") <= {str(path), str(honest.parent)}
        assert ended.peak_bytes < MOST_BYTES
        assert "Traceback" not in ended.out + ended.err
        return ended

    return give


@pytest.fixture
def refusal(given):
    """Returns the sentence with which a file is refused."""

    def refuse(path, *arguments):
        ended = given(path, *arguments)
        errors = [line for line in ended.err.splitlines() if not line.startswith(("note: ", "warning: "))]
        assert ended.code == 2, ended
        assert len(errors) == 1 and errors[0].startswith("error: ") and path.name in errors[0], ended.err
        return errors[0]

    return refuse


def written(path, raw):
    path.write_bytes(raw)
    return path


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOO_LARGE)
def test_an_image_that_claims_more_pixels_than_memory_holds_is_refused(tmp_path, refusal, name):
    said = refusal(written(tmp_path / "a.png", TOO_LARGE[name]()))
    assert "of memory, more than the 1.00 GB" in said or "is damaged" in said


@pytest.mark.parametrize("name", NOT_READ)
def test_an_image_that_unpacks_or_leads_elsewhere_is_refused(tmp_path, refusal, name):
    refusal(written(tmp_path / "a.png", NOT_READ[name]()))


def test_an_honest_photo_of_48_megapixels_is_read(tmp_path, given):
    ended = given(honest_photo(tmp_path / "a.jpg"))
    assert ended.code == 0, ended.err


# --- clips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMING)
def test_a_clip_that_claims_more_than_there_is_is_refused(tmp_path, refusal, name):
    refusal(written(tmp_path / "a.mp4", CLAIMING[name]()))


@pytest.mark.parametrize("name", ODD)
def test_an_odd_clip_is_read_or_refused(tmp_path, given, name):
    ended = given(written(tmp_path / "a.mp4", ODD[name]()))
    assert ended.code == 0 or (ended.code == 2 and "a.mp4" in ended.err)


@pytest.mark.parametrize("name", LEADING)
def test_a_file_that_leads_to_others_is_refused_and_they_are_not_opened(tmp_path, refusal, name):
    other = written(tmp_path / "other.mp4", mp4())
    for suffix in (".mp4", ".m3u8", ".mov", ".txt"):
        refusal(written(tmp_path / f"a{suffix}", LEADING[name](other)))


def test_a_film_whose_samples_are_in_another_file_is_not_read_from_there(tmp_path, given):
    other = written(tmp_path / "other.mp4", mp4())
    ended = given(written(tmp_path / "a.mov", referring(other)))
    assert ended.code in (0, 2), ended.err


def test_an_honest_clip_of_8k_is_read(tmp_path, given):
    ended = given(written(tmp_path / "a.mp4", film_of_8k()))
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("way", [("--fit", "size-from-image", "--image"), ("--from",)], ids=lambda way: way[0])
def test_every_way_to_give_a_file_has_the_same_limits(tmp_path, watched, honest, refusal, way):
    other = written(tmp_path / "other.mp4", mp4())
    names = {"bomb.png": png(100_000, 100_000, pixels=b""), "list.mp4": LEADING["a playlist"](other)}
    names |= {"grown.mp4": CLAIMING["a clip of VP8 with the largest frames"]()}
    for name, raw in names.items():
        path = written(tmp_path / name, raw)
        if way[0] == "--fit":
            ended = watched("ltx-run", "--engines", honest, "A red fox", "--plan", *way, path)
            assert ended.code == 2 and name in ended.err and ended.peak_bytes < MOST_BYTES
        else:
            refusal(path, *way, path)


# --- tensors --------------------------------------------------------------------------------------

# Those of the latter half are opened only by a run, which begins with them.
READERS = ("--image", "--lora", "--embeddings-file", "--initial-latents-file", "--noise-file", "--latents")


@pytest.mark.parametrize("option", READERS)
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_too_many_tensors_is_refused(tmp_path, refusal, name, option):
    path = written(tmp_path / "a.safetensors", HEADERS[name]())
    refusal(path, option, path)


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_that_claims_more_than_a_model_has_is_refused(tmp_path, watched, name):
    path = written(tmp_path / "a.gguf", GGUF[name]())
    ended = watched("ltx-export", "inspect", path)
    assert ended.code == 2 and "a.gguf" in ended.out + ended.err
    assert ended.peak_bytes < MOST_BYTES and ended.seconds < 20
