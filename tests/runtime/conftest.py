"""What several of the runtime's tests need."""

import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
import sentencepiece
from fake_stages import Stage

from ltx_runtime.sessions import BACKENDS, Backend

SENTENCES = (
    "a cat walks on wet grass at dawn",
    "a red boat crosses the quiet lake",
    "worst quality, inconsistent motion, blurry, jittery, distorted",
    "snow falls slowly over the old town while people walk home",
)


@pytest.fixture(scope="session")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with T5's special ids, trained on a few sentences."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_writer=model,
        vocab_size=50,
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
    """What the stages of a backend called `fake` do, in order."""
    notes = []
    module = ModuleType("fake_stages")
    module.load = lambda graph, weights: Stage(graph.name.partition(".")[0], notes)
    monkeypatch.setitem(sys.modules, "fake_stages", module)
    monkeypatch.setitem(BACKENDS, "fake", Backend("fake_stages", "fp32", "fake"))
    return notes
