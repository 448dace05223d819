"""A version folder without a text encoder: exported without a T5, told of everywhere, and run with embeddings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples.tiny import export, sources_of, tiny

from ltx_export.build import ExportOptions
from ltx_export.inspection.inspect import inspect
from ltx_export.inspection.lines import lines_of
from ltx_export.random_weights import write_random_weights
from ltx_export.recorded import check_folder
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, find_sources
from ltx_runtime.doctor import lines
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.spec.versions import VERSIONS

VERSION = tiny("0.9.5")
SMALL = {"height": 64, "width": 96, "num_frames": 9, "seed": 3, "steps": 2, "guidance_scale": 1.0, "stg_scale": 0.0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_random_weights(VERSION, folder)
    return folder


@pytest.fixture
def textless(weights, tmp_path, monkeypatch) -> tuple[Path, list[str]]:
    """Exports a folder from weights that have neither a T5 nor a tokenizer; returns it and the reported lines."""
    bare, told = tmp_path / "weights", []
    bare.mkdir()
    for path in weights.iterdir():
        if path.name not in (TEXT_ENCODER_FILE, TOKENIZER_FILE):
            (bare / path.name).symlink_to(path)
    monkeypatch.setitem(VERSIONS, "0.9.5", VERSION)  # runs take its sizes from the table
    options = ExportOptions(("fp32",), without=("text_encoder",))
    sources = find_sources(VERSION, bare, without=options.without)
    export(VERSION, sources, tmp_path / "engines" / "0.9.5", report=told.append, options=options)
    return tmp_path / "engines" / "0.9.5", told


def test_an_export_without_text_encoder_needs_no_t5_and_writes_nothing_of_it(textless, weights, tmp_path):
    folder, told = textless
    engines = open_engines(folder)
    assert engines.manifest.tokenizer is None
    assert "text_encoder" not in engines.manifest.components
    assert not [path.name for path in folder.iterdir() if "text" in path.name or "tokenizer" in path.name]
    assert "there is no text encoder: ltx-run will need --embeddings-file instead of a prompt" in told
    options = ExportOptions(("fp32",), without=("text_encoder",))
    given = export(VERSION, sources_of(VERSION, weights), tmp_path / "given", options=options)
    assert given == engines.manifest  # a T5 that was found all the same changes nothing


def test_check_inspect_and_doctor_take_a_folder_without_text_encoder_for_whole(textless, tmp_path):
    folder, told = textless[0], []
    check_folder(open_engines(folder), told.append)
    assert sorted(line.split(":")[0] for line in told) == ["transformer", "vae_decoder", "vae_encoder"]
    inspected = inspect(folder)
    assert (inspected.kind, inspected.missing) == ("version folder", [])
    assert not any("text_encoder" in line for line in lines_of(inspected))
    (found,) = json.loads(lines.run(folder, None, as_json=True))["folders"]
    assert found["problem"] == ""
    assert [one["name"] for one in found["components"]] == ["vae_encoder", "transformer", "vae_decoder"]


def test_a_prompt_is_refused_with_what_to_do_and_embeddings_make_the_same_video(textless, weights, tmp_path):
    whole = tmp_path / "whole"
    export(VERSION, sources_of(VERSION, weights), whole)
    with Pipeline(whole, backend="cpu") as pipe:
        expected = np.stack(list(pipe("a cat", **SMALL, save_embeddings=tmp_path / "text.safetensors")))
    with Pipeline(textless[0], backend="cpu") as pipe:
        with pytest.raises(LtxError) as refused:
            pipe("a cat", **SMALL)
        assert str(refused.value) == (
            f"{textless[0]} has no text_encoder, which a prompt needs - give its embeddings with --embeddings-file "
            "FILE (in Python: embeddings), or export the version again without leaving it out"
        )
        video = pipe("a cat", **SMALL, embeddings=tmp_path / "text.safetensors")
        assert not any("text_encoder" in line for line in video.report_lines())
        np.testing.assert_array_equal(np.stack(list(video)), expected)


def test_the_sources_of_a_library_may_lack_the_text_encoder_too(weights, tmp_path):
    sources = replace(sources_of(VERSION, weights), text_encoder=None, tokenizer=None)
    manifest = export(VERSION, sources, tmp_path / "out")
    assert manifest.components.keys() == {"vae_encoder", "transformer", "vae_decoder"}
