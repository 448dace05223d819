"""The application: all routes behind their guards, with errors in OpenAI's shape and a document that says so."""

from __future__ import annotations

import errno
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ltx_runtime.errors import LtxError, printable, shown
from ltx_runtime.packages import RELEASE
from ltx_serve.checking.checker import Checker, CheckerMissingError
from ltx_serve.checking.room import Room
from ltx_serve.http import videos
from ltx_serve.http.answers import MOST_SHOWN, ApiError, error_body, no_space, refusal
from ltx_serve.http.events import event_routes
from ltx_serve.http.fields import body_schemas
from ltx_serve.http.guard import Guard, is_public
from ltx_serve.http.metrics import Metrics, Observer, operator_routes
from ltx_serve.http.models import Models, model_routes
from ltx_serve.http.videos import Desk
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.store import Store, StoreError
from ltx_serve.making.crew import Crew
from ltx_serve.page.routes import page_routes
from ltx_serve.settings import Settings

_log = logging.getLogger("ltx_serve")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # while an upload is received


def application(
    settings: Settings, crew: Crew, store: Store, folders: Folders, rooms: Mapping[Path, Room] | None = None
) -> FastAPI:
    """Returns the application of a server.

    Args:
        settings: the token and the limits.
        crew: what makes the videos; it is started and stopped by the caller.
        store: all jobs.
        folders: their files.
        rooms: the room for the videos of each version, by its folder; None if it is not known, as on a cluster.

    Raises:
        LtxError: there are no engines.
    """
    memory = None if settings.memory is None else round(settings.memory * 1e9)
    checkers = [Checker(settings.max_pixels, settings.max_frames, memory, rooms) for _ in ("texts", "media")]
    models, metrics = Models(settings.engines, trust=settings.trust_engines), Metrics(store, crew)
    desk = Desk(models, store, folders, crew, settings.max_queue, *checkers)
    # FastAPI's own pages of documentation load scripts from other servers.
    app = FastAPI(
        title="ltx-serve",
        version=RELEASE,
        lifespan=_running(checkers, settings.data),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk, app.state.is_stopping = desk, False
    app.include_router(videos.routes)
    app.include_router(event_routes(crew, desk.job_of))
    app.include_router(model_routes(models, settings))
    app.include_router(operator_routes(metrics, store, crew, settings.data))
    app.include_router(page_routes())
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Observer, metrics=metrics)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _running(checkers: Sequence[Checker], data: Path) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Returns what is run around the application: the first checker is started, and all are closed at the end."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        try:
            await run_in_threadpool(checkers[0].start)
        except CheckerMissingError as error:  # the next request tries again
            _log.error("cannot check requests", extra={"reason": str(error)})
        with _spooled_in(data):
            yield
        for checker in checkers:
            await run_in_threadpool(checker.close)

    return running


@contextmanager
def _spooled_in(folder: Path) -> Iterator[None]:
    """Has uploads under way in files without names below a folder: the system's folder for them may be in memory."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(error)


async def _on_ltx_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, LtxError)
    if isinstance(error, StoreError):
        _log.error("%s", error)
        return _answer(no_space())
    return _answer(refusal(error))


async def _on_os_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, OSError) or error.errno not in _NO_SPACE:
        raise error  # which Guard answers
    _log.error("cannot serve a request: %s", error)
    return _answer(no_space())


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _answer(_not_allowed(request))
    code = "not_found" if error.status_code == HTTPStatus.NOT_FOUND else "invalid_request"
    path = printable(request.url.path[:MOST_SHOWN])
    message = f"{error.detail}: {path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"there is nothing at {path} - /openapi.json lists what there is"
    return JSONResponse(error_body(message, code), error.status_code, error.headers)


def _not_allowed(request: Request) -> ApiError:
    """Returns the answer to a method that a path has not, with those that it has: each has a route of its own."""
    methods = {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        for method in operations
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)), request.scope["path"])
    }
    allowed = sorted(methods) or ["GET"]  # of the page
    message = f"{request.method[:MOST_SHOWN]} is not for this path - use {' or '.join(allowed)}"
    return ApiError(405, message, "method_not_allowed", headers={"Allow": ", ".join(allowed)})


async def _on_wrong_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = str(first["loc"][-1])
    rule = first["msg"].removeprefix("Input should be ").partition(", unable to")[0]
    message = f"{param} must be {rule}; got {shown(first['input'])} - leave it out, or send another value"
    return _answer(ApiError(400, message, "invalid_value", param))


async def _on_departure(_: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    ApiError: _on_api_error,
    LtxError: _on_ltx_error,
    OSError: _on_os_error,
    HTTPException: _on_http_error,
    RequestValidationError: _on_wrong_parameter,
    ClientDisconnect: _on_departure,
}


def _document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document: FastAPI's, with the bodies and errors that are this application's own."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        document["components"]["schemas"] |= body_schemas()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _complete(path, operation)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Adds to an operation of the document what holds for every route."""
    operation["responses"].pop("422", None)  # what FastAPI would answer to wrong parameters
    if not is_public(path):
        operation["security"] = [{"token": []}, {}]  # none is needed on a server that was started without
        for status, text in _EVERYWHERE.items():
            operation["responses"].setdefault(status, {"description": text, "content": _ERROR_CONTENT})


_ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
_EVERYWHERE = {
    "400": "The request cannot be used.",
    "401": "The token is missing or wrong.",
    "403": "The request comes from a page of another site.",
    "413": "The request is too large.",
    "507": "The disk of the server is full.",
}
