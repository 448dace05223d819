"""Server-sent events of one video: what happens to it, as it happens, with a preview of every step.

The stream begins with the present state and ends with completed, failed or deleted, so a client that was interrupted
asks again and has missed nothing that matters; there are no ids to go on from.
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State

from ltx_serve.http.answers import RATE_LIMIT, RETRY, ApiError, ErrorAnswer
from ltx_serve.jobs.job import COMPLETED, FAILED, IN_PROGRESS, QUEUED, Job
from ltx_serve.making.crew import Crew
from ltx_serve.making.events import DECODING, STARTED, STEP, Event

_LOOK_S = 0.1  # how often a stream looks for events: waiting in a thread would need one for each client
_MOST_STREAMS = 1000
_HEARTBEAT_S = 15.0  # proxies close what is silent for a minute
_STATUSES = {"queued": QUEUED, "completed": COMPLETED, "failed": FAILED, "deleted": "deleted"}
# X-Accel-Buffering tells nginx to pass events on at once.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

# As OpenAPI 3.2 describes streams of events.
_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": [*_STATUSES, STARTED, STEP, DECODING]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


def event_text(event: Event) -> str:
    """Returns an event as the stream has it."""
    data: dict[str, Any] = {
        "id": event.job,
        "kind": event.kind,
        "status": _STATUSES.get(event.kind, IN_PROGRESS),
        "progress": int(event.progress),
        **event.data,
    }
    if event.preview is not None:
        data["preview"] = f"data:image/png;base64,{base64.b64encode(event.preview).decode()}"
    return f"event: {event.kind}\ndata: {json.dumps(data)}\n\n"


def event_routes(crew: Crew, job_of: Callable[[str], Job]) -> APIRouter:
    """Returns the route of the events.

    Args:
        crew: what makes the videos and tells of it.
        job_of: returns the job of an id, or raises the error to answer with.
    """
    routes = APIRouter(tags=["videos"])
    streams = asyncio.Semaphore(_MOST_STREAMS)

    @routes.get(
        "/v1/videos/{id}/events",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"itemSchema": _EVENT}}},
            404: {"model": ErrorAnswer},
            429: {"model": ErrorAnswer},
        },
    )
    async def follow_video(id: str, request: Request) -> StreamingResponse:
        """Streams what happens to a video until it has ended: queued, started, step, decoding, completed, failed."""
        job = await run_in_threadpool(job_of, id)
        if streams.locked():
            message = f"{_MOST_STREAMS} streams of events are open, which is the most - ask for the video now and then"
            raise ApiError(429, message, "too_many_streams", None, RATE_LIMIT, RETRY)
        texts = _texts(crew, job.id, streams, request.app.state)
        return StreamingResponse(texts, media_type="text/event-stream", headers=_HEADERS)

    return routes


async def _texts(crew: Crew, id: str, streams: asyncio.Semaphore, server: State) -> AsyncIterator[str]:
    """Yields the events of a job, and a comment now and then, so that a connection that is gone is noticed."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(streams)
        events = await run_in_threadpool(stack.enter_context, crew.subscribe(id))  # which reads the queue's file
        heard = time.monotonic()
        while not server.is_stopping:
            try:
                event = events.get_nowait()
            except queue.Empty:
                if time.monotonic() - heard > _HEARTBEAT_S:
                    heard = time.monotonic()
                    yield ": still here\n\n"
                await asyncio.sleep(_LOOK_S)
                continue
            heard = time.monotonic()
            yield event_text(event)
            if event.is_last:
                return
