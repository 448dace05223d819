"""Laws of examining version folders: damage is reported, and every engine is checked against this machine."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
from fakes.stages import ROPE

from ltx_runtime import sessions
from ltx_runtime.doctor.folders import folders_in, look_at, shown_grid, words_of
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import FOREIGN, EngineAddress
from ltx_runtime.folder.manifest import ComponentEntry, Engines, Manifest, checksum, describe_files, write_manifest
from ltx_runtime.folder.profiles import Span, profiles
from ltx_runtime.folder.sidecar import Maker, Sidecar, sidecar_path, write_sidecar
from ltx_runtime.sessions import BACKENDS, Backend
from ltx_runtime.spec.components import text_encoder, transformer, vae_decoder
from ltx_runtime.spec.presets import Schedule

MAKER = Maker("tensorrt_rtx", "1.7", gpu="NVIDIA Test")
HERE = {"tensorrt_rtx": MAKER}
FILES = ("spiece.model", "decoder.data", "vae_decoder.fp32.onnx", "vae_decoder.bf16.onnx")
DECODER = vae_decoder(8, timestep=True)


@pytest.fixture
def backends(monkeypatch):
    """Replaces the `find` functions of backends, by name; `cpu` finds the fp32 graph, and all others refuse."""

    def refuse(engines, name, backend):
        raise LtxError(f"{backend} cannot - do something")

    def graph(engines, name, backend):
        return sessions.graph_found(engines, name, backend, ["fp32"])

    def put(**finds):
        for name, find in finds.items():
            module = ModuleType(f"fake_{name}")
            module.find = find
            monkeypatch.setitem(sys.modules, module.__name__, module)
            BACKENDS[name] = Backend(module.__name__, "gpu")

    order = dict(BACKENDS)
    BACKENDS.clear()
    put(tensorrt=refuse, tensorrt_rtx=refuse, cuda=refuse, cpu=graph)
    yield put
    BACKENDS.clear()
    BACKENDS.update(order)  # restores the order, which is that of preference


@pytest.fixture
def folder(tmp_path, backends):
    """Makes a complete version folder with one component."""
    return make_folder(tmp_path / "engines" / "demo")


def make_folder(path):
    path.mkdir(parents=True)
    for name in FILES:
        (path / name).write_bytes(name.encode())
    graphs = {"fp32": "vae_decoder.fp32.onnx", "bf16": "vae_decoder.bf16.onnx"}
    entry = ComponentEntry(DECODER, ("decoder.data",), graphs)
    files = describe_files({name: path / name for name in FILES})
    write_manifest(path, Manifest("demo", True, Schedule(), ROPE, "spiece.model", {"vae_decoder": entry}, files))
    return path


def manifest_of(folder):
    from ltx_runtime.folder.reading import read_manifest

    return read_manifest(folder)


def add_engine(folder, maker=MAKER, **changes):
    """Writes an engine and its sidecar as that maker leaves them."""
    engines = Engines(folder, manifest_of(folder))
    address = EngineAddress(engines, "vae_decoder", maker, "bf16")
    path = address.path
    path.parent.mkdir()
    path.write_bytes(b"engine")
    told = {"builder": maker.builder, "builder_version": maker.version}
    told |= {field: getattr(maker, field) for field in ("target", "system", "gpu", "driver")}
    sidecar = Sidecar(
        **told,
        component="vae_decoder",
        precision="bf16",
        weights="inputs",
        profiles=profiles(DECODER),
        sources=address.sources(),
        structure="",
        engine_checksum=checksum(path),
        relative_l2=2e-3,
    )
    write_sidecar(path, replace(sidecar, **changes))
    return path


def only_engine(folder, makers=HERE, *, trust=False):
    ((engine,),) = (part.engines for part in look_at(folder, makers, trust=trust).components)
    return engine


def test_a_root_holds_the_folders_that_have_a_manifest_or_graphs(tmp_path, backends):
    root = tmp_path / "engines"
    whole, other = make_folder(root / "b"), make_folder(root / "a")
    (root / "unfinished").mkdir()
    (root / "unfinished" / "transformer.fp32.onnx").touch()
    (root / "nothing").mkdir()
    make_folder(root / ".hidden")
    assert folders_in(root, None) == [other, whole, root / "unfinished"]
    assert folders_in(root, "b") == folders_in(whole, None) == [whole]
    assert folders_in(root, "0.9.5") == []


def test_a_root_that_does_not_exist_yet_holds_none(tmp_path):
    assert folders_in(tmp_path / "engines", None) == []


def test_a_path_that_cannot_be_a_root_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none" / "engines", tmp_path / "file" / "engines"):
        with pytest.raises(LtxError, match="is not a folder - check the path"):
            folders_in(path, None)


def test_a_whole_folder_has_the_size_of_its_files(folder):
    facts = look_at(folder, {})
    assert facts.problem == "" and facts.version == "demo"
    assert facts.size_bytes == sum(len(name) for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_has_another_size_is_told_with_the_command_that_exports_again(folder, name):
    (folder / name).write_bytes(b"")
    facts = look_at(folder, {})
    assert f"{name} has 0 bytes" in facts.problem
    again = "ltx-export onnx demo"
    assert facts.command == f"{again} --engines {folder.parent}"
    (folder / name).unlink()
    assert f"{name} is missing" in look_at(folder, {}).problem
    assert look_at(folder, {}).components == ()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 99}'])
def test_a_manifest_that_cannot_be_read_is_told(folder, content):
    (folder / "manifest.json").write_text(content)
    assert "manifest.json" in look_at(folder, {}).problem


def test_files_are_not_read(folder):
    """Only a checksum would notice changed bytes at the same size, and the doctor computes none, to be quick."""
    (folder / "decoder.data").write_bytes(b"DECODER.DATA")
    assert look_at(folder, {}).problem == ""


def test_every_backend_says_what_it_would_run_or_why_not(folder):
    (component,) = look_at(folder, {}).components
    assert [one.backend for one in component.backends] == list(BACKENDS)
    said = {one.backend: one for one in component.backends}
    assert not said["cuda"].fits and said["cuda"].says == "cuda cannot - do something"
    assert said["cpu"].fits and said["cpu"].says == "vae_decoder.fp32.onnx"
    assert component.chosen == "cpu" and component.precisions == ("fp32", "bf16")


def test_the_first_backend_that_can_is_chosen(folder, backends):
    backends(cuda=lambda engines, name, backend: sessions.graph_found(engines, name, backend, ["bf16"]))
    (component,) = look_at(folder, {}).components
    assert component.chosen == "cuda"
    assert {one.backend: one.says for one in component.backends}["cuda"] == "vae_decoder.bf16.onnx"


def test_a_component_that_nothing_can_run_has_no_backend(folder, backends):
    def refuse(engines, name, backend):
        raise LtxError("no fp32 graph")

    backends(cpu=refuse)
    assert look_at(folder, {}).components[0].chosen == ""


def test_a_backend_whose_library_is_broken_is_told(folder, backends):
    def break_down(engines, name, backend):
        raise ImportError("libcudnn.so.9:\n cannot open")

    backends(cuda=break_down)
    said = {one.backend: one for one in look_at(folder, {}).components[0].backends}
    assert not said["cuda"].fits and "libcudnn.so.9: cannot open" in said["cuda"].says


def test_an_engine_that_fits_is_told_with_all_its_sidecar_says(folder):
    path = add_engine(folder)
    engine = only_engine(folder)
    assert engine.path == str(path.relative_to(folder)) and engine.size_bytes == 6
    assert (engine.builder, engine.precision, engine.weights) == ("tensorrt_rtx 1.7", "bf16", "inputs")
    assert engine.relative_l2 == 2e-3
    assert (engine.problem, engine.rebuild) == ("", "")
    assert engine.sizes[0] == "1 to 97 frames of 32x32 to 512x512"


REBUILD = "ltx-export engine demo --component vae_decoder --builder {} --engines {} --force"
ELSEWHERE = Maker("tensorrt", "10.13", "sm90-nvidia-h100", "linux-x86-64", "NVIDIA H100")
MISFITS = {
    "another version": (MAKER, {"tensorrt_rtx": replace(MAKER, version="1.8")}, "TensorRT-RTX 1.7, but 1.8"),
    "another GPU": (ELSEWHERE, {"tensorrt": replace(ELSEWHERE, target="sm89-x", gpu="RTX")}, "NVIDIA H100, but this"),
    "no library": (MAKER, {}, "which does not work here"),
    "another system": (ELSEWHERE, {"tensorrt": replace(ELSEWHERE, system="windows")}, "another operating system"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_an_engine_of_no_use_here_is_told_with_the_command_that_rebuilds_it(folder, misfit):
    maker, here, said = MISFITS[misfit]
    add_engine(folder, maker)
    engine = only_engine(folder, here)
    assert said in engine.problem and " - " not in engine.problem
    assert engine.rebuild == REBUILD.format(maker.builder, folder)


def test_an_engine_that_has_changed_or_was_built_from_another_graph_is_of_no_use(folder):
    path = add_engine(folder, sources={"vae_decoder.bf16.onnx": "other"})
    assert only_engine(folder).problem == "was built from another graph or other weights"
    path.write_bytes(b"ENGINE")
    assert only_engine(folder).problem


@pytest.mark.parametrize("target", ["nowhere", "vae_decoder.bf16.engine"], ids=["nowhere", "itself"])
def test_an_engine_that_is_a_link_to_nowhere_or_itself_is_told_like_any_other(folder, target):
    path = add_engine(folder)
    path.unlink()
    path.symlink_to(target)
    for trust in (False, True):
        engine = only_engine(folder, trust=trust)
        assert engine.problem and engine.size_bytes == 0


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_an_engine_whose_sidecar_cannot_be_read_is_told(folder, content):
    path = add_engine(folder)
    sidecar_path(path).unlink() if content is None else sidecar_path(path).write_text(content)
    engine = only_engine(folder, trust=True)
    assert "sidecar" in engine.problem or "damaged" in engine.problem
    assert engine.precision == "bf16" and engine.rebuild == REBUILD.format("tensorrt_rtx", folder)


def test_of_an_engine_of_somebody_else_nothing_is_read_unless_the_folder_is_trusted(folder):
    path = add_engine(folder)
    sidecar_path(path).write_text(sidecar_path(path).read_text() + " ")
    engine = only_engine(folder)
    assert engine.problem == FOREIGN and not engine.builder and "--trust-engines" in FOREIGN
    assert engine.rebuild == REBUILD.format("tensorrt_rtx", folder)
    assert only_engine(folder, trust=True).problem == ""


def test_an_engine_where_nothing_looks_for_it_is_of_no_use(folder):
    path = add_engine(folder)
    path.parent.rename(folder / "elsewhere")
    assert "is in elsewhere, where no backend looks for it" in only_engine(folder).problem


def test_looking_changes_nothing(folder):
    add_engine(folder)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    look_at(folder, HERE)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (DECODER, ["1 to 97 frames of 32x32 to 512x512", "1 to 257 frames of 32x32 to 768x768"]),
        (text_encoder(6), ["1 to 2 prompts of 1 to 256 tokens"]),
        (transformer(4, 6, 12), ["1 to 2048 tokens (such as 97 frames of 480x320)"]),
    ],
)
def test_sizes_are_told_in_pixels_and_frames(component, words):
    told = list(dict.fromkeys(words_of(profile) for profile in profiles(component)))
    assert told[: len(words)] == words


def test_one_size_is_told_as_one():
    exact = {"batch": Span(1, 1, 1), "frames": Span(13, 13, 13), "rows": Span(16, 16, 16), "columns": Span(24, 24, 24)}
    assert words_of(exact) == "97 frames of 768x512"
    assert words_of({"tokens": Span(4992, 4992, 4992)}) == "4992 tokens (such as 97 frames of 768x512)"


@pytest.mark.parametrize("tokens", [1, 77, 78, 312, 4991, 4992, 32768])
def test_the_grid_that_tokens_are_told_in_is_the_largest_that_fits(tokens):
    grid = shown_grid(tokens)
    if grid is None:
        assert tokens < 13 * 2 * 3
        return
    assert grid.num_frames == 97 and 2 * grid.columns == 3 * grid.rows
    assert grid.tokens <= tokens < 13 * (grid.rows + 2) * (grid.columns + 3)
