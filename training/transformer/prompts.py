"""What a transformer is told of a clip: a caption, now and then a part of one, or what stands for no prompt at all."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn

from ltx_export.official_files import tokenizer_of
from ltx_runtime.spec.versions import NEGATIVE_PROMPT
from training.world.captions import caption, part_of_caption, phrasings
from training.world.scenes import Scene, random_scene

END = 1
CORPUS = 3000  # scenes whose phrasings a vocabulary is found in

# How often there is no prompt, for guidance; half of those are the negative prompt that programs use by default.
WITHOUT = 0.1
# How often less is said than a caption says, as people do in negative prompts.
IN_PART = 0.15


def vocabulary_of_captions(pieces: int, seed: int) -> bytes:
    """Returns a SentencePiece model with at most `pieces` pieces for captions and the negative prompt."""
    random = np.random.default_rng(seed)
    scenes = [random_scene(random) for _ in range(CORPUS)]
    texts = chain.from_iterable((caption(scene, random), phrasings(scene)[0][0].lower()) for scene in scenes)
    return tokenizer_of([*texts, *[NEGATIVE_PROMPT] * (CORPUS // 10)], pieces)


def prompt_of(scene: Scene, random: np.random.Generator) -> str:
    """Returns a caption of a scene, a part of one, or what stands for none."""
    chance = random.random()
    if chance < WITHOUT:
        return NEGATIVE_PROMPT if chance < WITHOUT / 2 else ""
    if chance < WITHOUT + IN_PART:
        return part_of_caption(scene, random)
    return caption(scene, random)


def ids_of(prompts: list[str], tokenizer: SentencePieceProcessor) -> tuple[Tensor, Tensor]:
    """Returns ids and mask (B, T) int64 of prompts, of which the longest has T tokens."""
    pieces = [torch.tensor([*pieces, END]) for pieces in tokenizer.encode(prompts)]
    ids = nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    return ids, (ids != 0).long()
