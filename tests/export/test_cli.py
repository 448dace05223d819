"""ltx-export as a user runs it: mistakes end with exit code 2 and one line, never with a traceback."""

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples.demo import folder_with_demo
from samples.tiny import sources_of

from ltx_export import build, cli
from ltx_export.graphs.precision import PRECISIONS
from ltx_export.sources import download
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, Sources
from ltx_runtime.folder.manifest import MANIFEST, describe_files, write_manifest
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.progress import silent
from ltx_runtime.sessions.cuda import driver
from ltx_runtime.spec.components import COMPONENT_NAMES, OPTIONAL
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.weights.lora import LoraFile


@pytest.fixture
def ltx_export(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; returns its exit code, output and error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTX_ENGINES", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltx-export", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def one_line(ended: tuple[int, str, str]) -> str:
    """Returns the one line of a refusal, which must have exit code 2."""
    code, out, err = ended
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nonsense"], "no such command 'nonsense' - run: ltx-export --help"),
        (["onnx"], "missing argument 'VERSION' - run: ltx-export onnx --help"),
        (["check", "--lora"], "no such option: --lora - run: ltx-export check --help"),
    ],
)
def test_what_cannot_be_typed_is_one_line_that_leads_to_the_help_of_its_command(ltx_export, words, told):
    assert one_line(ltx_export(*words)) == f"error: {told}\n"


def test_without_a_command_the_help_lists_them(ltx_export):
    code, out, _ = ltx_export()
    assert code == 0 and all(command in out for command in ("onnx", "engine", "check"))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_paths_and_help_are_told_in_any_encoding(tmp_path, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for words, code in ((("--help",), 0), (("onnx", "--help"), 0), (("inspect", "狐"), 2), (("check", "狐"), 2)):
        command = [sys.executable, "-c", "from ltx_export.cli import main; main()", *words]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
        assert (ended.returncode, b"Traceback" in ended.stderr) == (code, False), ended.stderr
    (tmp_path / "狐.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a":0} ')
    command[-2:] = ["inspect", "狐.safetensors"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
    assert b"Traceback" not in ended.stderr
    assert b"\\u72d0" in ended.stdout + ended.stderr


@pytest.mark.parametrize("command", ["onnx", "random-weights", "download"])
def test_an_unknown_version_is_refused_with_the_known_ones(ltx_export, command):
    line = one_line(ltx_export(command, "0.9.2"))
    assert "'0.9.2'" in line
    assert all(name in line for name in VERSIONS)


def test_missing_weights_of_a_release_are_named_with_where_to_get_them(ltx_export):
    line = one_line(ltx_export("onnx", "0.9.5"))
    assert "weights/0.9.5 not found" in line
    assert "ltx-export download 0.9.5" in line


@pytest.mark.parametrize("name", [VERSIONS["0.9.5"].checkpoint, TEXT_ENCODER_FILE, TOKENIZER_FILE])
def test_a_file_that_a_weights_folder_lacks_is_named_with_where_to_get_it(ltx_export, tmp_path, name):
    folder = tmp_path / "weights/0.9.5"
    folder.mkdir(parents=True)
    for other in {VERSIONS["0.9.5"].checkpoint, TEXT_ENCODER_FILE, TOKENIZER_FILE} - {name}:
        (folder / other).touch()
    line = one_line(ltx_export("onnx", "0.9.5"))
    assert "weights/0.9.5" in line
    assert ("T5 encoder" if name == TEXT_ENCODER_FILE else name) in line
    assert "ltx-export download 0.9.5" in line


def test_weights_of_the_demo_come_with_the_program(ltx_export, monkeypatch):
    calls = []
    monkeypatch.setattr(build, "export_version", lambda *given: calls.append(given))
    assert ltx_export("onnx", "demo")[0] == 0
    sources = calls[0][1]
    assert sources.checkpoint.parent == Path(build.__file__).parent / "demo_weights"
    assert sources == sources_of(VERSIONS["demo"], sources.checkpoint.parent)


def test_an_alias_means_its_release(ltx_export):
    assert "weights/0.9.8-2b-distilled " in one_line(ltx_export("onnx", "0.9.8-distilled"))


@pytest.mark.parametrize("asked", ["fp8", "FP32", "", "text_encoder=fp8", "text_encoder="])
def test_an_unknown_precision_is_refused_with_the_known_ones(ltx_export, asked):
    line = one_line(ltx_export("onnx", "demo", "--precision", asked))
    assert repr(asked.removeprefix("text_encoder=")) in line
    assert all(name in line for name in PRECISIONS)


def test_an_unknown_component_is_refused_with_the_known_ones(ltx_export):
    line = one_line(ltx_export("onnx", "demo", "--precision", "vae=fp32"))
    assert "'vae'" in line
    assert all(name in line for name in COMPONENT_NAMES)


def test_an_unknown_dtype_to_store_weights_in_is_refused_with_the_known_ones(ltx_export):
    line = one_line(ltx_export("onnx", "demo", "--store", "fp8"))
    assert "'fp8'" in line
    assert all(name in line for name in PRECISIONS)


def test_a_damaged_checkpoint_is_refused(ltx_export, tmp_path):
    assert ltx_export("random-weights", "demo")[0] == 0
    (tmp_path / "weights/demo/demo.safetensors").write_bytes(b"no checkpoint at all")
    assert "demo.safetensors" in one_line(ltx_export("onnx", "demo", "--weights", "weights/demo"))
    assert not (tmp_path / "engines").exists()


def test_a_folder_that_can_not_be_written_is_refused(ltx_export, tmp_path):
    (tmp_path / "weights").write_text("a file where a folder should be")
    one_line(ltx_export("random-weights", "demo"))


def test_engines_that_can_not_be_written_are_refused(ltx_export, tmp_path):
    (tmp_path / "engines").write_text("a file where a folder should be")
    one_line(ltx_export("onnx", "demo"))


def test_random_weights_are_written_with_the_option_that_uses_them(ltx_export, tmp_path):
    code, out, _ = ltx_export("random-weights", "demo", "--seed", "3")
    assert code == 0
    assert "--weights weights/demo" in out
    found = {path.name for path in (tmp_path / "weights" / "demo").iterdir()}
    assert found == {VERSIONS["demo"].checkpoint, VERSIONS["demo"].upscaler, TEXT_ENCODER_FILE, TOKENIZER_FILE}


@pytest.fixture
def exports(exported, monkeypatch):
    """Records the calls of the exporter, with the tiny release in place of the real one."""
    calls = []
    monkeypatch.setitem(VERSIONS, "0.9.0", exported("0.9.0").version)
    monkeypatch.setattr(build, "export_version", lambda *given: calls.append(given))
    return calls


@pytest.mark.parametrize("is_file", [False, True])
def test_weights_and_precisions_reach_the_exporter(ltx_export, exported, exports, tmp_path, is_file):
    release = exported("0.9.0")
    weights = release.sources.checkpoint if is_file else release.weights
    code, out, _ = ltx_export("onnx", "0.9.0", "--weights", str(weights), "--engines", "made", "--precision", "fp32")
    assert (code, out) == (0, "made/0.9.0 is complete\n")
    ((version, sources, folder, options, report, progress),) = exports
    assert (version, sources) == (release.version, release.sources)
    assert options == build.ExportOptions(["fp32"], loras=[])
    assert ((tmp_path / folder), report, progress) == (tmp_path / "made/0.9.0", print, silent)


def test_precisions_are_the_usual_ones_unless_asked_for(ltx_export, exported, exports, monkeypatch):
    release = exported("0.9.0")
    monkeypatch.setattr(driver, "has_nvidia_driver", lambda: True)
    for asked in ([], ["--precision", "vae_decoder=fp32"]):
        assert ltx_export("onnx", "0.9.0", "--weights", str(release.weights), *asked)[0] == 0
    (*_, usual, _, _), (*_, but_one, _, _) = exports
    assert tuple(usual.precisions) == tuple(but_one.precisions) == build.DEFAULT_PRECISIONS
    assert (usual.of_component, but_one.of_component) == ({}, {"vae_decoder": ["fp32"]})
    assert not (usual.quantize or but_one.quantize)


@pytest.mark.parametrize(
    ("asked", "installed", "quantized"),
    [
        ([], True, True),
        ([], False, False),
        (["--precision", "vae_decoder=fp32"], True, True),
        (["--precision", "fp32"], True, False),
    ],
    ids=str,
)
def test_a_transformer_has_a_q8_graph_where_openvino_will_run_it(
    ltx_export, exported, exports, monkeypatch, asked, installed, quantized
):
    monkeypatch.setattr(driver, "has_nvidia_driver", lambda: False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: (installed or None) if name == "openvino" else find_spec(name)
    )
    assert ltx_export("onnx", "0.9.0", "--weights", str(exported("0.9.0").weights), *asked)[0] == 0
    ((*_, options, _, _),) = exports
    assert options.quantize == quantized


def test_every_option_reaches_the_exporter(ltx_export, exported, exports, tmp_path):
    release = exported("0.9.0")
    for name in ("vae", "t5", "pieces", "space", "time"):
        (tmp_path / name).touch()
    asked = ["--vae", "vae", "--t5", "t5", "--tokenizer", "pieces", "--variant", "bf16", "--store", "fp16", "--link"]
    asked += ["--lora", "fox.safetensors:0.5", "--lora", "den.safetensors", "--upscaler", "space", "--stg"]
    asked += ["--temporal-upscaler", "time", "--without", "vae_encoder"]
    for precision in ("fp16", "bf16", "text_encoder=fp32", "text_encoder=fp16", "vae_decoder=bf16"):
        asked += ["--precision", precision]
    (tmp_path / "engines").mkdir()
    assert ltx_export("onnx", "0.9.0", "--weights", str(release.weights), *asked)[0] == 0
    ((_, sources, folder, options, _, _),) = exports
    assert folder == Path("engines/0.9.0")
    named = (Path("t5"), Path("pieces"), Path("vae"), "bf16", Path("space"), Path("time"))
    assert sources == Sources(release.sources.checkpoint, *named)
    of_component = {"text_encoder": ["fp32", "fp16"], "vae_decoder": ["bf16"]}
    loras = [LoraFile(Path("fox.safetensors"), 0.5), LoraFile(Path("den.safetensors"), 1.0)]
    expected = build.ExportOptions(["fp16", "bf16"], of_component, "F16", loras, True, True, ("vae_encoder",))
    assert options == expected


@pytest.mark.parametrize("name", [*sorted(set(COMPONENT_NAMES) - set(OPTIONAL)), "vae", "", "upscaler"])
def test_only_what_a_run_can_do_without_may_be_left_out(ltx_export, name):
    line = one_line(ltx_export("onnx", "demo", "--without", name))
    assert f"{name!r} is not a component that can be left out - use one of {', '.join(OPTIONAL)}" in line


def test_a_download_goes_where_the_export_looks(ltx_export, monkeypatch):
    calls = []
    monkeypatch.setattr(download, "download", lambda *given, **named: calls.append((*given, named)))
    for asked in ([], ["elsewhere", "--t5", "bf16", "--temporal-upscaler"]):
        assert ltx_export("download", "0.9.8-distilled", *asked)[0] == 0
    release, options = VERSIONS["0.9.8-2b-distilled"], {"only_missing": False, "temporal_upscaler": False}
    assert calls == [
        (release, Path("weights/0.9.8-2b-distilled"), "Q8_0", print, options),
        (release, Path("elsewhere"), "bf16", print, options | {"temporal_upscaler": True}),
    ]


def test_a_folder_that_has_arrived_whole_is_checked_against_its_record(ltx_export, exported):
    folder, there = exported("0.9.5").folder, exported("0.9.5").manifest.components
    for place in (folder, folder.parent):
        code, out, _ = ltx_export("check", str(place))
        files, *components = out.splitlines()
        assert (code, files) == (0, f"{folder}: {len(list(folder.iterdir())) - 1} files are intact")
        assert components == [f"{name}: relative L2 0.0e+00 of fp32 to its record" for name in there]


def test_a_folder_that_has_arrived_damaged_is_refused(ltx_export, exported, tmp_path):
    shutil.copytree(exported("0.9.5").folder, tmp_path / "moved")
    (tmp_path / "moved" / "vae_decoder.recorded.npz").unlink()
    assert "vae_decoder.recorded.npz is missing" in one_line(ltx_export("check", "moved"))
    (tmp_path / "moved" / MANIFEST).unlink()
    assert "holds no manifest.json" in one_line(ltx_export("check", "moved"))


def test_a_graph_that_computes_otherwise_than_its_record_is_refused(ltx_export, exported, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(exported("0.9.5").folder, folder)
    with np.load(folder / "transformer.recorded.npz") as arrays:
        recorded = dict(arrays)
    np.savez(folder / "transformer.recorded.npz", **recorded | {"velocity": 1.001 * recorded["velocity"]})
    manifest = read_manifest(folder)
    files = describe_files({name: folder / name for name in manifest.files})
    write_manifest(folder, replace(manifest, files=files))
    code, out, err = ltx_export("check", "moved")
    assert (code, err.count("\n")) == (2, 1)
    assert "transformer.fp32.onnx differs from its record by 1.0e-03 relative L2, more than 1.0e-04 - run" in err
    assert "transformer:" not in out


def test_an_interrupted_export_ends_with_130_and_one_line(ltx_export, exported, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    release = exported("0.9.0")
    monkeypatch.setattr(build, "export_version", interrupted)
    code, _, err = ltx_export("onnx", "0.9.0", "--weights", str(release.weights))
    assert code == 130
    assert err.count("\n") == 1


def test_help_names_every_command(ltx_export):
    code, out, _ = ltx_export("--help")
    assert code == 0
    for command in ("onnx", "download", "inspect", "check", "calibrate", "random-weights", "engine"):
        assert f" {command} " in out


@pytest.fixture
def calibrations(monkeypatch, tmp_path):
    """Returns the arguments of every calibration, which does nothing; there is a folder to calibrate."""
    from ltx_export.calibration import calibrate

    asked = []
    monkeypatch.setattr(calibrate, "calibrate", lambda engines, report, **named: asked.append((engines, named)))
    shutil.copytree(folder_with_demo() / "engines", tmp_path / "engines")
    return asked


def test_a_calibration_gets_prompts_size_and_limit(ltx_export, calibrations, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\n\n  a boat \nrain\n")
    asked = ["--prompts", "prompts.txt", "--size", "64x96x9", "--error", "0.1"]
    code, out, _ = ltx_export("calibrate", "demo", *asked)
    assert code == 0 and "which ltx-run uses with --cpu-mode int8" in out
    assert ltx_export("calibrate", "demo")[0] == 0
    (engines, given), (_, usual) = calibrations
    assert engines.folder == Path("engines/demo")
    assert {**given, "progress": None} == {
        **{"prompts": ["a fox", "a boat", "rain"], "size": (64, 96, 9), "limit": 0.1, "progress": None},
    }
    assert len(usual["prompts"]) >= 3 and usual["size"] == (256, 384, 25) and usual["limit"] == 0.025


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--prompts", "none.txt"], "cannot read none.txt"),
        (["--prompts", "latin.txt"], "latin.txt is not text in UTF-8"),
        (["--size", "64x96"], "--size must be HEIGHTxWIDTHxFRAMES; got '64x96'"),
        (["--engines", "elsewhere"], "elsewhere"),
    ],
    ids=str,
)
def test_a_calibration_that_cannot_begin_is_refused(ltx_export, calibrations, tmp_path, asked, told):
    (tmp_path / "latin.txt").write_bytes("ein Fuchs l\xe4uft".encode("latin-1"))
    assert told in one_line(ltx_export("calibrate", "demo", *asked))
    assert calibrations == []


@pytest.mark.parametrize(
    "module", ["engines.command", "calibration.calibrate", "inspection.inspect", "sources.download", "publish", "cli"]
)
def test_all_but_the_export_itself_needs_no_torch(module):
    code = f"import sys; sys.modules['torch'] = None; import ltx_export.{module}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
