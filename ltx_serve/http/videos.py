"""The routes of videos: asking for one, looking at them, fetching what was made, and cancelling and deleting."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive, Scope, Send

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.planning.choices import FROM_IMAGE
from ltx_serve.checking.checker import Checker, CheckerLostError, CheckerMissingError
from ltx_serve.http.answers import (
    MOST_SHOWN,
    RATE_LIMIT,
    RETRY,
    SERVER,
    ApiError,
    DeletedAnswer,
    ErrorAnswer,
    VideoAnswer,
    VideoList,
    no_space,
    refusal,
    video_answer,
)
from ltx_serve.http.bodies import Intake
from ltx_serve.http.fields import NAMES, Draft, body_of
from ltx_serve.http.models import Model, Models
from ltx_serve.jobs.folders import INPUT, Folders
from ltx_serve.jobs.job import CANCELLED, COMPLETED, FAILED, QUEUED, Job, is_id, new_id
from ltx_serve.jobs.store import QueueFullError, Store, StoreError
from ltx_serve.making.crew import Crew

_log = logging.getLogger("ltx_serve")
_COPY_BYTES = 1 << 20
_MOST_LISTED = 100
_UNSAFE = re.compile(r"[^\w-]+")
_TITLE_CHARACTERS = 40
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients try again after a 409 otherwise
# Fields that set the same thing: a variation that sets one of them does not take over the others.
_ALTERNATIVES = (("duration", "num_frames"), ("steps", "timesteps"), ("strength", "skip_initial_steps"))


class Desk:
    """Takes requests: reads, checks and fills them in, and puts them into the queue."""

    def __init__(
        self,
        models: Models,
        store: Store,
        folders: Folders,
        crew: Crew,
        max_queue: int,
        texts: Checker,
        media: Checker,
    ) -> None:
        self.models, self.store, self.folders, self.crew = models, store, folders, crew
        self.intake = Intake()
        self._max_queue = max_queue
        # Clips take seconds to check, so those who send none do not wait for those who do. The locks are awaited, as
        # each thread that waits would be one less for all other requests.
        self._lanes = {False: (texts, asyncio.Lock()), True: (media, asyncio.Lock())}

    def job_of(self, id: str) -> Job:
        """Returns the job of an id; raises the ApiError that answers if there is none."""
        job = self.store.get(id) if is_id(id) else None
        if job is None:
            raise ApiError(
                404, f"there is no video {id[:MOST_SHOWN]!r} - it may have been deleted", "video_not_found", "id"
            )
        return job

    def answer(self, job: Job) -> VideoAnswer:
        """Returns a job as clients see it."""
        return video_answer(job, self.store.position(job.id) if job.status == QUEUED else None)

    def check_room(self) -> None:
        """Raises the ApiError that answers when the queue is full, before anything is received for it."""
        waiting = self.store.counts()[QUEUED]
        if waiting >= self._max_queue:
            raise _queue_full(f"{waiting} videos are waiting, which is the most that may wait - try again later")

    async def accept(self, draft: Draft, model: Model, source: Job | None = None) -> Job:
        """Returns the new job of a request, which from then on is not lost.

        Args:
            draft: the request.
            model: what makes it.
            source: the job that it varies, whose fields and inputs it takes over where it has none.

        Raises:
            ApiError: the request cannot be met, or the queue is full.
        """
        id = new_id()
        folder = self.folders.of(id)
        try:
            with _writing():
                await run_in_threadpool(folder.mkdir)
                for name, content in draft.inputs.items():
                    await _write(folder / name, content)
            fields = draft.fields
            if source is not None:
                fields = await run_in_threadpool(self._varied, source, fields, folder)
            filled = await self._checked(fields, folder, model, draft)
        except BaseException:
            await run_in_threadpool(self.folders.remove, id)
            raise
        job = Job(id, model.version.name, filled, remixed_from=None if source is None else source.id)
        # The thread ends what it has begun, even if the server stops meanwhile and nobody waits for it any more.
        await run_in_threadpool(self._enqueue, job)
        return job

    def _enqueue(self, job: Job) -> None:
        try:
            with _writing():
                self.folders.sync(job.id)
            self.store.add(job)
        except BaseException as error:
            self.folders.remove(job.id)
            if isinstance(error, QueueFullError):
                raise _queue_full(str(error)) from None
            raise
        self.crew.notify()

    def _varied(self, source: Job, changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Returns the fields of a variation, and puts the inputs that it keeps into its folder."""
        dropped = {name for names in _ALTERNATIVES if not changes.keys().isdisjoint(names) for name in names}
        if changes.keys() >= {"width", "height"}:
            dropped.add("pad")
        if changes.get("fit") == FROM_IMAGE:
            dropped |= {"width", "height"}
        fields = {**{name: value for name, value in source.fields.items() if name not in dropped}, **changes}
        for name in _inputs_of(fields):
            if not (folder / name).exists():
                try:
                    _link(self.folders.of(source.id) / name, folder / name)
                except LtxError:
                    self.job_of(source.id)  # it may have been deleted meanwhile
                    raise
        return fields

    async def _checked(self, fields: dict[str, Any], folder: Path, model: Model, draft: Draft) -> dict[str, Any]:
        inputs = _inputs_of(fields)
        checker, lock = self._lanes[bool(inputs)]
        try:
            async with lock:
                filled = await run_in_threadpool(checker.check, fields, folder, model.engines, draft.sent)
            if _inputs_of(filled) != inputs:  # so that what an image did to that process cannot name other files
                raise CheckerLostError("checking ended in names of other files")
            return filled
        except LtxError as error:
            raise _as_sent(refusal(_labelled(error, draft.labels), NAMES), draft) from None
        except CheckerLostError as error:
            message = f"the request cannot be used: {error} - send smaller images or clips"
            raise ApiError(400, message, "too_large") from None
        except CheckerMissingError as error:
            _log.error("cannot check a request", extra={"reason": str(error)})
            message = "the server cannot check requests at present - try again later"
            raise ApiError(503, message, "unavailable", None, SERVER, RETRY) from None


def _queue_full(message: str) -> ApiError:
    return ApiError(429, message, "queue_full", None, RATE_LIMIT, RETRY)


@contextmanager
def _writing() -> Iterator[None]:
    """Converts errors of the disk to the ApiError that answers them."""
    try:
        yield
    except OSError as error:
        _log.error("cannot write a request", extra={"reason": str(error)})
        raise no_space() from None


def _labelled(error: LtxError, labels: Mapping[str, str]) -> LtxError:
    """Returns an error with the words of the request in place of the names that its inputs have on the server."""

    def worded(text: str) -> str:
        return re.sub(rf"\b{INPUT}\d+\b", lambda match: labels.get(match[0], match[0]), text)

    return LtxError(worded(error.problem), worded(error.advice))


def _as_sent(refused: ApiError, draft: Draft) -> ApiError:
    """Returns the answer with the field that the client sent in place of the one that its value went into."""
    param, message = refused.param, refused.message
    if param in ("width", "height") and "size" in draft.sent:
        size = f"{draft.fields['width']}x{draft.fields['height']}"
        param, message = "size", f"size {size} cannot be made: {message}"
    elif param in ("num_frames", "duration") and "seconds" in draft.sent:
        param, message = "seconds", f"seconds {draft.fields['duration']:g} cannot be made: {message}"
    elif param == "size" and "size" not in draft.sent:
        param = next((name for name in ("width", "height", "num_frames", "seconds") if name in draft.sent), None)
    return ApiError(refused.status, message, refused.code, param)


async def _write(path: Path, content: UploadFile | bytes) -> None:
    """Writes an image or clip to its file."""
    if isinstance(content, bytes):
        await run_in_threadpool(path.write_bytes, content)
        return
    with await run_in_threadpool(path.open, "wb") as file:
        while chunk := await content.read(_COPY_BYTES):
            await run_in_threadpool(file.write, chunk)


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where the disk has no such links."""
    try:
        os.link(source, target)
    except OSError:
        with explaining(f"read {source.name}"):
            shutil.copyfile(source, target)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the errors that a route answers with, for the OpenAPI document."""
    return {status: {"model": ErrorAnswer} for status in statuses}


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    **{status: {"content": {"video/mp4": _BINARY, "image/webp": _BINARY}} for status in (200, 206)},
    416: {"description": "The range is outside of the file.", "content": {"text/plain": {}}},
}


def _inputs_of(fields: Mapping[str, Any]) -> set[str]:
    """Returns the names of the images and clips in the fields of a request."""
    names = [condition["media"] for condition in fields.get("conditions") or ()]
    return {*names, fields["video"]} if fields.get("video") else {*names}


def _next_input(source: Job) -> int:
    """Returns the number of the first new input of a variation, after those that it may keep."""
    return 1 + max((int(name.removeprefix(INPUT)) for name in _inputs_of(source.fields)), default=0)


def _not_there(job: Job) -> ApiError:
    """Returns the answer to a request for a video that there is not, or not yet."""
    if job.status == FAILED:
        reason = "" if job.failure is None else f": {job.failure.message}"
        return ApiError(404, f"the video failed{reason}", "video_failed", "id")
    message = f"the video is {job.status} - fetch it when its status is {COMPLETED}"
    return ApiError(409, message, "video_not_ready", "id", headers=_NO_RETRY)


def _gone(path: Path) -> ApiError:
    return ApiError(404, f"{path.name} of {path.parent.name} is no longer there", "content_gone", "id")


def _title(job: Job) -> str:
    """Returns a name for the file of a video: the first words of its prompt, and the seed."""
    words = _UNSAFE.sub("-", job.fields["prompt"]).strip("-_")[:_TITLE_CHARACTERS].strip("-_")
    return f"{words or 'video'}-{job.fields['seed']}"


def _desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


TheDesk = Annotated[Desk, Depends(_desk_of)]


class _Download(FileResponse):
    """A file that may be removed until it is opened: then the answer is an error, since none has begun."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the file. Raises ApiError if it is no longer there."""
        start: Message | None = None

        async def send_once_opened(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                await send(start)
                start = None
            await send(message)

        try:
            await super().__call__(scope, receive, send_once_opened)
        except FileNotFoundError:
            raise _gone(Path(self.path)) from None


routes = APIRouter(tags=["videos"])


@routes.post("/v1/videos", responses=_errors(400, 404, 408, 413, 415, 429, 503), openapi_extra=body_of("CreateVideo"))
async def create_video(request: Request, desk: TheDesk) -> VideoAnswer:
    """Asks for a video. It is queued when this is answered, and made even if the server is stopped meanwhile."""
    await run_in_threadpool(desk.check_room)
    async with desk.intake.draft_in(request) as draft:
        job = await desk.accept(draft, desk.models.find(draft.model))
    return await run_in_threadpool(desk.answer, job)


@routes.get("/v1/videos", responses=_errors(400))
def list_videos(
    desk: TheDesk,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """Lists videos, the newest first. The next page is asked for with `after`, the last id of this one."""
    try:
        jobs, has_more = desk.store.list(after=after, limit=limit, order=order)
    except StoreError:
        raise
    except LtxError as error:
        raise ApiError(400, str(error), "invalid_value", "after") from None
    data = [desk.answer(job) for job in jobs]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return VideoList(data=data, first_id=first, last_id=last, has_more=has_more)


@routes.get("/v1/videos/{id}", responses=_errors(404))
def retrieve_video(id: str, desk: TheDesk) -> VideoAnswer:
    """Returns a video with its status and progress."""
    return desk.answer(desk.job_of(id))


@routes.delete("/v1/videos/{id}", responses=_errors(404))
def delete_video(id: str, desk: TheDesk) -> DeletedAnswer:
    """Deletes a video and everything that was uploaded for it; one that is being made is cancelled first."""
    return DeletedAnswer(id=desk.job_of(id).id, deleted=desk.crew.delete(id))


@routes.post("/v1/videos/{id}/cancel", responses=_errors(404, 409))
def cancel_video(id: str, desk: TheDesk) -> VideoAnswer:
    """Cancels a video that waits or is being made; it then has failed, with the code `cancelled`."""
    desk.job_of(id)
    if not desk.crew.cancel(id):
        job = desk.job_of(id)  # as it is now: it may have ended, or been deleted, since the request came
        is_cancelled = job.failure is not None and job.failure.code == CANCELLED
        state = "was cancelled before" if is_cancelled else f"is {job.status} and can no longer be cancelled"
        message = f"the video {state} - delete it if you do not need it"
        raise ApiError(409, message, "video_finished", "id", headers=_NO_RETRY)
    return desk.answer(desk.job_of(id))


@routes.post(
    "/v1/videos/{id}/remix",
    responses=_errors(400, 404, 408, 413, 415, 429, 503),
    openapi_extra=body_of("RemixVideo"),
)
async def remix_video(id: str, request: Request, desk: TheDesk) -> VideoAnswer:
    """Asks for a variation: the same request, the same images and clips, and the fields that are given instead."""
    source = await run_in_threadpool(desk.job_of, id)
    await run_in_threadpool(desk.check_room)
    async with desk.intake.draft_in(request, first=_next_input(source)) as draft:
        model = desk.models.find(source.model)
        if draft.model is not None and desk.models.get(draft.model) is not model:
            message = f"a variation is made by the same model, {source.model} - leave model out"
            raise ApiError(400, message, "invalid_value", "model")
        job = await desk.accept(draft, model, source)
    return await run_in_threadpool(desk.answer, job)


@routes.get("/v1/videos/{id}/content", responses={**_errors(400, 404, 409), **_CONTENT}, response_class=FileResponse)
def download_video(id: str, desk: TheDesk, variant: Literal["video", "thumbnail"] = "video") -> FileResponse:
    """Returns the MP4 of a completed video, or its first frame in WebP. Parts can be asked for by `Range`."""
    job, folders = desk.job_of(id), desk.folders
    if job.status != COMPLETED:
        raise _not_there(job)
    path, kind = (folders.video(id), "video/mp4") if variant == "video" else (folders.thumbnail(id), "image/webp")
    try:
        facts = path.stat()
    except OSError:
        raise _gone(path) from None
    return _Download(
        path,
        media_type=kind,
        filename=f"{_title(job)}{path.suffix}",
        content_disposition_type="inline",
        stat_result=facts,
        headers={"Cache-Control": "private, no-cache"},
    )
