"""What a bundle takes of a version folder: the graphs that its backends run, their weights, and nothing else."""

import pytest

from ltx_export.bundle.contents import contents_of, precisions_for
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.sessions import BACKENDS


def test_every_backend_can_run_a_graph_that_its_extra_brings():
    for name, row in BACKENDS.items():
        assert row.precisions and set(row.precisions) <= set(precisions_for([row.extra])), name
    assert precisions_for(["cpu"]) == ("fp32",)
    assert "fp32" in precisions_for(["openvino"])  # networks that are too small for it


@pytest.mark.parametrize(
    ("extras", "precisions", "expected"),
    [
        (["cpu"], [], {"fp32"}),
        (["cpu", "serve"], [], {"fp32"}),
        (["tensorrt-rtx"], [], {"bf16"}),
        (["openvino"], [], {"fp32", "bf16", "q8"}),
        (["openvino"], ["bf16"], {"bf16"}),
        (["gpu"], ["fp32", "bf16"], {"fp32", "bf16"}),
    ],
)
def test_only_graphs_that_can_be_run_are_taken_with_their_weights(engines, extras, precisions, expected):
    contents = contents_of(engines, extras, precisions)
    assert set(contents.precisions) == expected
    for name, entry in contents.manifest.components.items():
        assert set(entry.graphs) == expected & set(engines.manifest.components[name].graphs), name
        assert entry.weights and entry.files() <= contents.paths.keys()
    assert ("transformer.q8.data" in contents.paths) == ("q8" in expected)
    assert contents.size_bytes == sum(path.stat().st_size for path in contents.paths.values())


def test_weights_of_floats_stay_behind_where_only_integers_are_run(engines):
    for entry in engines.manifest.components.values():
        entry.graphs.pop("bf16")
    engines.manifest.components["transformer"].graphs.pop("fp32")
    contents = contents_of(engines, ["openvino"], [])
    assert contents.manifest.components["transformer"].weights == ("transformer.q8.data",)
    assert "transformer.data" not in contents.paths and "vae_decoder.data" in contents.paths


def test_a_link_is_followed_and_the_bundle_has_none(engines):
    contents = contents_of(engines, ["cpu"])
    assert contents.manifest.linked == {} != engines.manifest.linked
    assert contents.paths["vae_decoder.data"].parent.name == "elsewhere"
    assert not any("engine" in name for name in contents.paths)


@pytest.mark.parametrize(
    ("extras", "precisions", "told"),
    [
        (["serve"], [], "no backend comes with serve, so nothing could be run - add --extra and one of cpu, gpu"),
        (["cpu"], ["bf16"], "nothing that comes with cpu runs bf16 graphs - use --precision with fp32, or another"),
        (["cpu"], ["fp8"], "runs fp8 graphs"),
        (["gpu"], ["fp16"], "has no fp16 graph of text_encoder, only fp32, bf16 - run: ltx-export "),
    ],
)
def test_what_could_not_run_is_refused(engines: Engines, extras, precisions, told):
    with pytest.raises(LtxError) as refused:
        contents_of(engines, extras, precisions)
    assert told in str(refused.value)
