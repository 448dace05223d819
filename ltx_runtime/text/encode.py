"""Encodes prompts with an open session of the text encoder."""

from __future__ import annotations

from ltx_runtime.sessions import Session
from ltx_runtime.text.embeddings import Text
from ltx_runtime.text.tokenizer import Tokenizer


def encode_prompt(session: Session, tokenizer: Tokenizer, prompt: str, negative_prompt: str | None) -> Text:
    """Returns the embeddings of one prompt and, unless None, its negative prompt, both padded to the longer one."""
    ids, mask = tokenizer.encode([prompt] if negative_prompt is None else [prompt, negative_prompt])
    embeddings = session.run({"ids": ids, "mask": mask})["text"]
    if negative_prompt is None:
        return Text(embeddings, mask)
    return Text(embeddings[:1], mask[:1], embeddings[1:], mask[1:])
