"""Laws of a backend that fails late: another one takes over, and a note says so."""

import sys
from types import ModuleType

import pytest
from fakes.runs import Made, generate
from fakes.stages import engines_of

from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.request import Request
from ltx_runtime.sessions import BACKENDS, Backend, UnsupportedError, graph_found
from ltx_runtime.spec.versions import VERSIONS

REQUEST = Request("a cat walks", "blurry", 64, 96, 17, 24.0, seed=7)


@pytest.mark.parametrize("when", ["load", "run"])
def test_a_backend_that_turns_out_not_to_run_a_component_gives_way_and_it_is_said(spiece, diary, monkeypatch, when):
    engines = engines_of(VERSIONS["0.9.5"], spiece)
    fake = BACKENDS["fake"]
    module = ModuleType("unfit_backend")
    module.find = lambda engines, name, backend: graph_found(engines, name, backend, ["fp32"])

    def refuse(*arguments):
        raise UnsupportedError("no kernel for the decoder - use another")

    def load(found):
        runner = sys.modules[fake.module].load(found)
        if found.component.name == "vae_decoder":
            monkeypatch.setattr(runner, "run", refuse)
            if when == "load":
                refuse()
        return runner

    module.load = load
    monkeypatch.setitem(sys.modules, "unfit_backend", module)
    order = dict(BACKENDS)
    BACKENDS.clear()
    BACKENDS.update(unfit=Backend("unfit_backend", "some"), fake=fake)
    try:
        made = Made()
        generate(engines, REQUEST, made.frames.append, made.progress, RunOptions(), made.notes.append)
        assert len(made.frames) == 17
        assert made.notes == ["everything on unfit", "vae_decoder on fake (no kernel for the decoder - use another)"]
        with pytest.raises(UnsupportedError, match="no kernel"):
            generate(engines, REQUEST, made.frames.append, Made().progress, RunOptions("unfit"))
    finally:
        BACKENDS.clear()
        BACKENDS.update(order)
