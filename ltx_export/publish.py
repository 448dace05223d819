"""A version folder -> a repository of the Hugging Face hub, in one commit; `ltx-run --fetch` gets it from there.

Engines are left out: they are built where they run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.files import amount
from ltx_runtime.folder.manifest import MANIFEST, Engines, manifest_text
from ltx_runtime.hub.environment import prepare
from ltx_runtime.hub.remote import UnreachableError, check_name, refusal, status_of


def publish(engines: Engines, repository: str, report: Callable[[str], None], *, private: bool = False) -> str:
    """Uploads a version folder, and returns the address of its repository.

    Files that the hub has already are not uploaded again. Weights that the folder only links to are uploaded as files.

    Args:
        engines: the version folder, verified.
        repository: the repository, as "owner/name"; created if missing.
        report: called with each line of progress.
        private: whether a new repository is visible to its owner alone.

    Raises:
        LtxError: the hub cannot be reached or refuses the upload, or a file has changed meanwhile.
    """
    check_name(repository)
    prepare()
    from huggingface_hub import HfApi, constants  # noqa: PLC0415  (takes 0.5 s, only the hub needs it)
    from huggingface_hub.errors import HTTPError  # noqa: PLC0415

    manifest = engines.manifest
    size = sum(entry.size_bytes for entry in manifest.files.values())
    report(f"{len(manifest.files) + 1} files, {amount(size)}, to {constants.ENDPOINT}/{repository}")
    try:
        _upload(HfApi(), engines, repository, private)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # An upload in a thread of the library's fails with a RuntimeError that only names the file.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) and type(error) is RuntimeError else error
        if isinstance(cause, OSError) and cause.errno is not None and status_of(cause) is None:
            raise cause from None  # an error of the disk
        raise _refusal(cause, repository) from None
    return f"{constants.ENDPOINT}/{repository}"


def _upload(api: Any, engines: Engines, repository: str, private: bool) -> None:
    from huggingface_hub import CommitOperationAdd  # noqa: PLC0415

    manifest = engines.manifest
    api.create_repo(repository, private=private, exist_ok=True)
    paths = {name: os.fspath(manifest.place(engines.folder, name)) for name in manifest.files}
    contents = paths | {MANIFEST: manifest_text(replace(manifest, linked={})).encode()}
    additions = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
    engines.held.check_stands()  # by now, the checksums of all files were computed
    message = f"{manifest.version}, exported by ltx-engines"
    api.create_commit(repository, additions, commit_message=message)
    engines.held.check_stands()


def _refusal(error: Exception, repository: str) -> LtxError:
    """Converts an error of huggingface_hub into an LtxError with advice."""
    if status_of(error) in (401, 403):
        return LtxError(
            f"{repository} may not be written to (status {status_of(error)})",
            "set HF_TOKEN to a token of its owner that may write",
        )
    refused = refusal(error, repository, f"publish to {repository}")
    if isinstance(refused, UnreachableError):
        return LtxError(refused.problem, "run the command again; what was uploaded is not uploaded again")
    return refused
