"""Words in the names of parameters that several kinds of files share, and lists of names for messages."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Parts of names that training wrappers of torch put anywhere.
WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# diffusers' words for parts of the transformer, and the official ones.
DIFFUSERS_WORDS = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}
_MAX_SHOWN = 4


def first(names: Sequence[str]) -> str:
    """Returns the first few names and the number of the others, for error messages."""
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more
