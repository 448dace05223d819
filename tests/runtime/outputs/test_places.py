"""Laws of the places of a run's files: none of those that are written is any other, whatever its spelling or links."""

import errno
import os

import pytest
from fakes.stages import engines_of

from ltx_runtime.errors import LtxError
from ltx_runtime.files import partial_folder
from ltx_runtime.outputs.places import places_of
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.replacing.exchange import whole_beside
from ltx_runtime.spec.versions import VERSIONS

DEMO = VERSIONS["demo"]
SMALL = ("a cat", "--seed", "3", "--height", "64", "--width", "96", "--num-frames", "9", "--overwrite")
SAVES = ("--save-latents", "--save-noise", "--save-embeddings")


@pytest.fixture
def spellings(tmp_path):
    """Returns different ways to name a file of the working folder, by what they are."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-here").symlink_to(tmp_path)

    def ways(name):
        (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
        ways = {"same": name, "dots": f"folder/../{name}", "absolute": str(tmp_path / name)}
        ways |= {"linked folder": f"to-here/{name}", "link": f"link-{name}", "dot": f"./{name}"}
        if (tmp_path / name).exists():
            os.link(tmp_path / name, tmp_path / f"hard-{name}")
            ways["hard link"] = f"hard-{name}"
        return ways

    return ways


def refusal(run, *arguments):
    code, out, err = run(*SMALL, *arguments)
    assert (code, out) == (2, ""), err
    return err.splitlines()[-1]


def test_no_two_files_that_are_written_are_the_same(run, engines, spellings, diary, tmp_path):
    engines(DEMO)
    for output, name in (("z.mp4", "z.mp4"), ("z.png", "z"), ("z.gif", "z.gif.unfinished")):
        for spelling in spellings(name).values():
            for save in SAVES:
                assert "would be both" in refusal(run, "--output", output, save, spelling)
    for spelling in spellings("kept.safetensors").values():
        words = ("--save-latents", "kept.safetensors", "--save-noise", spelling)
        assert "would be both the file for latents and the file for noise" in refusal(run, *words)
    (tmp_path / "z").mkdir()
    assert "would be inside the output" in refusal(run, "--output", "z.png", "--save-noise", "z/noise.safetensors")
    assert diary == []


def test_nothing_that_is_read_is_written(run, engines, spellings, tmp_path, diary):
    engines(DEMO)
    from PIL import Image

    Image.new("RGB", (96, 64), (9, 9, 200)).save(tmp_path / "image.gif")
    before = (tmp_path / "image.gif").read_bytes()
    for spelling in spellings("image.gif").values():
        for given in (("--image", "image.gif"), ("--condition", "image.gif@0")):
            assert "would be both the image or clip image.gif and" in refusal(run, *given, "--output", spelling)
            assert "would be both the image or clip" in refusal(run, *given, "--save-noise", spelling)
    assert (tmp_path / "image.gif").read_bytes() == before
    assert diary == []


def test_a_run_s_files_are_read_and_written_under_different_names(run, engines, tmp_path):
    engines(DEMO)
    kept = [word for save in SAVES for word in (save, f"{save[7:]}.safetensors")]
    assert run(*SMALL, *kept, "--output", "clip.mp4")[0] == 0
    for given, name in (("--noise-file", "noise"), ("--embeddings-file", "embeddings")):
        for save in SAVES:
            words = (given, f"{name}.safetensors", save, f"./{name}.safetensors")
            assert f"would be both the file of {name} and" in refusal(run, *words)
    latents = ("--latents", "latents.safetensors", "--save-noise", "latents.safetensors", "--overwrite")
    code, _, err = run(*latents)
    assert code == 2
    assert "would be both the file of latents and the file for noise" in err
    (tmp_path / "preset.yaml").write_text(
        "num_inference_steps: 4\nguidance_scale: 3\nstg_scale: 0\nrescaling_scale: 1\n"
    )
    assert "would be both the preset and" in refusal(run, "--preset", "preset.yaml", "--save-noise", "preset.yaml")
    code, _, err = run("--from", "clip.mp4", "--output", "clip.mp4", "--overwrite", "--seed", "4")
    assert code == 0, err  # it was read as a whole before anything is written


def test_nothing_is_written_into_the_version_folder_or_over_weights_that_it_links_to(run, engines, tmp_path):
    folder = engines(DEMO)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for name in (*before, folder / "new.safetensors", folder / "new" / "x.safetensors"):
        (folder / "new").mkdir(exist_ok=True)
        assert "version folder" in refusal(run, "--save-noise", name) or "a file of" in refusal(
            run, "--save-noise", name
        )
        (folder / "new").rmdir()
    assert "version folder" in refusal(run, "--output", folder / "clip.mp4")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("save", SAVES)
def test_a_file_to_save_to_that_exists_is_kept_unless_it_may_be_replaced(run, engines, tmp_path, save):
    engines(DEMO)
    (tmp_path / "kept.safetensors").write_bytes(b"hours of work")
    code, _, err = run(*SMALL[:-1], save, "kept.safetensors", "--output", "clip.gif")
    assert code == 2
    assert "kept.safetensors exists - choose another name, or add --overwrite" in err
    assert (tmp_path / "kept.safetensors").read_bytes() == b"hours of work"
    assert run(*SMALL, save, "kept.safetensors", "--output", "clip.gif")[0] == 0
    assert (tmp_path / "kept.safetensors").read_bytes() != b"hours of work"


@pytest.mark.parametrize("save", SAVES)
def test_a_name_that_no_file_can_have_is_refused_before_anything_runs(run, engines, tmp_path, diary, save):
    engines(DEMO)
    assert "choose a shorter name" in refusal(run, save, f"{'x' * 260}.safetensors")
    assert diary == []


def test_names_that_differ_in_case_are_the_same_where_file_systems_say_so(spiece, tmp_path, monkeypatch):
    options = RunOptions(save_latents=tmp_path / "Kept.safetensors", save_noise=tmp_path / "kept.safetensors")
    places = places_of(engines_of(DEMO, spiece), Request("a cat"), options)
    for platform, same in (("linux", False), ("darwin", True), ("win32", True)):
        monkeypatch.setattr("sys.platform", platform)
        if same:
            with pytest.raises(LtxError, match="would be both"):
                places.check_distinct()
        else:
            places.check_distinct()


def test_pictures_in_memory_have_no_place(spiece):
    import numpy as np

    request = Request("a cat", conditions=(Condition(np.zeros((32, 32, 3), np.uint8)),))
    assert places_of(engines_of(DEMO, spiece), request, RunOptions()).reads == {}


def everything_about(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_plan_changes_no_folder_not_even_its_time(run, engines, tmp_path, is_replaced):
    """Nor if a run was killed while it replaced the version folder."""
    folder = engines(DEMO)
    (tmp_path / "kept").mkdir()
    for parent in (folder.parent, tmp_path / "kept", *([] if is_replaced else [folder])):
        with partial_folder(parent) as left:
            pass
        left.mkdir()  # that of a process that was killed
    if is_replaced:
        folder.rename(whole_beside(folder))
    (tmp_path / "p.txt").write_text("a fox\n")
    before = everything_about(tmp_path)
    kept = [word for save in SAVES for word in (save, f"kept/{save[7:]}.safetensors")]
    for words in ((*SMALL, *kept), (*SMALL, *kept, "--output", "kept/clip.mp4"), ("--prompts", "p.txt")):
        assert run(*words, "--plan")[0] == 0
        assert everything_about(tmp_path) == before
    assert run(*SMALL, *kept)[0] == 0
    assert [path.suffix for path in sorted((tmp_path / "kept").iterdir())] == [".safetensors"] * 3
    assert folder.is_dir() and not [path for path in tmp_path.rglob("*") if path.name.startswith(".ltx-")]


def test_a_folder_that_only_seems_to_be_writable_is_refused_before_a_network_runs(run, engines, diary, monkeypatch):
    engines(DEMO)

    def full(self, *more, **options):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self))

    monkeypatch.setattr("pathlib.Path.touch", full)
    said = refusal(run, "--save-latents", "latents.safetensors")
    assert said.startswith("error: cannot write latents.safetensors: disk quota exceeded - free some space")
    assert diary == []
