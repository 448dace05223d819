"""Engines of strangers: no byte of one, nor of what lies beside it, reaches a library before the folder is trusted.

The libraries and the GPU are stand-ins, whose records say which files they were given.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from stand_ins.engine_cases import BUILDERS, Bench, feeds_for, recipes

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.sidecar import WeightInput, refit_graph_path, sidecar_path
from ltx_runtime.sessions import AUTO, BACKENDS, find, open_session
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.trt.weights import plan_path
from ltx_runtime.trust.made_here import is_made_here

NOT_YOURS = "was not built by you on this machine, and an engine is code: --trust-engines runs it"


@pytest.fixture(params=BUILDERS)
def bench(request, tmp_path, monkeypatch):
    """A version folder with an engine of every component that the user has built."""
    made = Bench(tmp_path / "0.9.5", monkeypatch)
    made.build(request.param)
    return made


@pytest.fixture
def elsewhere(monkeypatch, tmp_path) -> None:
    """Makes this another user or machine, which has made none of the engines."""
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path / "another-user")


def run(bench: Bench, found: Found) -> dict[str, np.ndarray]:
    with open_session(found) as session:
        return session.run(feeds_for("transformer"))


def trusted(bench: Bench) -> Bench:
    bench.engines = replace(bench.engines, trusted=True)
    return bench


def test_an_engine_of_somebody_else_is_refused_by_name_with_the_command_that_builds_ones_own(bench, elsewhere):
    with pytest.raises(LtxError) as refused:
        bench.find()
    assert refused.value.problem == f"the bf16 engine of transformer {NOT_YOURS}"
    assert refused.value.command.startswith("ltx-export engine 0.9.5 --component transformer --builder ")
    assert "velocity" in run(bench, trusted(bench).find())


def test_auto_passes_an_engine_of_somebody_else_over_and_says_how_to_trust_it(bench, elsewhere, monkeypatch):
    kept = {name: BACKENDS[name] for name in (bench.builder, "cpu")}
    monkeypatch.setattr("ltx_runtime.sessions.BACKENDS", kept)
    monkeypatch.setattr("ltx_runtime.sessions.onnxruntime_cpu.find", lambda *given: Found("cpu", *_graph(bench)))
    found = find(bench.engines, "transformer", AUTO)
    assert found.backend == "cpu"
    assert found.reasons == (f"{bench.builder}: the bf16 engine of transformer {NOT_YOURS}",)
    assert find(trusted(bench).engines, "transformer", AUTO).backend == bench.builder


def _graph(bench: Bench) -> tuple:
    return bench.engines.component("transformer").signature, bench.engines.folder / "graph", bench.engines.folder


def edited(path: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# What a stranger does to an engine that the user has built; each must be noticed.
CHANGES: dict[str, Callable[[Path], None]] = {
    "another engine": lambda engine: engine.write_bytes(engine.read_bytes() + b" "),
    "another sidecar": lambda engine: edited(sidecar_path(engine), lambda data: data.update(gpu="other")),
    "other sizes": lambda engine: edited(
        sidecar_path(engine), lambda data: data["profiles"][0]["tokens"].update(max=1 << 40)
    ),
    "weights elsewhere": lambda engine: edited(
        sidecar_path(engine),
        lambda data: data.update(
            weight_inputs={
                "a": {"file": "../../etc/passwd", "offset": 0, "size_bytes": 8, "dtype": "fp32", "shape": [2]}
            }
        ),
    ),
    "a graph to refit with": lambda engine: refit_graph_path(engine).write_bytes(b"graph") and None,
    "a graph behind a link": lambda engine: refit_graph_path(engine).symlink_to("/etc/passwd"),
    "an engine behind a link": lambda engine: engine.symlink_to(engine.rename(engine.with_suffix(".moved"))),
    "a sidecar behind a link": lambda engine: sidecar_path(engine).symlink_to(
        sidecar_path(engine).rename(engine.with_suffix(".moved"))
    ),
    "a sidecar of 2^40 bytes": lambda engine: os.truncate(sidecar_path(engine), 1 << 40),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_an_engine_or_of_what_lies_beside_it_makes_it_somebody_else_s(bench, name):
    path = bench.find().path
    CHANGES[name](path)
    with pytest.raises(LtxError, match=r"was not built by you|has changed since it was built"):
        bench.find()
    assert bench.seen.deserialized == []


@pytest.mark.parametrize("place", ["engine", "sidecar", "graph"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("is_trusted", [False, True])
def test_what_is_no_ordinary_file_is_not_opened_even_in_a_trusted_folder(bench, place, kind, is_trusted):
    engine = bench.find().path
    path = {"engine": engine, "sidecar": sidecar_path(engine), "graph": refit_graph_path(engine)}[place]
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    if is_trusted and place == "graph":
        trusted(bench).find()  # an engine with its weights inside has no use for it
        return
    with pytest.raises(LtxError, match=r"no ordinary file|not built by you|no engine of"):
        (trusted(bench) if is_trusted else bench).find()


@pytest.mark.parametrize("end", ["file", "range"])
def test_even_a_trusted_sidecar_names_weights_inside_the_component_s_own_files(bench, end):
    place = {"file": ("spiece.model", 0, 4), "range": ("weights.data", 1 << 40, 4)}[end]
    weight = WeightInput(*place, "fp32", (1,))
    edited(
        sidecar_path(bench.find().path), lambda data: data.update(weight_inputs={"a": vars(weight) | {"shape": [1]}})
    )
    with pytest.raises(LtxError, match="is damaged"):
        trusted(bench).find()


def test_a_link_to_a_folder_of_engines_elsewhere_is_not_followed(bench, tmp_path):
    folder = bench.find().path.parent
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(LtxError, match=r"no engine of transformer: .* is a link, .* - run: "):
        bench.find()


def test_a_refitted_engine_of_somebody_else_is_made_again(tmp_path, monkeypatch):
    bench = Bench(tmp_path / "0.9.5", monkeypatch)
    bench.build("tensorrt", recipe=recipes(weights="refit"))
    plan = plan_path(bench.find())
    plan.write_bytes(bench.find().path.read_bytes() + b" ")
    run(bench, bench.find())
    assert bench.seen.refitted == ["transformer"] and is_made_here(plan)
    run(bench, bench.find())
    assert bench.seen.refitted == ["transformer"]


def test_kernels_that_somebody_else_has_compiled_are_compiled_again(tmp_path, monkeypatch):
    bench = Bench(tmp_path / "0.9.5", monkeypatch)
    bench.build("tensorrt_rtx")
    run(bench, bench.find())
    (kernels,) = bench.find().path.parent.glob("transformer.*.kernels")
    own = kernels.read_bytes()
    assert is_made_here(kernels)
    compiled = len(bench.seen.compiled)
    run(bench, bench.find())
    assert len(bench.seen.compiled) == compiled  # those that this user has compiled are used
    kernels.write_bytes(own + b" ")
    run(bench, bench.find())
    assert len(bench.seen.compiled) > compiled
    assert kernels.read_bytes() == own and is_made_here(kernels)


def test_ltx_run_refuses_an_engine_of_somebody_else_in_one_sentence(bench, elsewhere, monkeypatch, capsys, tmp_path):
    from ltx_runtime.cli import main as cli

    monkeypatch.chdir(tmp_path)
    given = ["--engines", str(bench.engines.folder), "A fox", "--backend", bench.builder, "--plan"]
    monkeypatch.setattr(sys, "argv", ["ltx-run", *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and NOT_YOURS in error and "run: ltx-export engine" in error
