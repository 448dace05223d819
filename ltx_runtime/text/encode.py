"""Encodes prompts with an open session of the text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sessions import Session
from ltx_runtime.text.tokenizer import padded

Floats = NDArray[np.float32]


def encode_prompts(session: Session, prompts: Sequence[Sequence[int]]) -> list[Floats]:
    """Returns the embeddings (T, C) float32 of each prompt, given the T token ids of each.

    Each is computed alone: in a batch, a library may add in another order, and what is kept of one prompt for later
    videos would depend on which others were encoded with it.
    """
    embeddings = []
    for prompt in prompts:
        ids, mask = padded([prompt])
        embeddings.append(np.asarray(session.run({"ids": ids, "mask": mask})["text"][0]))
    return embeddings
