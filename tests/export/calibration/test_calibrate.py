"""Laws of calibration: an int8 graph within the limit, a folder that is always whole, refusals in a sentence."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from samples.demo import DEMO, folder_with_demo, folder_with_quantized_demo
from samples.tiny import export, sources_of

from ltx_export.build import ExportOptions
from ltx_export.calibration import calibrate as calibration
from ltx_export.calibration.calibrate import calibrate
from ltx_export.calibration.trial import Trial
from ltx_export.recorded import SIZES, random_feeds, relative_l2
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import write_manifest
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session

SIZE = (64, 96, 9)
PROMPTS = ("a fox in the snow", "a boat at sea, at night", "rain on a window")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns a demo with a q8 graph, which a test may change."""
    monkeypatch.setenv("LTX_CACHE", "")
    shutil.copytree(folder_with_quantized_demo(), tmp_path / "demo")
    return tmp_path / "demo"


def calibrated(folder, limit=0.05, prompts=PROMPTS):
    lines = []
    calibrate(open_engines(folder), lines.append, prompts=prompts, size=SIZE, limit=limit)
    return lines


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_the_transformer_gets_an_int8_graph_whose_error_is_within_the_limit(folder):
    before = names_in(folder)
    lines = calibrated(folder)
    engines = open_engines(folder)
    assert names_in(folder) - before == {"transformer.int8.onnx", "transformer.int8.safetensors"}
    entry = engines.component("transformer")
    graph = entry.quantized["int8"]
    assert graph.weights == ("transformer.q8.safetensors", "transformer.int8.safetensors")
    assert 0 < graph.error <= 0.05 and f"{graph.error:.1e}" in lines[-1]
    blocks = [line for line in lines if line[:1].isdigit()]
    assert [line.count(",") for line in blocks] == [7] * 4  # eight products of each of the four blocks


def test_the_int8_graph_runs_where_the_others_do(folder):
    pytest.importorskip("openvino", reason="OpenVINO is not installed, as in the environment with .[cpu] alone")
    calibrated(folder)
    engines = open_engines(folder)
    found = find(engines, "transformer", "openvino_int8")
    assert found.precision == "int8" and {path.name for path in found.file_bytes} == {
        "transformer.q8.safetensors",
        "transformer.int8.safetensors",
    }
    with open_session(found) as fast, open_session(find(engines, "transformer", "cpu")) as exact:
        for sizes in SIZES:
            feeds = random_feeds(found.component, sizes)
            assert relative_l2(fast.run(feeds)["velocity"], exact.run(feeds)["velocity"]) < 0.05


def test_kinds_that_add_most_stay_q8_where_the_limit_asks_for_it(folder):
    lines = calibrated(folder, limit=0.01)
    (last,) = [line for line in lines if "products are int8" in line]
    count = int(last.split(": ")[1].split(" of ")[0])
    assert 0 < count < 32 and sum(line.count("(") for line in lines if line[:1].isdigit()) == 32 - count
    assert open_engines(folder).component("transformer").quantized["int8"].error <= 0.01
    stayed = {line.split(": ")[1] for line in lines if line[:1].isdigit()}
    assert len({tuple("(" in product for product in products.split(", ")) for products in stayed}) == 1


@pytest.mark.parametrize(
    ("limit", "measured", "refusal"),
    [
        (
            1e-6,
            None,
            r"make an error of .*, and the q8 graph alone .*e-.*; the limit is 1e-06 - calibrate with a larger one",
        ),
        (0.03, 0.05, r"attn1.to_q alone in int8 makes an error of 5.0e-02; the limit is 0.03 - use q8, or calibrate"),
        (0.0, None, r"the limit of the error must be a positive number; got 0.0 - use 0.025"),
        (float("nan"), None, r"must be a positive number; got nan"),
    ],
)
def test_a_limit_that_cannot_be_kept_leaves_the_folder_as_it_was(folder, monkeypatch, limit, measured, refusal):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    if measured is not None:
        monkeypatch.setattr(Trial, "write_and_measure", lambda self, kept, steps=(): measured if kept else 0.01)
    with pytest.raises(LtxError, match=refusal):
        calibrated(folder, limit=limit)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"} == before
    assert not any(path.name.startswith(".") for path in folder.parent.iterdir())


@pytest.mark.parametrize("stop", ["measure", "describe_files"])
def test_a_calibration_that_is_interrupted_leaves_a_folder_that_works(folder, monkeypatch, stop):
    calibrated(folder)

    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibration, stop, interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrated(folder)
    graphs = open_engines(folder).component("transformer").graphs
    assert "int8" in graphs
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    calibrated(folder)
    assert "int8" in open_engines(folder).component("transformer").graphs


def test_what_calibration_needs_is_told(folder):
    with pytest.raises(LtxError, match="needs 3 prompts or more; got 2 - add some"):
        calibrated(folder, prompts=PROMPTS[:2])
    with pytest.raises(LtxError, match="height must be a multiple of 32; got 65"):
        calibrate(open_engines(folder), print, prompts=PROMPTS, size=(65, 96, 9))
    engines = open_engines(folder)
    entry = engines.component("transformer")
    entry = replace(entry, graphs={"fp32": entry.graphs["fp32"]}, quantized={})
    write_manifest(folder, replace(engines.manifest, components=engines.manifest.components | {"transformer": entry}))
    with pytest.raises(LtxError, match=r"has no q8 graph of transformer, .* - export it again from float weights"):
        calibrated(folder)
    write_manifest(folder, replace(engines.manifest, components={"transformer": entry}, tokenizer=None))
    with pytest.raises(LtxError, match=r"has no text_encoder - run: "):
        calibrated(folder)


def test_measured_steps_are_those_of_the_exact_graph(folder):
    """The steps that are tested come from the road that makes videos, and not from a copy of it."""
    engines, kept = open_engines(folder), []
    some = calibration._some

    def noted(steps):
        kept.extend(steps)
        return some(steps)

    calibration._some, before = noted, some
    try:
        calibrated(folder)
    finally:
        calibration._some = before
    assert len(kept) == 8  # the demo's steps in one pass
    with open_session(find(engines, "transformer", "cpu")) as exact:
        for feeds, velocity in kept[:2]:
            np.testing.assert_allclose(exact.run(feeds)["velocity"], velocity, rtol=1e-4, atol=1e-5)


def test_a_folder_that_links_to_its_weights_is_calibrated_through_a_link_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LTX_CACHE", "")
    sources = sources_of(DEMO, folder_with_demo() / "weights")
    options = ExportOptions(("fp32", "q8"), link=True)
    export(DEMO, sources, tmp_path / "demo", options=options)
    (tmp_path / "link").symlink_to("demo")
    calibrated(tmp_path / "link")
    engines = open_engines(tmp_path / "demo")
    assert engines.weights_folder("transformer") != engines.folder
    assert "int8" in engines.component("transformer").graphs
    assert not any(path.name.startswith(".") for path in (*tmp_path.iterdir(), *engines.folder.iterdir()))
