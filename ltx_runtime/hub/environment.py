"""Checks the environment variables on which the way to the hub depends: its address, proxies, certificates, the token.

huggingface_hub and its HTTP library read these variables, each at another moment and with other errors. All of them are
read here first, so that a value that cannot be used is told with the name of its variable.
"""

from __future__ import annotations

import importlib
import os
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ltx_runtime.errors import LtxError
from ltx_runtime.packages import pip_command

_ENDPOINT, _TOKEN = "HF_ENDPOINT", "HF_TOKEN"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE")


def prepare() -> None:
    """Imports huggingface_hub and opens its HTTP client, which read the environment.

    Raises:
        LtxError: a variable has a value that cannot be used; names the variable.
    """
    _check_endpoint()
    _import_library()
    from huggingface_hub import close_session, get_session  # noqa: PLC0415  (takes 0.5 s, only the hub needs it)

    try:
        get_session()
    except Exception as error:
        name = next((name for name in _client_variables() if _opens_without(name)), "")
        close_session()
        raise _unusable(name, error) from None
    _check_headers()


def influences() -> str:
    """Returns what decides whether the hub is reached, for advice: the network, and variables that are set."""
    names = [_ENDPOINT, "HF_HUB_OFFLINE", *_client_variables()]
    return ", ".join(["the network", *(name for name in names if os.environ.get(name))])


def settings() -> str:
    """Returns the names of the library's own variables that are set, for advice where no reason is known."""
    return ", ".join(name for name in os.environ if name.startswith("HF_")) or f"{_ENDPOINT} and {_TOKEN}"


def proxy_of(address: str) -> str:
    """Returns what says that requests to an address go through a proxy: a variable, or the system; may be empty."""
    parts = urlsplit(address)
    kinds = (parts.scheme, "all")
    if not any(kind in urllib.request.getproxies() for kind in kinds):
        return ""
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    named = (name for kind in kinds for name in (f"{kind}_proxy", f"{kind}_PROXY".upper()) if os.environ.get(name))
    return next(named, "the system's settings")


def _check_endpoint() -> None:
    given = os.environ.get(_ENDPOINT)
    if given is None:
        return
    try:
        parts = urlsplit(given)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not given.isprintable() or " " in given:
        raise LtxError(
            f"{_ENDPOINT} is {given!r}, which is not the address of a hub", "use https://huggingface.co, or unset it"
        )


def _import_library() -> None:
    """Imports huggingface_hub, which reads its own variables only once, while it is imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of variables that have no effect any more
            importlib.import_module("huggingface_hub.file_download")
    except ImportError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        own = [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TQDM_"))]
        blamed = [name for name in own if os.environ[name] and repr(os.environ[name]) in reason] or own
        raise LtxError(
            f"huggingface_hub cannot use the value of {' or '.join(blamed)}: {reason}", "correct it, or unset it"
        ) from None


def _client_variables() -> list[str]:
    """Returns the names of the set variables that the HTTP client reads."""
    return [name for name in os.environ if name.lower() in _PROXIES or name in _CERTIFICATES]


def _opens_without(name: str) -> bool:
    """Returns whether the HTTP client can be opened if a variable is not set."""
    from huggingface_hub import close_session, get_session  # noqa: PLC0415

    with _unset(name):
        close_session()
        try:
            get_session()
        except Exception:
            return False
    return True


@contextmanager
def _unset(name: str) -> Iterator[None]:
    value = os.environ.pop(name)
    try:
        yield
    finally:
        os.environ[name] = value


def _unusable(name: str, error: Exception) -> LtxError:
    """Returns the error for a client that cannot be opened; `name` is empty if more than one variable is wrong."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        where = name or " and ".join(_client_variables())
        return LtxError(f"{where} names a SOCKS proxy, which needs socksio", command=pip_command("install", "socksio"))
    if name in _CERTIFICATES:
        return LtxError(f"{name} is {os.environ[name]}, which cannot be read ({reason})", "correct it, or unset it")
    return LtxError(f"{name or ' and '.join(_client_variables())} cannot be used ({reason})", "correct it, or unset it")


def _check_headers() -> None:
    """Raises LtxError if the token cannot be read, or if it or another header cannot be sent."""
    from huggingface_hub import constants  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # noqa: PLC0415

    try:
        headers = build_hf_headers()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "it is no text"
        raise LtxError(
            f"the token in {constants.HF_TOKEN_PATH} cannot be read ({reason})",
            f"correct HF_TOKEN_PATH or HF_HOME, or set {_TOKEN}",
        ) from None
    if all(value.isascii() for value in headers.values()):
        return
    blamed = [name for name in os.environ if name.startswith("HF_") and not os.environ[name].isascii()]
    where = " and ".join(blamed) or f"the token in {constants.HF_TOKEN_PATH}"
    raise LtxError(f"{where} has letters that cannot be sent", "correct it, or unset it")
