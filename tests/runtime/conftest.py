"""Fixtures shared by the runtime's tests."""

import io
import string
import sys
from pathlib import Path
from types import ModuleType

import pytest
import sentencepiece
from fakes.stages import Diary, Stage, engines_of, write_engines
from stand_ins.cuda import cudart_of
from stand_ins.gpu_machine import Machine

from ltx_runtime import VERSIONS, Pipeline
from ltx_runtime.sessions import BACKENDS, Backend, graph_found
from ltx_runtime.sessions.cuda import gpu

SENTENCES = (
    "a cat walks on wet grass at dawn",
    "a red boat crosses the quiet lake",
    "worst quality, inconsistent motion, blurry, jittery, distorted",
    "snow falls slowly over the old town while people walk home",
)


@pytest.fixture(scope="session")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains a SentencePiece model with T5's special ids on a few sentences."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_writer=model,
        vocab_size=120,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "spiece.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture
def diary(monkeypatch):
    """Installs a backend called `fake`, and returns the log of what its stages do."""
    notes = Diary()
    module = ModuleType("fake_stages")
    module.find = lambda engines, name, backend: graph_found(engines, name, backend, ["fp32"])
    module.load = lambda found: Stage(found.component.name, notes)
    monkeypatch.setitem(sys.modules, "fake_stages", module)
    monkeypatch.setitem(BACKENDS, "fake", Backend("fake_stages", "fake"))
    return notes


@pytest.fixture
def pipe(spiece, diary):
    """A pipeline of the demo version on the fake stages."""
    with Pipeline(engines_of(VERSIONS["demo"], spiece), backend="fake") as pipe:
        yield pipe


@pytest.fixture
def engines(tmp_path, spiece, diary, monkeypatch):
    """Makes version folders in `engines` that run on the fake stages, without the components in `lacking`."""
    order, fake = dict(BACKENDS), BACKENDS["fake"]
    BACKENDS.clear()
    BACKENDS["cpu"] = fake

    def make(version, lacking=()):
        folder = tmp_path / "engines" / version.name
        write_engines(folder, version, spiece, lacking)
        return folder

    yield make
    BACKENDS.clear()
    BACKENDS.update(order)  # restores the order, which is that of preference


@pytest.fixture
def machine(monkeypatch):
    """Replaces this machine's GPU with a made-up one."""
    made = Machine()
    cudart = cudart_of(made)
    monkeypatch.setattr(gpu, "cuda_runtime", lambda: cudart)
    return made


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `ltx-run` in an empty folder; returns exit code, standard output and standard error."""
    from ltx_runtime.cli import main as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTX_ENGINES", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ltx-run", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return run
