"""One file of the Hugging Face hub: its metadata, its cached copy, its download, and advice for every failure.

Wraps huggingface_hub, which reads the endpoint, the token and the offline mode from the environment and transfers the
bytes. Only the partial file is managed here: `hf_hub_download` uses a new one for every attempt and removes it when the
attempt fails, so that 28 GB would start anew after each interruption. Knows nothing of releases and folders.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ltx_runtime.errors import LtxError
from ltx_runtime.hub.environment import proxy_of, settings

T = TypeVar("T")

_CHECKSUM = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA256_DIGITS = 64
_WAITS_S = (1, 2, 4)
_BLOCK_BYTES = 1 << 20
_PROXY_WANTS_NAME = 407


@dataclass(frozen=True)
class RemoteFile:
    """A file of the hub.

    Attributes:
        repository: the file's repository, as "owner/name".
        name: path in the repository.
        target: path in the weights folder.
    """

    repository: str
    name: str
    target: str


@dataclass(frozen=True)
class Published:
    """A file's state on the hub: commit, size in bytes, and checksum.

    The checksum is SHA-256, or git's blob id (SHA-1) if the file is not in LFS.
    """

    file: RemoteFile
    commit: str
    checksum: str
    size: int


class UnreachableError(LtxError):
    """Error of a hub that does not answer or is busy, with the reason."""


class AbsentError(LtxError):
    """Error of a repository without the file."""


def check_name(repository: str) -> None:
    """Raises LtxError if a text is not the name of a repository and its owner."""
    if not _NAME.fullmatch(repository):
        raise LtxError(f"{repository!r} is not the name of a repository", "write it as OWNER/NAME")


def ask(file: RemoteFile, revision: str = "main") -> Published:
    """Asks the hub for a file's commit, size and checksum.

    Args:
        file: the file.
        revision: a commit, or "main" for the current one.

    Raises:
        LtxError: there is no such file, or the user has no access to it; UnreachableError if the hub does not answer.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url  # noqa: PLC0415

    def attempt() -> Any:
        return get_hf_file_metadata(hf_hub_url(file.repository, file.name, revision=revision))

    answer = _with_retries(attempt, file)
    if answer.commit_hash is None or answer.size is None or not _CHECKSUM.fullmatch(answer.etag or ""):
        raise LtxError(
            f"{constants.ENDPOINT} returned no size and checksum for {file.repository}/{file.name}, unlike a Hugging "
            "Face hub",
            f"check HF_ENDPOINT and {proxy_of(constants.ENDPOINT) or 'the network'}",
        )
    return Published(file, answer.commit_hash, answer.etag or "", answer.size)


def fetch(published: Published, partial: Path) -> None:
    """Downloads the missing end of a partial file, without computing its checksum.

    Args:
        published: the file on the hub.
        partial: the partial file; if it exists, it must have been started for the same checksum.

    Raises:
        LtxError: the hub stops answering, or refuses the request; the partial file is kept.
    """
    from huggingface_hub import hf_hub_url  # noqa: PLC0415
    from huggingface_hub.file_download import http_get  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # noqa: PLC0415

    file = published.file
    # The hub's URL of this commit: the signed URL of the hub's storage expires long before a slow download ends.
    url = hf_hub_url(file.repository, file.name, revision=published.commit)

    def attempt() -> None:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # byte ranges must refer to the file itself
        with partial.open("ab") as out:
            http_get(
                url,
                out,
                resume_size=out.tell(),
                headers=headers,
                expected_size=published.size,
                displayed_filename=file.target,
            )

    try:
        _with_retries(attempt, file, bytes_received=lambda: partial.stat().st_size if partial.exists() else 0)
    except UnreachableError as error:
        raise LtxError(
            f"{error}; the partial download of {file.target} is kept", "run the command again to resume"
        ) from None


def cached(file: RemoteFile, commit: str) -> tuple[Path, Published] | None:
    """Returns a file of huggingface_hub's shared cache, at this commit or else at the cached `main`, unchecked.

    The cache names its blobs by their checksums and links to them from `snapshots/<commit>/<name>`. None is returned
    if it lacks the file, or on file systems where it cannot make links.
    """
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    for revision in (commit, "main"):
        cached_path = try_to_load_from_cache(file.repository, file.name, revision=revision)
        if isinstance(cached_path, str) and (link := Path(cached_path)).is_symlink() and os.access(link, os.R_OK):
            snapshot = link.parents[file.name.count("/")]
            return link.resolve(), Published(file, snapshot.name, link.readlink().name, link.stat().st_size)
    return None


def checksum_like(path: Path, like: str) -> str:
    """Computes the SHA-256 of a file, or its git blob id if `like`, the checksum to compare with, is a blob id."""
    if len(like) == _SHA256_DIGITS:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _with_retries(attempt: Callable[[], T], file: RemoteFile, bytes_received: Callable[[], int] = lambda: 0) -> T:
    """Calls `attempt`, and retries it after temporary failures until several in a row have made no progress.

    Args:
        attempt: the function to call; its result is returned.
        file: the file that error messages name.
        bytes_received: returns the number of bytes received so far; more bytes than at the last failure count as
            progress.

    Raises:
        LtxError: the failure is permanent; UnreachableError if it is temporary but the retries are used up.
    """
    from huggingface_hub import constants  # noqa: PLC0415
    from huggingface_hub.errors import HTTPError  # noqa: PLC0415  (that of the HTTP library which huggingface_hub uses)

    failures, bytes_before = 0, bytes_received()
    while True:
        try:
            return attempt()
        except (HTTPError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk, not of the network
            bytes_now = bytes_received()
            failures = 1 if bytes_now > bytes_before else failures + 1
            bytes_before = bytes_now
            if not _is_temporary(error) or _is_untrusted(error) or failures > len(_WAITS_S):
                page = f"{constants.ENDPOINT}/{file.repository}"
                raise refusal(error, file.repository, f"download {file.name} from {page}", file.name) from None
        time.sleep(_WAITS_S[failures - 1])


def _is_temporary(error: Exception) -> bool:
    """Returns whether a retry may succeed: after a busy or failing server, a broken connection, or a truncated body."""
    from huggingface_hub.errors import HTTPError  # noqa: PLC0415

    status = status_of(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(error, HTTPError) or type(error) is OSError


def _is_untrusted(error: Exception) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def status_of(error: Exception) -> int | None:
    """Returns the status with which a server answered; None if it did not."""
    return getattr(getattr(error, "response", None), "status_code", None)


def refusal(error: Exception, repository: str, doing: str, name: str = "") -> LtxError:
    """Converts an error of huggingface_hub into an LtxError with advice.

    Args:
        error: the error.
        repository: the repository, as "owner/name".
        doing: what was attempted, as in "download a.onnx from https://...".
        name: the file's path in the repository; empty if it is about no file of it.
    """
    from huggingface_hub import constants, errors  # noqa: PLC0415

    page, status = f"{constants.ENDPOINT}/{repository}", status_of(error)
    reason = f"status {status}" if status else " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UnreachableError("offline mode is on (HF_HUB_OFFLINE)")
    proxy = proxy_of(constants.ENDPOINT)
    if status == _PROXY_WANTS_NAME:
        return LtxError(
            f"the proxy in {proxy} wants a name and a password", "add them to its address: http://NAME:PASSWORD@..."
        )
    reason += f"; through the proxy in {proxy}" if proxy else ""
    if _is_untrusted(error):
        return UnreachableError(f"{constants.ENDPOINT} has a certificate that is not trusted here ({reason})")
    if _is_temporary(error):
        return UnreachableError(f"{constants.ENDPOINT} cannot be reached or is busy ({reason})")
    if isinstance(error, errors.GatedRepoError):
        return LtxError(f"{page} is gated", "accept its licence there, then set HF_TOKEN to a token of that account")
    if isinstance(error, errors.RepositoryNotFoundError):
        return LtxError(
            f"{page} does not exist or is private", "check HF_ENDPOINT, or set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return AbsentError(f"{page} has no file {name}", "check whether HF_ENDPOINT names a complete mirror")
    if status in (401, 403):
        return LtxError(f"{page} refuses {name} ({reason})", "set HF_TOKEN to a valid token that may read it")
    return LtxError(f"cannot {doing}: {reason}", f"check {settings()}")
