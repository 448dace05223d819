"""An engine's outputs against the fp32 graph's: engines are functions here, correct and wrong ones."""

import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from fakes.sessions import FunctionRunner
from stand_ins.tiny_engines import SMALL

from ltx_export import recorded
from ltx_export.engines.numbers import TOLERANCES, check_engine_numbers, smallest_served
from ltx_export.recorded import run_graph
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.profiles import Limits, Span, profile_for, profiles, sizes_of
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.folder.sidecar import Sidecar
from ltx_runtime.sessions import CheckedSession
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.sessions.found import Found, FoundEngine
from ltx_runtime.spec.geometry import Grid

RELEASE = "0.9.5"
NAMES = ["text_encoder", "transformer", "vae_encoder", "vae_decoder"]
STATIC = Limits((Grid(3, 4, 5),), exact=True)


@pytest.fixture(scope="module")
def engines(exported) -> Engines:
    return open_engines(exported(RELEASE).folder)


def found_in(engines: Engines, name: str, precision: str = "bf16", limits: Limits | None = None) -> FoundEngine:
    component = engines.component(name).signature
    served = profiles(component, limits)
    sidecar = Sidecar("tensorrt_rtx", "1", "portable", "", "", "", name, precision, "embedded", served, {}, "", "")
    address = EngineAddress(engines, name, sidecar.maker, precision)
    graph = Found("tensorrt_rtx", component, address.path, engines.folder, precision)
    return FoundEngine(**vars(graph), address=address, sidecar=sidecar)


class Engine:
    """Opens as an engine that computes the fp32 graph, with all outputs changed by a function."""

    def __init__(self, engines, name, change=lambda made: made):
        self.engines, self.name, self.change, self.sizes = engines, name, change, []

    def compute(self, feeds):
        entry = self.engines.component(self.name)
        graph = self.engines.folder / entry.graphs["fp32"]
        (output,) = run_graph(graph, self.engines.folder, entry.signature, [dict(feeds)])
        made = {entry.signature.outputs[0].name: output}
        if self.name == "vae_decoder":
            levels = np.floor(255 * np.clip(output / 2 + 0.5, 0, 1)).astype(np.uint8)
            made |= {"frames": np.moveaxis(levels, 1, -1), "mean": output.mean((1, 2, 3, 4))}
        return self.change(made)

    @contextmanager
    def __call__(self, found):
        outputs = [found.component.outputs[0].name, *(("frames", "mean") if self.name == "vae_decoder" else ())]

        def run(feeds):
            sizes = sizes_of(found.component, feeds)
            assert profile_for(found.profiles, sizes) is not None
            self.sizes.append(sizes)
            return self.compute(feeds)

        yield CheckedSession(found.component, FunctionRunner(run, outputs))


def check(engines, name, change=lambda made: made, **found):
    return check_engine_numbers(found_in(engines, name, **found), Engine(engines, name, change))


@pytest.mark.parametrize("limits", [None, SMALL, STATIC], ids=["buckets", "narrowed", "static"])
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_computes_what_the_graph_does_is_near_it_at_a_size_it_serves(engines, name, limits):
    engine = Engine(engines, name)
    numbers = check_engine_numbers(found_in(engines, name, limits=limits), engine)
    assert numbers.relative_l2 <= 1e-6
    assert len(engine.sizes) == 1


def test_what_was_recorded_is_run_where_a_profile_serves_it(engines):
    engine = Engine(engines, "transformer")
    check_engine_numbers(found_in(engines, "transformer"), engine)
    assert engine.sizes == [{axis: recorded.SIZES[0][axis] for axis in engine.sizes[0]}]
    engine.sizes.clear()
    check_engine_numbers(found_in(engines, "transformer", limits=STATIC), engine)
    assert engine.sizes[0]["tokens"] == 60


def off_by(share):
    """Returns a change that adds random noise to the first output, with a norm that is a share of the output's."""

    def change(made):
        name = next(iter(made))
        noise = np.random.default_rng(0).standard_normal(made[name].shape).astype(np.float32)
        moved = made[name] + share * np.linalg.norm(made[name]) / np.linalg.norm(noise) * noise
        return made | {name: moved}

    return change


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", ["text_encoder", "transformer", "vae_encoder"])
def test_rounding_is_told_and_more_than_that_refused(engines, name, precision):
    limit = TOLERANCES[precision]
    numbers = check(engines, name, off_by(0.9 * limit), precision=precision)
    assert numbers.relative_l2 == pytest.approx(0.9 * limit, rel=0.01)
    with pytest.raises(LtxError, match=r"differs from the fp32 graph by .* relative L2, more than .* - .*--force"):
        check(engines, name, off_by(1.1 * limit), precision=precision)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_is_not_finite_is_refused(engines, name, value):
    def change(made):
        made = {key: array.copy() for key, array in made.items()}
        next(iter(made.values())).flat[-1] = value
        return made

    with pytest.raises(LtxError, match="makes numbers that are not finite - use bf16"):
        check(engines, name, change, precision="fp16")


@pytest.mark.parametrize(("change", "said"), [
    (lambda made: made | {"frames": made["frames"][..., ::-1]}, "shows other frames than its video has"),
    (lambda made: made | {"frames": np.moveaxis(made["frames"], -1, 1)}, "shows other frames than its video has"),
    (lambda made: made | {"frames": made["frames"] // 2}, "shows other frames than its video has"),
    (lambda made: made | {"mean": made["mean"] + 0.1}, "as its video's mean"),
    (lambda made: {key: np.zeros_like(array) for key, array in made.items()}, "shows other frames"),
    (lambda made: flat(made, -3.0), "makes frames of one colour"),
    (lambda made: flat(made, 0.25), "makes frames of one colour"),
])  # fmt: skip
def test_a_decoder_that_shows_no_picture_is_refused(engines, change, said):
    with pytest.raises(LtxError, match=f"{said} - .*--force|{said}.* - .*--force"):
        check(engines, "vae_decoder", change)


def flat(made, value):
    """Replaces all outputs consistently by one uniform colour."""
    level = np.uint8(np.floor(255 * np.clip(value / 2 + 0.5, 0, 1)))
    return {
        "video": np.full_like(made["video"], value),
        "frames": np.full_like(made["frames"], level),
        "mean": np.full_like(made["mean"], value),
    }


@pytest.mark.parametrize("step", [-1, 1])
def test_a_level_that_is_rounded_otherwise_is_no_error(engines, step):
    def change(made):
        return made | {"frames": (made["frames"].astype(int) + step).clip(0, 255).astype(np.uint8)}

    assert check(engines, "vae_decoder", change).relative_l2 <= 1e-6


@pytest.mark.parametrize("error", [GpuMemoryError("the GPU is full - close something"), MemoryError()])
def test_what_finds_no_room_on_the_gpu_is_not_checked_and_it_is_said_why(engines, error):
    @contextmanager
    def opened(found):
        raise error
        yield

    numbers = check_engine_numbers(found_in(engines, "transformer"), opened)
    assert numbers.relative_l2 is None
    assert numbers.why == (str(error) or "the GPU has too little free memory")


def test_an_engine_that_does_not_load_or_run_is_not_passed_over(engines):
    @contextmanager
    def opened(found):
        raise LtxError("it cannot be loaded - build it again")
        yield

    with pytest.raises(LtxError, match="it cannot be loaded"):
        check_engine_numbers(found_in(engines, "transformer"), opened)


def test_sizes_that_the_cpu_could_not_compute_are_looked_at_but_not_compared(engines, monkeypatch):
    large = Limits((Grid(2, 40, 40),), exact=True)
    found = found_in(engines, "transformer", limits=large)

    class Anything(Engine):
        """Computes a constant velocity."""

        def compute(self, feeds):
            return {"velocity": self.change(np.ones_like(feeds["latents"]))}

    numbers = check_engine_numbers(found, Anything(engines, "transformer"))
    assert numbers.relative_l2 is None and "nothing to compare it with" in numbers.why
    with pytest.raises(LtxError, match="not finite"):
        check_engine_numbers(found, Anything(engines, "transformer", lambda output: output * np.nan))


def test_where_there_is_no_onnx_runtime_only_the_record_is_compared(engines, monkeypatch):
    component = engines.component("transformer").signature
    output = recorded.read_record(engines.folder / "transformer.recorded.npz", component)
    monkeypatch.setitem(sys.modules, "ltx_runtime.sessions.onnxruntime_cpu", None)

    class Recorded(Engine):
        """Computes the recorded output, or zeros at another size."""

        def compute(self, feeds):
            same = feeds["latents"].shape == output[1].shape
            return {"velocity": output[1] if same else np.zeros_like(feeds["latents"])}

    engine = Recorded(engines, "transformer")
    assert check_engine_numbers(found_in(engines, "transformer"), engine).relative_l2 == 0
    static = check_engine_numbers(found_in(engines, "transformer", limits=STATIC), engine)
    assert static.relative_l2 is None and "nothing to compare" in static.why


def test_the_smallest_sizes_are_those_of_the_profile_that_begins_lowest():
    wide, narrow = {"rows": Span(2, 4, 8), "frames": Span(3, 3, 3)}, {"rows": Span(4, 8, 9), "frames": Span(1, 2, 2)}
    assert smallest_served([wide, narrow]) == {"rows": 4, "frames": 1}
    assert smallest_served([replace_min(wide), narrow]) == {"rows": 1, "frames": 3}


def replace_min(profile):
    return profile | {"rows": replace(profile["rows"], min=1)}
