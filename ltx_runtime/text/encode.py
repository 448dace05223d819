"""Encodes prompts with an open session of the text encoder, whose graph says which ids it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.graph.reading import EXPORT_AGAIN, read_graph
from ltx_runtime.sessions import BACKENDS, Session
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.numbers import finite
from ltx_runtime.text.tokenizer import Tokenizer, padded

Floats = NDArray[np.float32]


def tokenizer_of(engines: Engines, found: Found, max_tokens: int) -> Tokenizer:
    """Opens the tokenizer of a version folder with a text encoder.

    Args:
        engines: the version folder.
        found: what runs the text encoder.
        max_tokens: number of tokens that the model sees.

    Raises:
        LtxError: the file is not a tokenizer, or has ids that are not in the tables of the text encoder's graph.
    """
    file = engines.manifest.tokenizer
    assert file is not None  # as it is only in a folder without a text encoder
    held, folder = engines.held, engines.folder
    tokenizer = held.read(lambda: Tokenizer(held.now(folder / file), max_tokens))
    if BACKENDS[found.backend].loads_graphs:
        tokenizer.check_vocabulary(held.read(lambda: words_of(held.now(found.path))))
    return tokenizer


def words_of(graph: Path) -> int:
    """Returns the number of rows of the tables in which the graph of a text encoder looks ids up.

    Raises:
        LtxError: the graph cannot be read, or looks no ids up.
    """
    read = read_graph(graph)
    rows = {constant.name: constant.dims[:1] for constant in read.initializers}
    tables = [node.inputs[0] for node in read.nodes if node.op_type == "Gather" and node.inputs[1:] == ("ids",)]
    counts = [count for table in tables for count in rows.get(table, ())]
    if not counts:
        raise LtxError(f"{graph} looks no ids up in a table", EXPORT_AGAIN)
    return min(counts)


def encode_prompts(session: Session, prompts: Sequence[Sequence[int]]) -> list[Floats]:
    """Returns the embeddings (T, C) float32 of each prompt, given the T token ids of each.

    Each is computed alone: in a batch, a library may add in another order, and what is kept of one prompt for later
    videos would depend on which others were encoded with it.

    Raises:
        NotFiniteError: an embedding has a value that is not finite.
    """
    embeddings = []
    for prompt in prompts:
        ids, mask = padded([prompt])
        row = np.asarray(session.run({"ids": ids, "mask": mask})["text"][0])
        embeddings.append(finite(row, f"the {session.component.name} computed"))
    return embeddings
