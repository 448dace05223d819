"""The guard in front of every route: the token, the name of the host, and limits of size and patience."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltx_serve.http.answers import AUTHENTICATION, MOST_SHOWN, ApiError, internal_error
from ltx_serve.settings import Settings, is_loopback

_log = logging.getLogger("ltx_serve")
_PUBLIC = ("/", "/healthz", "/readyz")
_PUBLIC_FOLDER = "/page/"  # the files of the page, which hold nobody's data
_FORM_BYTES = 100_000  # for the texts of a form beside its files
_SILENCE_S = 30.0  # the longest that a client may take for the next part of a body
_FREE_S, _LEAST_BYTES_PER_S = 60.0, 10_000  # a body must come at this rate after the first minute
_DRAIN_S = 2.0
_CLOSE = {"Connection": "close"}
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Answers requests that must not reach a route, and limits those that may.

    Args:
        app: the routes.
        settings: the token, the host and the limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._token = None if settings.token is None else settings.token.encode()
        self._host = settings.host
        self._limit = settings.max_upload_bytes + _FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request. An error that no route expects is logged, and answered as the server's own."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, self._limit, is_sent="expect" not in headers and _has_body(headers))
        has_begun = False

        async def answer(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                await body.drain()
                has_begun = True
                answer_headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    answer_headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], headers)
            await self._app(scope, body, answer)
        except ApiError as error:
            await JSONResponse(error.body(), error.status, {**error.headers, **_CLOSE})(scope, receive, answer)
        except Exception:
            _log.exception("bug", extra={"path": scope["path"]})
            if has_begun:
                raise
            bug = internal_error()
            await JSONResponse(bug.body(), bug.status, _CLOSE)(scope, receive, answer)

    def _check(self, path: str, headers: Headers) -> None:
        """Raises the ApiError that answers a request which may not reach its route."""
        if "content-length" in headers and "transfer-encoding" in headers:
            # A server in between may have believed the one, and this one the other.
            raise ApiError(400, "Content-Length and Transfer-Encoding exclude each other - send one", "invalid_framing")
        if self._token is None:
            _check_site(path, headers, self._host)
        elif not is_public(path):
            _check_token(headers, self._token)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._limit:
            raise _too_large(self._limit)


def is_public(path: str) -> bool:
    """Returns whether a path needs no token."""
    return path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)


def _check_token(headers: Headers, token: bytes) -> None:
    """Compares the token in a time that does not depend on how much of it is right."""
    scheme, _, sent_token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent_token.strip().encode("latin-1", "replace"), token):
        problem = "the token is wrong" if sent_token else "there is no token"
        if scheme and scheme.lower() != "bearer":
            problem = "the header Authorization does not begin with 'Bearer '"
        message = f"{problem} - send the header Authorization: Bearer TOKEN"
        challenge = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, message, "invalid_api_key", None, AUTHENTICATION, challenge)


def _check_site(path: str, headers: Headers, own: str) -> None:
    """Refuses what a page of another site makes a browser send, if there is no token that such a page would lack.

    A name that is not of this machine comes from a page whose name was made to point here (DNS rebinding).
    """
    host = headers.get("host", "")
    name = _parts_of(f"//{host}").hostname or ""
    if name != own and not is_loopback(name):
        message = f"{host[:MOST_SHOWN]!r} is not a name of this server - use 127.0.0.1, or start it with a token"
        raise ApiError(403, message, "invalid_host")
    if is_public(path):
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") or (origin is not None and _parts_of(origin).netloc != host):
        raise ApiError(403, "a page of another site cannot use this server - start it with a token", "invalid_origin")


def _parts_of(address: str) -> SplitResult:
    """Returns the parts of an address; all are empty if it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _too_large(limit: int) -> ApiError:
    most_mb = (limit - _FORM_BYTES) / 1e6
    message = f"the request has more than {most_mb:g} MB - send smaller files"
    return ApiError(413, message, "body_too_large", headers=_CLOSE)


class _Body:
    """Receives the body of a request, up to a limit, from a client that keeps sending.

    Args:
        receive: returns the next part.
        limit: most bytes of the body.
        is_sent: whether the client sends it without being told to.
    """

    def __init__(self, receive: Receive, limit: int, *, is_sent: bool) -> None:
        self._receive, self._limit, self._is_sent = receive, limit, is_sent
        self._size, self._more = 0, True
        self._began: float | None = None  # a body that waits for its turn is not slow

    async def __call__(self) -> Message:
        """Returns the next part.

        Raises:
            ApiError: the body is too large, or comes too slowly.
        """
        if not self._more:  # what is awaited now is that the client leaves
            return await self._receive()
        self._began = self._began or time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), _SILENCE_S)
        except asyncio.TimeoutError:
            raise self._too_slow() from None
        self._size += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._size > self._limit:
            raise _too_large(self._limit)
        lasted_s = time.monotonic() - self._began
        if self._more and lasted_s > _FREE_S and self._size < lasted_s * _LEAST_BYTES_PER_S:
            raise self._too_slow()
        return message

    def _too_slow(self) -> ApiError:
        self._more = False
        return ApiError(408, "the body of the request comes too slowly - send it again", "timeout", headers=_CLOSE)

    async def drain(self) -> None:
        """Reads what a client still sends, for a moment: many read the answer only when they have sent everything."""
        dropped, until = 0, time.monotonic() + _DRAIN_S
        with suppress(asyncio.TimeoutError):
            while self._is_sent and self._more and dropped < self._limit and (left_s := until - time.monotonic()) > 0:
                message = await asyncio.wait_for(self._receive(), left_s)
                dropped += len(message.get("body", b""))
                self._more = message.get("more_body", False)
