"""Encodes prompts with an open session of the text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sessions import Session
from ltx_runtime.text.tokenizer import padded

Floats = NDArray[np.float32]


def encode_prompts(session: Session, prompts: Sequence[Sequence[int]]) -> list[Floats]:
    """Returns the embeddings (T, C) float32 of each prompt, given the T token ids of each, computed in one batch."""
    ids, mask = padded(prompts)
    embeddings = session.run({"ids": ids, "mask": mask})["text"]
    return [np.asarray(row[: len(prompt)]) for row, prompt in zip(embeddings, prompts, strict=True)]
