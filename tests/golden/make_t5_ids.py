"""Records the token ids of the official pipeline's tokenizer in t5/ids.safetensors.

The official pipeline uses transformers' T5Tokenizer, which before release 5 is SentencePiece itself; its call and its
`strip()` are repeated here. The commands are

    python3 -m venv golden-t5 && golden-t5/bin/pip install transformers==4.51.3 sentencepiece==0.2.3 safetensors numpy
    golden-t5/bin/python tests/golden/make_t5_ids.py
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from samples.prompts import ENDED, prompts  # noqa: E402

MAX_TOKENS = 256


def main() -> None:
    tokenizer = transformers.T5Tokenizer(str(HERE / "t5" / "spiece.model"))
    texts = [*prompts(), *ENDED]
    rows = tokenizer(
        [text.strip() for text in texts],
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        add_special_tokens=True,
    )
    mask = np.array(rows["attention_mask"], np.uint8)
    ids = np.array(rows["input_ids"], np.uint16)
    assert not ids[mask == 0].any()
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    stored = {"ids": ids[mask == 1], "lengths": mask.sum(1, dtype=np.uint16)}
    save_file(stored, HERE / "t5" / "ids.safetensors", {"transformers": transformers.__version__, "prompts": digest})


if __name__ == "__main__":
    main()
