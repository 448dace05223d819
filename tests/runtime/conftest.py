"""What several of the runtime's tests need."""

import io
from pathlib import Path

import pytest
import sentencepiece

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
