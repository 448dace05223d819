"""TensorRT-RTX's own parser and compiler without a GPU: every component of every VAE generation becomes an engine."""

import _thread
import errno
import itertools
from dataclasses import replace

import pytest
import tensorrt_rtx as library
from stand_ins.tiny_engines import SMALL, address, copied, small

from ltx_export.engines import engine_from_onnx as building
from ltx_export.engines.engine_from_onnx import TIMING_CACHE, Recipe, engine_from_onnx, refuse_impossible
from ltx_export.engines.files import build_engine, check_built, prepared_for
from ltx_export.engines.progress import BuildProgress
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import check_engine
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.profiles import Span, profiles
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.folder.sidecar import read_sidecar, sidecar_path
from ltx_runtime.spec.components import COMPONENT_NAMES

RELEASE = "0.9.8-13b-distilled"
# The components of releases that are exported in bf16 and fp16 too.
COMPONENTS = [
    (release, name)
    for release, passes in (("0.9.0", 1), ("0.9.1", 1), (RELEASE, 2))
    for name in COMPONENT_NAMES
    if name != "temporal_upsampler" and (passes == 2 or name != "upsampler")
]
# Precisions, and where weights are, of which each release has an engine in a short run of the tests.
SHORT = {RELEASE: (("bf16", "embedded"), ("fp16", "inputs")), "": (("bf16", "embedded"),)}


@pytest.fixture
def engines(exported, tmp_path) -> Engines:
    """Returns a version folder that a test may write engines into."""
    return copied(exported(RELEASE), tmp_path)


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


@pytest.mark.slow  # `make demo-engines` builds as many
@pytest.mark.parametrize(("precision", "weights"), [("bf16", "embedded"), ("fp16", "inputs")])
@pytest.mark.parametrize("name", [name for release, name in COMPONENTS if release == RELEASE])
def test_every_component_is_compiled_for_all_sizes(engines, name, precision, weights):
    asked = address(engines, name, precision)
    path = build_engine(asked, Recipe(weights))
    assert path == asked.path
    assert names_in(path.parent) == sorted([path.name, sidecar_path(path).name])
    sidecar = check_engine(asked)
    assert sidecar.profiles == profiles(engines.component(name).signature)
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("release", "name", "precision", "weights"),
    [
        pytest.param(*component, *kind, marks=[pytest.mark.slow] * (kind not in SHORT.get(component[0], SHORT[""])))
        for component in COMPONENTS
        for kind in itertools.product(("bf16", "fp16"), ("embedded", "inputs"))
    ],
)
def test_every_generation_is_compiled_and_its_engine_is_accepted(exported, tmp_path, release, name, precision, weights):
    engines = copied(exported(release), tmp_path)
    asked, recipe = address(engines, name, precision), small(weights)
    path = build_engine(asked, recipe)
    sidecar = check_built(asked, recipe, prepared_for(asked, weights))
    assert sidecar == read_sidecar(path)
    assert (sidecar.component, sidecar.precision, sidecar.weights) == (name, precision, weights)
    assert sidecar.profiles == profiles(engines.component(name).signature, SMALL)
    assert bool(sidecar.weight_inputs) == (weights == "inputs")
    assert sidecar.relative_l2 is None
    for one in sidecar.weight_inputs.values():
        file = engines.manifest.place(engines.folder, one.file)
        assert one.offset + one.size_bytes <= file.stat().st_size


def test_a_transformer_engine_serves_one_timestep_and_one_per_token(engines):
    one, per_token = read_sidecar(build_engine(address(engines, "transformer"), small())).profiles
    assert one["timesteps"] == Span(1, 1, 1)
    assert per_token["timesteps"] == per_token["tokens"]


def test_an_engine_holds_its_weights_only_where_they_are_embedded(engines):
    stored = prepared_for(address(engines, "upsampler"), "inputs").weight_inputs
    biases = [one for name, one in stored.items() if name.endswith("conv1.bias")]
    held = {}
    for weights in ("embedded", "inputs"):
        engine = build_engine(address(engines, "upsampler"), small(weights)).read_bytes()
        data = [(engines.folder / one.file).read_bytes()[one.offset :][: one.size_bytes] for one in biases]
        held[weights] = [values in engine for values in data]
    assert held == {"embedded": [True] * len(biases), "inputs": [False] * len(biases)}
    assert biases


def test_an_engine_whose_graph_was_exported_again_is_refused_with_the_command_that_rebuilds_it(engines):
    build_engine(address(engines, "text_encoder"), small())
    graph = engines.component("text_encoder").graphs["bf16"]
    files = engines.manifest.files
    changed = replace(engines.manifest, files={**files, graph: replace(files[graph], checksum="other")})
    with pytest.raises(LtxError, match="another graph") as refused:
        check_engine(address(Engines(engines.folder, changed), "text_encoder"))
    assert "run: ltx-export engine 0.9.8-13b-distilled --component text_encoder" in str(refused.value)


@pytest.mark.parametrize("damage", [b"no graph", b""], ids=["no_graph", "empty"])
def test_a_graph_that_is_none_leaves_no_engine_and_one_sentence(engines, damage):
    (engines.folder / "text_encoder.bf16.onnx").write_bytes(damage)
    with pytest.raises(LtxError, match="export the version again") as refused:
        build_engine(address(engines, "text_encoder"), small())
    assert "\n" not in str(refused.value)
    assert names_in(address(engines, "text_encoder").path.parent) == []


def test_what_the_library_refuses_is_said_in_its_words(engines):
    graph = engines.folder / "transformer.fp32.onnx"
    component = engines.component("transformer").signature
    with pytest.raises(LtxError, match=r"fp32\.onnx (is refused|cannot be built) by tensorrt_rtx: .") as refused:
        engine_from_onnx(library, graph, engines.folder, component, engines.folder / "engine", Recipe(limits=SMALL))
    assert "no reason" not in str(refused.value) and "\n" not in str(refused.value)


class FullDisk:
    """A file that takes 1000 bytes and then raises; TensorRT takes an exception in its writer for success."""

    def __init__(self, error):
        self.error, self.room = error, 1000

    def write(self, data):
        if len(data) > self.room:
            raise self.error
        self.room -= len(data)
        return len(data)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "full"), LtxError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["full_disk", "ctrl_c"],
)
def test_an_engine_that_can_not_be_written_whole_is_none_and_the_one_of_before_stays(
    engines, monkeypatch, error, raised
):
    path = build_engine(address(engines, "text_encoder"), small())
    before = path.read_bytes()
    writer_of = building._writer
    monkeypatch.setattr(building, "_writer", lambda library, file: writer_of(library, FullDisk(error)))
    with pytest.raises(raised):
        build_engine(address(engines, "text_encoder"), small("inputs"))
    assert names_in(path.parent) == sorted([path.name, sidecar_path(path).name])
    assert path.read_bytes() == before
    assert check_engine(address(engines, "text_encoder")).weights == "embedded"


def test_ctrl_c_ends_a_build_after_a_step_leaves_nothing_and_the_next_one_works(engines):
    pressed = []

    def press(phase, fraction):
        if len(pressed) < 1:
            pressed.append(phase)
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        build_engine(address(engines, "vae_decoder"), small(), progress := BuildProgress(press))
    assert progress.cancelled.is_set() and progress.fraction < 1
    assert names_in(address(engines, "vae_decoder").path.parent) == []
    build_engine(address(engines, "vae_decoder"), small())
    check_engine(address(engines, "vae_decoder"))


def test_progress_goes_from_nothing_to_all_and_never_back(engines):
    told = []
    build_engine(address(engines, "vae_decoder"), small(), BuildProgress(lambda phase, fraction: told.append(fraction)))
    assert len(told) > 100 and told[0] < 0.1 and told[-1] == 1
    assert told == sorted(told)


def test_a_folder_without_a_bf16_graph_is_refused(exported):
    with pytest.raises(LtxError, match="has no bf16 graph of transformer"):
        build_engine(address(open_engines(exported("0.9.5").folder), "transformer"), small())


def test_an_engine_of_other_sizes_or_with_other_weights_is_not_what_is_wanted(engines):
    build_engine(address(engines, "text_encoder"), Recipe("inputs"))
    prepared = prepared_for(address(engines, "text_encoder"), "embedded")
    check_built(address(engines, "text_encoder"), Recipe("inputs"), prepared)
    with pytest.raises(LtxError, match="has its weights elsewhere - run: ltx-export engine"):
        check_built(address(engines, "text_encoder"), Recipe("embedded"), prepared)
    with pytest.raises(LtxError, match="was built by another release of this program - run"):
        check_built(address(engines, "text_encoder"), Recipe("inputs"), replace(prepared, structure="old"))
    upsampler = address(engines, "upsampler")
    build_engine(upsampler, small())
    with pytest.raises(LtxError, match="serves other sizes - run: ltx-export engine"):
        check_built(upsampler, Recipe(), prepared_for(upsampler, "embedded"))


def test_a_portable_engine_can_not_leave_its_weights_out():
    with pytest.raises(LtxError, match=r"TensorRT-RTX leaves weights out .* - use --weights inputs"):
        refuse_impossible(library, "TensorRT-RTX", Recipe(weights="refit"))
    refuse_impossible(library, "TensorRT-RTX", Recipe(weight_streaming=True))
    with pytest.raises(LtxError, match="weights that are inputs are not streamed - use --weights embedded"):
        refuse_impossible(library, "TensorRT-RTX", Recipe(weights="inputs", weight_streaming=True))


def test_libraries_that_compile_where_they_run_keep_no_timings(engines):
    assert TIMING_CACHE not in names_in(build_engine(address(engines, "text_encoder"), small()).parent)
