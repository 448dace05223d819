"""Laws of sidecars: an engine is accepted only with the graph, weights, library, GPU and system it was made for."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from fakes.stages import ROPE

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import EngineAddress, check_engine, engines_option
from ltx_runtime.folder.manifest import ComponentEntry, Engines, FileEntry, Manifest, checksum
from ltx_runtime.folder.profiles import profiles
from ltx_runtime.folder.sidecar import (
    ENGINE_PRECISIONS,
    Maker,
    Sidecar,
    WeightInput,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from ltx_runtime.spec.components import transformer
from ltx_runtime.spec.presets import Schedule

MAKER = Maker("tensorrt", "11.4", "sm89-nvidia-rtx", "linux-x86_64", gpu="NVIDIA RTX", driver="13.0")
PORTABLE = Maker("tensorrt_rtx", "1.7")
WEIGHTS = ("transformer-1.data", "transformer-2.data")
# Fields that are only information, and no reason to refuse an engine.
TOLD = {
    "gpu",
    "driver",
    "structure",
    "relative_l2",
    "profiles",
    "weights",
    "weight_inputs",
    "weight_streaming",
    "options",
}
OPTIONAL = {"relative_l2", "weight_streaming", "options"}


def engines_in(folder, **sums):
    graphs = {precision: f"transformer.{precision}.onnx" for precision in ENGINE_PRECISIONS}
    entry = ComponentEntry(transformer(4, 6, 12), WEIGHTS, graphs)
    names = (*graphs.values(), *WEIGHTS, "other")
    files = {name: FileEntry(100, sums.get(name.partition(".")[0], f"sum of {name}")) for name in names}
    return Engines(folder, Manifest("demo", True, Schedule(), ROPE, "spiece.model", {"transformer": entry}, files))


def address(engines, maker, precision="bf16"):
    return EngineAddress(engines, "transformer", maker, precision)


def sidecar_of(engines, maker, precision, engine):
    return Sidecar(
        builder=maker.builder,
        builder_version=maker.version,
        target=maker.target,
        system=maker.system,
        gpu=maker.gpu,
        driver=maker.driver,
        component="transformer",
        precision=precision,
        weights="inputs",
        profiles=profiles(transformer(4, 6, 12)),
        sources=address(engines, maker, precision).sources(),
        structure="a hash",
        engine_checksum=checksum(engine),
        weight_inputs={"proj.weight": WeightInput(WEIGHTS[0], 8, 16, "bf16", (2, 4))},
        relative_l2=1e-3,
    )


@pytest.fixture(params=[(MAKER, "bf16"), (PORTABLE, "fp16")], ids=["for_one_gpu", "portable"])
def made(request, tmp_path):
    """Returns an engine with a matching sidecar, its maker and its precision."""
    maker, precision = request.param
    path = address(engines_in(tmp_path), maker, precision).path
    path.parent.mkdir()
    path.write_bytes(b"engine")
    write_sidecar(path, sidecar_of(engines_in(tmp_path), maker, precision, path))
    return path, maker, precision


def check(made, maker=None, *, trusted=True, **sums):
    """Checks an engine that tests change by hand, so that the user has not made it any more."""
    path, own, precision = made
    engines = replace(engines_in(path.parents[1], **sums), trusted=trusted)
    return check_engine(address(engines, maker or own, precision))


def refused(made, message, **change):
    with pytest.raises(LtxError, match=message) as raised:
        check(made, **change)
    path, maker, precision = made
    half = {"bf16": "", "fp16": " --precision fp16"}[precision]
    builder = change.get("maker", maker).builder
    place = f" --engines {path.parents[1]}"
    command = f"run: ltx-export engine demo --component transformer --builder {builder}{half}{place} --force"
    assert str(raised.value).endswith(command)


def test_a_sidecar_is_read_as_it_was_written(made):
    path, maker, precision = made
    wanted = sidecar_of(engines_in(path.parents[1]), maker, precision, path)
    assert read_sidecar(path) == wanted == check(made) == check(made, trusted=False)
    assert sorted(path.parent.iterdir()) == sorted([path, sidecar_path(path)])


def test_engines_of_different_makers_and_precisions_have_places_of_their_own(tmp_path):
    engines = engines_in(tmp_path)
    makers = (MAKER, PORTABLE, replace(PORTABLE, version="1.8"), replace(MAKER, target="sm90-nvidia-h100"))
    places = {address(engines, maker, one).path for maker in makers for one in ENGINE_PRECISIONS}
    assert len(places) == 8
    assert address(engines, PORTABLE).path.parent.name == "portable-tensorrt_rtx-1.7"


def test_a_sidecar_names_the_checksums_of_graph_and_weights_alone(made):
    path, _, precision = made
    names = (f"transformer.{precision}.onnx", *WEIGHTS)
    assert read_sidecar(path).sources == {name: f"sum of {name}" for name in names}


def test_an_engine_of_another_graph_or_other_weights_is_refused(made):
    refused(made, "built from another graph or other weights", transformer="other")
    refused(made, "built from another graph or other weights", **{WEIGHTS[1].partition(".")[0]: "other"})
    assert check(made, other="other")


@pytest.mark.parametrize("field", [field.name for field in fields(Sidecar) if field.name not in TOLD])
def test_a_difference_in_any_field_that_matters_is_refused(made, field):
    value = {} if field == "sources" else "other"
    write_sidecar(made[0], replace(read_sidecar(made[0]), **{field: value}))
    refused(made, "engine (was|is|has) ")


@pytest.mark.parametrize("field", ["gpu", "driver", "structure"])
def test_what_is_only_told_may_differ(made, field):
    write_sidecar(made[0], replace(read_sidecar(made[0]), **{field: "other"}))
    assert getattr(check(made), field) == "other"


def test_an_engine_for_one_gpu_or_system_is_refused_on_another(tmp_path):
    path = address(engines_in(tmp_path), MAKER).path
    path.parent.mkdir()
    path.write_bytes(b"engine")
    for message, other in (
        ("built for another GPU", replace(MAKER, target="sm90-nvidia-h100")),
        ("built on another operating system", replace(MAKER, system="windows-amd64")),
        ("built by another version", replace(MAKER, version="11.3")),
    ):
        moved = address(engines_in(tmp_path), other).path
        moved.parent.mkdir(exist_ok=True)
        moved.write_bytes(b"engine")  # as if the folder had been renamed
        write_sidecar(moved, sidecar_of(engines_in(tmp_path), MAKER, "bf16", moved))
        refused((moved, MAKER, "bf16"), message, maker=other)


def test_an_engine_that_has_changed_or_is_missing_is_refused(made):
    made[0].write_bytes(b"ENGINE")
    refused(made, "has changed since it was built")
    made[0].unlink()
    refused(made, "does not exist")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "3", '{"profiles": 1}', '{"profiles": [{"rows": {"low": 1}}]}', '{"profiles": []}'],
)
def test_a_damaged_sidecar_is_refused(made, content):
    sidecar_path(made[0]).write_text(content)
    refused(made, "is damaged")


INPUT = {"file": WEIGHTS[0], "offset": 8, "size_bytes": 16, "dtype": "bf16", "shape": [2, 4]}
SPANS = {name: {"min": 1, "best": 1, "max": 2} for name in ("batch", "tokens", "timesteps", "text_tokens")}


@pytest.mark.parametrize(
    "change",
    [
        *({"weights": "somewhere"}, {"profiles": []}, {"weight_inputs": {"a": 1}}, {"builder": 3}, {"structure": None}),
        *({"sources": {"a": 1}}, {"relative_l2": "1"}, {"relative_l2": float("nan")}, {"weight_streaming": 1}),
        *({"options": "; rm -rf ~"}, {"options": "--static $(id)"}, {"options": 1}),
        *({"weight_inputs": {"a": INPUT | {"size_bytes": value}}} for value in (-1, 0, 1.0, True, 1 << 60)),
        *({"weight_inputs": {"a": INPUT | {"file": value}}} for value in ("../other", "/etc/passwd", "other", 1)),
        *({"weight_inputs": {"a": INPUT | other}} for other in ({"offset": -1}, {"offset": 85}, {"shape": ["2"]})),
        *({"profiles": [SPANS | {"tokens": {"min": a, "best": b, "max": c}}]} for a, b, c in ((2, 1, 3), (1, 3, 2))),
        *({"profiles": [SPANS | {"tokens": {"min": a, "best": 1, "max": 1}}]} for a in (0, "1", 1.0)),
        *({"profiles": [SPANS | {"frames": SPANS["batch"]}]}, {"profiles": [{"tokens": SPANS["tokens"]}]}),
    ],
    ids=str,
)
def test_a_sidecar_that_says_nothing_usable_is_damaged(made, change):
    data = json.loads(sidecar_path(made[0]).read_text())
    sidecar_path(made[0]).write_text(json.dumps(data | change))
    refused(made, "is damaged")


@pytest.mark.parametrize("field", [field.name for field in fields(Sidecar) if field.name not in OPTIONAL])
def test_a_sidecar_without_one_of_its_fields_is_damaged(made, field):
    data = json.loads(sidecar_path(made[0]).read_text())
    del data[field]
    sidecar_path(made[0]).write_text(json.dumps(data))
    refused(made, "is damaged")


def test_an_engine_that_the_user_has_not_built_is_refused_until_it_is_trusted(made, tmp_path):
    path = made[0]
    for file in (path, sidecar_path(path), path.with_suffix(".onnx")):
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(before + b" " if before else b"a graph to refit with")
        refused(made, "was (not built by you|changed)|has changed", trusted=False)
        file.unlink() if before is None else file.write_bytes(before)
        assert check(made, trusted=False) == check(made, trusted=True)


def test_an_engine_without_sidecar_is_refused(made):
    sidecar_path(made[0]).unlink()
    refused(made, "has no sidecar")


def test_a_folder_without_the_graph_says_how_to_export_it(tmp_path):
    engines = engines_in(tmp_path)
    engines.component("transformer").graphs.clear()
    with pytest.raises(
        LtxError,
        match=r"has no bf16 graph of transformer - run: ltx-export onnx demo",
    ):
        address(engines, MAKER).graph()
    with pytest.raises(LtxError, match=r"has no fp16 graph of transformer - run: ltx-export onnx demo .*fp16"):
        address(engines, MAKER, "fp16").graph()


def test_the_command_that_rebuilds_has_the_options_that_the_engine_was_built_with(made):
    write_sidecar(made[0], replace(read_sidecar(made[0]), options="--static 64x96x9 --weights inputs"))
    with pytest.raises(LtxError, match=r" --static 64x96x9 --weights inputs --engines \S+ --force$"):
        check(made, transformer="other")


def test_a_command_names_the_folder_only_where_the_exporter_would_look_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("engines").mkdir()
    for folder in (Path("engines/demo"), tmp_path / "engines" / "demo"):
        assert engines_option(folder, "demo") == ""
    assert engines_option(Path("engines/mine"), "demo") == " --engines engines/mine"
    assert engines_option(Path("my videos/demo"), "demo") == " --engines 'my videos/demo'"
