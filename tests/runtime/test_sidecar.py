"""Laws of sidecars: an engine is accepted only with the graph, weights, spans and builder it was made from and by."""

import json
from dataclasses import fields, replace

import pytest

from ltx_runtime.components import transformer
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import ComponentEntry, Engines, FileEntry, Manifest, checksum
from ltx_runtime.passes import Schedule
from ltx_runtime.sidecar import (
    ENGINE_PRECISION,
    Sidecar,
    check_engine,
    describe,
    engine_path,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

BUILDER = ("tensorrt-rtx", "1.7")
GRAPH, *WEIGHTS = f"transformer.{ENGINE_PRECISION}.onnx", "transformer-1.data", "transformer-2.data"


def engines_in(folder, graph="1", weights="2"):
    entry = ComponentEntry(transformer(4, 6), tuple(WEIGHTS), {ENGINE_PRECISION: GRAPH})
    sums = dict(zip((GRAPH, *WEIGHTS, "other"), (graph, "0", weights, "3"), strict=True))
    files = {name: FileEntry(1, checksum) for name, checksum in sums.items()}
    return Engines(folder, Manifest("demo", True, Schedule(), "spiece.model", {"transformer": entry}, files))


@pytest.fixture
def engine(tmp_path):
    """An engine with the sidecar that fits."""
    path = engine_path(engines_in(tmp_path), "transformer", *BUILDER)
    path.parent.mkdir()
    path.write_bytes(b"engine")
    write_sidecar(path, describe(engines_in(tmp_path), "transformer", *BUILDER, checksum(path)))
    return path


def check(engine, builder=BUILDER, **sums):
    return check_engine(engines_in(engine.parents[1], **sums), "transformer", engine, *builder)


def test_a_sidecar_is_read_as_it_was_written(engine):
    wanted = describe(engines_in(engine.parents[1]), "transformer", *BUILDER, checksum(engine))
    assert read_sidecar(engine) == wanted == check(engine)
    assert sorted(engine.parent.iterdir()) == sorted([engine, sidecar_path(engine)])


def test_engines_of_different_builders_lie_in_different_folders(tmp_path):
    engines = engines_in(tmp_path)
    builders = (BUILDER, ("tensorrt-rtx", "1.8"), ("tensorrt", "1.7"))
    assert len({engine_path(engines, "transformer", *builder).parent for builder in builders}) == 3


def test_a_sidecar_names_the_checksums_of_graph_and_weights_alone(engine):
    assert read_sidecar(engine).sources == {GRAPH: "1", WEIGHTS[0]: "0", WEIGHTS[1]: "2"}


def refused(engine, message, **change):
    with pytest.raises(LtxError, match=message) as raised:
        check(engine, **change)
    assert str(raised.value).endswith("run: ltx-export engine demo --component transformer --force")


def test_an_engine_of_another_builder_graph_or_weights_is_refused(engine):
    refused(engine, "built by another library", builder=("tensorrt", "1.7"))
    refused(engine, "built by another version of its library", builder=("tensorrt-rtx", "1.8"))
    refused(engine, "built from another graph or other weights", graph="other")
    refused(engine, "built from another graph or other weights", weights="other")


def test_an_engine_that_has_changed_or_is_missing_is_refused(engine):
    engine.write_bytes(b"ENGINE")
    refused(engine, "has changed since it was built")
    engine.unlink()
    refused(engine, "does not exist")


@pytest.mark.parametrize("field", [field.name for field in fields(Sidecar) if field.name != "profiles"])
def test_a_difference_in_any_field_is_refused(engine, field):
    value = {} if field == "sources" else "other"
    write_sidecar(engine, replace(read_sidecar(engine), **{field: value}))
    refused(engine, "bf16.engine (was|is|has) ")


def test_an_engine_for_other_spans_is_refused(engine):
    found = read_sidecar(engine)
    write_sidecar(engine, replace(found, profiles=found.profiles[::-1]))
    refused(engine, "serves other sizes")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "3", '{"profiles": 1}', '{"profiles": [{"rows": {"low": 1}}]}']
)
def test_a_damaged_sidecar_is_refused(engine, content):
    sidecar_path(engine).write_text(content)
    refused(engine, "is damaged")


@pytest.mark.parametrize("field", [field.name for field in fields(Sidecar)])
def test_a_sidecar_without_one_of_its_fields_is_damaged(engine, field):
    data = json.loads(sidecar_path(engine).read_text())
    del data[field]
    sidecar_path(engine).write_text(json.dumps(data))
    refused(engine, "is damaged")


def test_an_engine_without_sidecar_is_refused(engine):
    sidecar_path(engine).unlink()
    refused(engine, "has no sidecar")
