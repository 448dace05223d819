"""ltx-export as a user meets it: mistakes end with code 2 and one line, never with a traceback."""

import sys

import pytest
from tiny import tiny

from ltx_export import build, cli
from ltx_runtime.versions import VERSIONS


@pytest.fixture
def ltx_export(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; gives its exit code, output and error output."""
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
    """The one line of a refusal."""
    code, out, err = ended
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", ["onnx", "random-weights"])
def test_an_unknown_version_is_refused_with_the_known_ones(ltx_export, command):
    line = one_line(ltx_export(command, "0.9.2"))
    assert "'0.9.2'" in line
    assert all(name in line for name in VERSIONS)


def test_missing_weights_of_a_release_are_named_with_where_to_get_them(ltx_export):
    line = one_line(ltx_export("onnx", "0.9.5"))
    release = VERSIONS["0.9.5"]
    for name in (release.checkpoint, build.TEXT_ENCODER_FILE, build.TOKENIZER_FILE):
        assert f"weights/0.9.5/{name}" in line
    assert release.repository in line
    assert release.text_repository in line


def test_missing_weights_of_the_demo_come_with_the_command_that_makes_them(ltx_export):
    assert "ltx-export random-weights demo" in one_line(ltx_export("onnx", "demo"))


def test_an_alias_means_its_release(ltx_export):
    assert "weights/0.9.8-2b-distilled/" in one_line(ltx_export("onnx", "0.9.8-distilled"))


def test_an_unknown_precision_is_refused_with_the_known_ones(ltx_export):
    line = one_line(ltx_export("onnx", "demo", "--precision", "fp16"))
    assert "'fp16'" in line
    assert all(name in line for name in build.PRECISIONS)


def test_a_damaged_checkpoint_is_refused(ltx_export, tmp_path):
    assert ltx_export("random-weights", "demo")[0] == 0
    (tmp_path / "weights/demo/demo.safetensors").write_bytes(b"no checkpoint at all")
    assert "demo.safetensors" in one_line(ltx_export("onnx", "demo"))
    assert not (tmp_path / "engines").exists()


def test_a_folder_that_can_not_be_written_is_refused(ltx_export, tmp_path):
    (tmp_path / "weights").write_text("a file where a folder should be")
    one_line(ltx_export("random-weights", "demo"))


def test_engines_that_can_not_be_written_are_refused(ltx_export, tmp_path):
    assert ltx_export("random-weights", "demo")[0] == 0
    (tmp_path / "engines").write_text("a file where a folder should be")
    one_line(ltx_export("onnx", "demo"))


def test_random_weights_are_written_where_the_export_looks_for_them(ltx_export, tmp_path):
    code, out, _ = ltx_export("random-weights", "demo", "--seed", "3")
    assert code == 0
    assert "weights/demo" in out
    found = {path.name for path in (tmp_path / "weights" / "demo").iterdir()}
    assert found == {VERSIONS["demo"].checkpoint, build.TEXT_ENCODER_FILE, build.TOKENIZER_FILE}


def test_options_reach_the_exporter(ltx_export, exported, tmp_path, monkeypatch):
    release, calls = exported("0.9.0"), []
    monkeypatch.setitem(VERSIONS, "0.9.0", tiny("0.9.0"))
    monkeypatch.setattr(build, "export_version", lambda *given: calls.append(given))
    code, out, _ = ltx_export(
        "onnx", "0.9.0", "--weights", str(release.weights), "--engines", "made", "--precision", "fp32"
    )
    assert (code, out) == (0, "made/0.9.0 is complete\n")
    ((version, sources, folder, precisions, report),) = calls
    assert (version, sources) == (release.version, release.sources)
    assert ((tmp_path / folder), precisions, report) == (tmp_path / "made/0.9.0", ["fp32"], print)


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
    assert "onnx" in out
    assert "random-weights" in out
