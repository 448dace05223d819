"""Signatures of what this user's programs have written, by a key in the user's own data folder.

A file from which a run goes on says where files are written and which are replaced. It lies beside the video, where it
may have come from a stranger, so it is taken at its word only with the signature of this user on this machine.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from contextlib import suppress

from ltx_runtime.files import data_folder, written_whole

_FOLDER, _NAME = "made-here", "key"
_KEY_BYTES = 32


def signature_of(text: str) -> str:
    """Returns the signature of a text; empty if the user has no place for a key."""
    key = _key()
    return "" if key is None else _signed(key, text)


def is_signed(text: str, signature: str) -> bool:
    """Returns whether a signature is that of a text by this user on this machine."""
    key = _key()
    return key is not None and hmac.compare_digest(_signed(key, text).encode(), signature.encode())


def _signed(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """Returns the user's key, which is made when it is needed first; None if there is no place for it."""
    path = data_folder(_FOLDER) / _NAME
    if not path.is_absolute():  # the current folder may be a stranger's
        return None
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError), written_whole(path, replace=False) as temporary:  # another program's
                temporary.touch(mode=0o600)
                temporary.write_bytes(secrets.token_bytes(_KEY_BYTES))
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == _KEY_BYTES else None
