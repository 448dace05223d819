"""`ltx-export engine` as a user runs it, with TensorRT-RTX, which builds without a GPU."""

import shutil
import sys
from collections import namedtuple
from contextlib import contextmanager

import pytest
from stand_ins.tensorrt_builder import full_tensorrt
from stand_ins.tiny_engines import address, copied, maker

from ltx_export import cli
from ltx_export.engines import command as engine_command
from ltx_export.engines import preflight
from ltx_export.engines.command import limits_of
from ltx_export.engines.files import prepared_for
from ltx_export.engines.numbers import Numbers
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.profiles import profiles
from ltx_runtime.folder.sidecar import read_sidecar, sidecar_path
from ltx_runtime.packages import install_command
from ltx_runtime.sessions.cuda import gpu as cuda_gpu
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.spec.components import COMPONENT_NAMES
from ltx_runtime.spec.versions import VERSIONS

RELEASE = "0.9.8-13b-distilled"
SMALLEST = ("--max-height", "64", "--max-width", "96", "--max-frames", "9")
GPU = Gpu("NVIDIA GeForce RTX 4090", (8, 9), "13.0", 24 << 30)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def engines(exported, tmp_path):
    return copied(exported(RELEASE), tmp_path / "engines")


@pytest.fixture
def engine(monkeypatch, capsys, tmp_path):
    """Runs `ltx-export engine` for the release; returns its exit code, output and error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTX_ENGINES", raising=False)

    def run(*arguments: str, version: str = RELEASE) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltx-export", "engine", version, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def refused(ended) -> str:
    """Returns the error line of a refusal, which must have exit code 2 and no traceback."""
    code, _, err = ended
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in err
    return last


def only(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--component", name))


def test_every_component_gets_an_engine_and_one_line_and_none_is_built_again(engine, engines):
    code, out, err = engine(*SMALLEST)
    first, *lines = out.splitlines()
    assert code == 0
    assert first.startswith("TensorRT-RTX 1.")
    assert len(lines) == len(engines.manifest.components)
    for line, name in zip(lines, engines.manifest.components, strict=True):
        path = address(engines, name).path.relative_to(engines.folder.parents[1])
        assert line.startswith(f"{path}: built in ") and "not checked: " in line
        count = len(profiles(engines.component(name).signature, limits_of(VERSIONS[RELEASE], (64, 96, 9), None)))
        assert f" MB, {count} profile{'s' if count > 1 else ''}, weights embedded, " in line
    assert [line.partition(":")[0] for line in err.splitlines()] == list(engines.manifest.components)
    code, out, err = engine(*SMALLEST)
    assert (code, err) == (0, "")
    assert all(" fits, " in line for line in out.splitlines()[1:])


def test_check_builds_nothing_and_fails_where_an_engine_is_missing_or_serves_other_sizes(engine, engines):
    folder = engines.folder / maker().folder
    assert "does not exist - run: ltx-export engine" in refused(engine("--check", *only("upsampler")))
    assert not folder.exists()
    assert engine(*SMALLEST, *only("upsampler"))[0] == 0
    assert engine(*SMALLEST, *only("upsampler"), "--check")[0] == 0
    assert "serves other sizes - run" in refused(engine("--check", *only("upsampler")))
    assert "leave one out" in refused(engine("--check", "--force"))


def test_an_interrupted_run_goes_on_with_what_is_missing(engine, engines, monkeypatch):
    build = engine_command.build_engine
    built = []

    def interrupted(address, *given):
        name = address.component
        if name == "upsampler" and name not in built:
            built.append(name)
            raise KeyboardInterrupt
        built.append(name)
        return build(address, *given)

    monkeypatch.setattr(engine_command, "build_engine", interrupted)
    asked = (*SMALLEST, *only("text_encoder", "upsampler"))
    code, _, err = engine(*asked)
    assert code == 130 and "complete engines are kept, and not built again" in err
    assert engine(*asked)[0] == 0
    assert built == ["text_encoder", "upsampler", "upsampler"]


def test_force_builds_what_fits_anew(engine, engines, monkeypatch):
    asked = (*SMALLEST, *only("text_encoder"))
    engine(*asked)
    path = address(engines, "text_encoder").path
    before = path.stat().st_ino
    engine(*asked)
    assert path.stat().st_ino == before
    code, out, _ = engine(*asked, "--force")
    assert code == 0 and "built in" in out


def test_precision_place_of_weights_and_the_one_size_are_as_asked(engine, engines):
    asked = ("--precision", "fp16", "--weights", "inputs", "--static", "64x96x9", *only("vae_decoder"))
    code, out, _ = engine(*asked)
    assert (code == 0 and "1 profile, weights inputs" in out.splitlines()[-1]) or "2 profiles, weights inputs" in out
    sidecar = read_sidecar(address(engines, "vae_decoder", precision="fp16").path)
    assert (sidecar.precision, sidecar.weights) == ("fp16", "inputs")
    assert all(span.min == span.max for profile in sidecar.profiles for span in profile.values())


@pytest.mark.parametrize(("options", "said"), [
    (("--builder", "tensorflow"), "unknown builder 'tensorflow' - use one of auto, tensorrt, tensorrt_rtx"),
    (("--precision", "fp32"), "unknown precision of engines 'fp32' - use one of bf16, fp16"),
    (("--weights", "stolen"), "unknown place for weights 'stolen' - use one of auto, embedded, inputs, refit"),
    (only("vae"), f"unknown component 'vae' - use one of {', '.join(COMPONENT_NAMES)}"),
    (("--static", "64x96"), "--static must be HEIGHTxWIDTHxFRAMES; got '64x96' - use 704x1216x121"),
    (("--static", "64x96x9", "--max-frames", "9"), "leave one out"),
    (("--static", "64x90x9"), "width must be a multiple of 32; got 90 - use 64 or 96"),
    (("--max-height", "70"), "height must be a multiple of 32; got 70 - use 64 or 96"),
    (("--max-frames", "10"), "num-frames must be 8n+1; got 10 - use 9 or 17"),
    (("--weights", "refit"), "TensorRT-RTX leaves weights out of an engine only where a GPU is - use --weights inputs"),
    (("--weights", "inputs", "--weight-streaming"), "use --weights embedded with --weight-streaming"),
    (("--builder", "tensorrt"), install_command("tensorrt")),
])  # fmt: skip
def test_a_mistake_is_refused_in_one_line_before_anything_is_written(engine, engines, options, said):
    assert said in refused(engine(*options))
    assert not (engines.folder / maker().folder).exists()


def test_a_component_that_there_is_not_is_refused(engine, exported, tmp_path):
    copied(exported("0.9.5"), tmp_path / "engines")
    line = refused(engine(*only("upsampler"), version="0.9.5"))
    assert "has no upsampler - run: ltx-export download 0.9.5" in line
    assert "has no bf16 graph of text_encoder" in refused(engine(version="0.9.5"))


def test_a_changed_file_is_noticed_before_anything_is_built(engine, engines):
    graph = engines.folder / "text_encoder.bf16.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    assert "has changed since the export" in refused(engine(*SMALLEST))


def test_a_full_disk_is_said_before_the_first_build_even_with_force(engine, engines, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1, 1, 0))
    for more in ((), ("--force",)):
        assert "add --weights inputs, or move" in refused(engine(*SMALLEST, *more))
    assert not (engines.folder / maker().folder).exists()


def test_where_no_builder_is_installed_it_is_said_what_to_install(engine, engines, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    line = refused(engine())
    assert "there is no builder of engines here (TensorRT cannot be loaded" in line
    assert line.endswith(f"run: {install_command('tensorrt-rtx')}")
    code, out, err = engine("--if-possible")
    assert (code, err) == (0, "")
    assert out.startswith("ONNX only: there is no builder of engines here") and out.count("\n") == 1


def test_tensorrt_is_taken_where_it_has_a_gpu_and_it_is_said_why(engine, engines, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", full_tensorrt("11.4"))
    monkeypatch.setattr(engine_command, "check_engine_numbers", lambda found: Numbers(0.002))
    _, out, _ = engine(*SMALLEST, *only("text_encoder"))
    assert out.startswith("TensorRT-RTX 1.")
    assert "(TensorRT builds and runs engines on an NVIDIA GPU only)" in out.splitlines()[0]
    monkeypatch.setattr(cuda_gpu, "find_gpu", lambda: GPU)
    _, out, _ = engine(*SMALLEST, *only("text_encoder"))
    first, line = out.splitlines()
    assert first == "TensorRT 11.4 (for NVIDIA GeForce RTX 4090)"
    assert "sm89-nvidia-geforce-rtx-4090-tensorrt-11.4/text_encoder.bf16.engine: built in" in line


def test_large_weights_stay_in_the_checkpoint_unless_asked_otherwise(engine, engines, monkeypatch):
    prepared = prepared_for(address(engines, "text_encoder"), "embedded")
    monkeypatch.setattr(engine_command, "_MAX_EMBEDDED_BYTES", prepared.weights_bytes)
    assert "weights embedded" in engine(*SMALLEST, *only("text_encoder"), "--force")[1]
    monkeypatch.setattr(engine_command, "_MAX_EMBEDDED_BYTES", prepared.weights_bytes - 1)
    assert " fits" in engine(*SMALLEST, *only("text_encoder"))[1]  # the existing engine is good enough
    assert "weights inputs" in engine(*SMALLEST, *only("text_encoder"), "--force")[1]
    assert "weights embedded" in engine(*SMALLEST, *only("text_encoder"), "--weights", "embedded")[1]


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is a GPU, on which every engine differs from the fp32 graph by the list's number."""
    found, off = [], [0.001]

    def check(one):
        found.append(one)
        if off[0] is None:
            return Numbers(None, "the GPU has too little free memory")
        if off[0] > 0.05:
            raise LtxError(f"{one.path} differs from the fp32 graph - report it")
        return Numbers(off[0])

    monkeypatch.setattr(cuda_gpu, "find_gpu", lambda: GPU)
    monkeypatch.setattr(engine_command, "check_engine_numbers", check)
    return found, off


def test_where_there_is_a_gpu_the_numbers_are_checked_and_kept_in_the_sidecar(engine, engines, gpu):
    found, off = gpu
    path = address(engines, "text_encoder").path
    off[0] = None
    assert "not checked: the GPU has too little free memory" in engine(*SMALLEST, *only("text_encoder"))[1]
    assert read_sidecar(path).relative_l2 is None
    off[0] = 0.001
    assert "fits, " in (line := engine(*SMALLEST, *only("text_encoder"))[1]) and "relative L2 1.0e-03" in line
    assert read_sidecar(path).relative_l2 == 0.001
    assert "fits, relative L2 1.0e-03" in engine(*SMALLEST, *only("text_encoder"))[1]
    assert len(found) == 2
    assert {(one.backend, one.path.resolve(), one.sidecar.weights) for one in found} == {
        ("tensorrt_rtx", path.resolve(), "embedded")
    }


def test_an_engine_with_wrong_numbers_is_removed_unless_it_is_wanted_all_the_same(engine, engines, gpu):
    _, off = gpu
    off[0] = 0.3
    path = address(engines, "text_encoder").path
    assert "differs from the fp32 graph" in refused(engine(*SMALLEST, *only("text_encoder")))
    assert not path.exists() and not sidecar_path(path).exists()
    code, out, err = engine(*SMALLEST, *only("text_encoder"), "--force")
    assert code == 0 and "wrong, and kept all the same" in out and "warning: " in err
    assert path.exists()


def test_weights_that_do_not_fit_into_memory_become_inputs_by_themselves(engine, engines, monkeypatch):
    monkeypatch.setattr(preflight, "free_memory", lambda: 1_000_000)
    assert ", weights inputs, " in engine(*SMALLEST, *only("upsampler"))[1]
    assert "add --weights inputs" in refused(engine(*SMALLEST, *only("upsampler"), "--weights", "embedded"))


def test_where_a_disk_has_no_room_what_is_only_built_if_possible_is_not(engine, engines, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 0, 1000))
    assert "its disk has 0.0 MB free" in refused(engine(*SMALLEST, *only("upsampler")))
    code, out, err = engine(*SMALLEST, *only("upsampler"), "--if-possible")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("ONNX only: engines in ")
    assert not list(engines.folder.rglob("*.engine*"))


def test_an_engine_that_streams_its_weights_does_not_pass_for_one_that_does_not(engine, engines):
    asked = (*SMALLEST, *only("upsampler"))
    for streaming in ((), ("--weight-streaming",), ()):
        assert ": built in " in engine(*asked, *streaming)[1]
        assert " fits, " in engine(*asked, *streaming)[1]


def test_two_runs_never_write_the_same_folder_at_once(engine, engines, monkeypatch):
    from filelock import FileLock

    folder = engines.folder / maker().folder
    folder.mkdir()

    @contextmanager
    def another():
        with FileLock(folder.with_name(f".ltx-{folder.name}.lock")):
            yield

    with another():
        assert "another process is writing" in refused(engine(*SMALLEST, *only("text_encoder")))
    assert engine(*SMALLEST, *only("text_encoder"))[0] == 0
