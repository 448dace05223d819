"""Engines for other weights than they were built with: taken over from another version folder in seconds."""

import errno
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from samples.tiny import export, sources_of
from stand_ins.tiny_engines import address, copied, small

from ltx_export import cli
from ltx_export.engines import command as engine_command
from ltx_export.engines import files as engine_files
from ltx_export.engines.files import build_engine, find_equal, prepared_for
from ltx_export.random_weights import write_random_weights
from ltx_runtime.folder.profiles import Limits
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.folder.sidecar import read_sidecar
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.trust import made_here
from ltx_runtime.trust.made_here import is_made_here

RELEASE = "0.9.8-13b-distilled"
SIZE = ("--max-height", "64", "--max-width", "96", "--max-frames", "9")
ASKED = (*SIZE, "--component", "transformer", "--weights", "inputs")


@pytest.fixture
def engines(exported, tmp_path):
    return copied(exported(RELEASE), tmp_path / "engines")


@pytest.fixture
def engine(monkeypatch, capsys, tmp_path):
    """Runs `ltx-export engine` for the release; returns its exit code, output and error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTX_ENGINES", raising=False)

    def run(*arguments: str, version: str = RELEASE) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltx-export", "engine", version, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def other_checkpoint(exported, tmp_path_factory):
    """Exports the same release with other weights."""
    version, root = exported(RELEASE).version, tmp_path_factory.mktemp("other")
    write_random_weights(version, root / "weights", seed=1)
    export(version, sources_of(version, root / "weights"), root / "other", ["fp32", "bf16", "fp16"])
    return root / "other"


@pytest.fixture
def sibling(other_checkpoint, tmp_path):
    """Returns an export of another checkpoint of the same release, beside the first."""
    shutil.copytree(other_checkpoint, tmp_path / "engines" / "other")
    return open_engines(tmp_path / "engines" / "other")


@pytest.mark.parametrize("name", ["text_encoder", "transformer", "vae_decoder", "vae_encoder"])
def test_a_sibling_checkpoint_has_the_same_structure(engines, sibling, name):
    ours, theirs = (prepared_for(address(one, name), "inputs") for one in (engines, sibling))
    assert ours.structure == theirs.structure
    files = [
        next(iter(one.manifest.files[name] for name in one.component("transformer").weights))
        for one in (engines, sibling)
    ]
    assert files[0].checksum != files[1].checksum


@pytest.mark.parametrize("is_named", [True, False])
def test_another_checkpoint_takes_over_an_engine_instead_of_building(
    engine, engines, sibling, tmp_path, monkeypatch, is_named
):
    assert engine(*ASKED)[0] == 0
    built = address(engines, "transformer").path
    monkeypatch.setattr(engine_command, "build_engine", lambda *given: pytest.fail("it was built"))
    more = ()
    if is_named:
        sibling.folder.rename(tmp_path / "apart")
        more = ("--reuse", str(engines.folder))
    folder = tmp_path / "apart" if is_named else sibling.folder
    code, out, _ = engine("--engines", str(folder), *ASKED, *more)
    assert code == 0 and f": that of {engines.folder} with other weights, " in out
    taken = address(replace(sibling, folder=folder), "transformer").path
    assert taken.samefile(built)
    ours, theirs = read_sidecar(taken), read_sidecar(built)
    assert ours.sources != theirs.sources
    assert ours.weight_inputs.keys() == theirs.weight_inputs.keys()
    assert engine("--engines", str(folder), *ASKED, "--check")[0] == 0


def test_weights_of_a_taken_engine_are_read_from_the_new_checkpoint(engines, sibling):
    recipe = small("inputs")
    other = build_engine(address(engines, "transformer"), recipe)
    prepared = prepared_for(address(sibling, "transformer"), recipe.weights)
    assert find_equal(address(sibling, "transformer"), recipe, prepared, [engines.folder]) == other
    path = engine_files.take_over(address(sibling, "transformer"), recipe, prepared, other)
    name, one = next((n, w) for n, w in read_sidecar(path).weight_inputs.items() if "to_q.weight" in n)
    values = {}
    for folder, weight in ((sibling.folder, one), (engines.folder, read_sidecar(other).weight_inputs[name])):
        data = (folder / weight.file).read_bytes()[weight.offset : weight.offset + weight.size_bytes]
        values[folder] = np.frombuffer(data, np.uint16)
    assert not np.array_equal(*values.values())


@pytest.mark.parametrize("change", ["embedded", "other_sizes", "other_structure", "damaged", "fp16", "other_builder"])
def test_an_engine_that_differs_in_more_than_its_weights_is_not_taken_over(engines, sibling, change):
    recipe, wanted = small("inputs"), address(sibling, "text_encoder")
    other = build_engine(address(engines, "text_encoder"), recipe)
    prepared = prepared_for(wanted, recipe.weights)
    if change == "embedded":
        recipe = small()
    elif change == "other_sizes":
        recipe = replace(recipe, limits=Limits((Grid(2, 3, 2),)))
        wanted = address(sibling, "upsampler")
        build_engine(address(engines, "upsampler"), small("inputs"))
        prepared = prepared_for(wanted, recipe.weights)
    elif change == "other_structure":
        prepared = replace(prepared, structure="other")
    elif change == "damaged":
        other.write_bytes(other.read_bytes()[:-1])
    elif change == "fp16":
        wanted = replace(wanted, precision="fp16")
    else:
        wanted = replace(wanted, maker=replace(wanted.maker, version="0"))
    assert find_equal(wanted, recipe, prepared, [engines.folder]) is None


def test_an_engine_is_copied_where_a_link_can_not_be_made(engines, sibling, monkeypatch):
    recipe = small("inputs")
    other = build_engine(address(engines, "text_encoder"), recipe)

    def no_links(*given):
        raise OSError(18, "cross-device link")

    monkeypatch.setattr("os.link", no_links)
    prepared = prepared_for(address(sibling, "text_encoder"), recipe.weights)
    path = engine_files.take_over(address(sibling, "text_encoder"), recipe, prepared, other)
    assert not path.samefile(other) and path.read_bytes() == other.read_bytes()


def test_what_else_lies_beside_an_engine_is_kept_is_not_followed_and_is_not_read_again(engines, tmp_path, monkeypatch):
    """Engines have up to tens of gigabytes: that names of them come and go is no reason to read them."""
    recipe = small("inputs")
    others = [build_engine(address(engines, name), recipe) for name in ("vae_decoder", "text_encoder")]
    folder, secret = others[0].parent, tmp_path / "secret"
    secret.mkdir()
    (secret / "id").write_text("secret")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine").write_text("precious")
    for name, target in (("gone", "nowhere"), ("loop", "loop"), ("secret", secret)):
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe")
    monkeypatch.setattr(made_here, "_mark_of_bytes", lambda path: pytest.fail(f"{path} is read again"))
    with monkeypatch.context() as patch:
        patch.setattr("ltx_export.engines.engine_from_onnx.record_made", lambda *paths: True)
        patch.setattr("ltx_runtime.folder.sidecar.record_made", lambda *paths: True)
        build_engine(address(engines, "text_encoder"), recipe)
    assert is_made_here(others[0])
    assert (folder / "notes" / "mine").read_text() == "precious"
    assert [os.readlink(folder / name) for name in ("gone", "loop", "secret")] == ["nowhere", "loop", str(secret)]
    assert (secret / "id").stat().st_nlink == 1 and not (folder / "pipe").exists()


def test_what_cannot_be_kept_is_told_before_an_engine_is_built(engines, monkeypatch):
    build_engine(address(engines, "vae_decoder"), small("inputs"))

    def full(folder, new, is_dropped):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine_files, "keep_rest", full)
    monkeypatch.setattr(engine_files, "engine_from_onnx", lambda *arguments: pytest.fail("an engine is built"))
    with pytest.raises(OSError, match="No space"):
        build_engine(address(engines, "text_encoder"), small("inputs"))
