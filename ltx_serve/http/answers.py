"""The answers of the server: videos, models, lists and errors, in the shapes of OpenAI's API with fields beside."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field

from ltx_runtime.errors import LtxError
from ltx_serve.jobs.job import Job

INVALID_REQUEST, AUTHENTICATION, RATE_LIMIT, SERVER = (
    *("invalid_request_error", "authentication_error", "rate_limit_error", "server_error"),
)
MOST_SHOWN = 60  # characters of what a client sent, in a message
RETRY = {"Retry-After": "5"}  # seconds
_OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_HYPHENATED = re.compile(r"\b(num|negative|guidance|stg|rescaling|single|temporal|skip)((?:-[a-z]+)+)\b")


class ApiError(Exception):
    """A request that is answered with an error, in OpenAI's shape.

    Attributes:
        status: the HTTP status.
        message: one sentence for people: what is wrong, what was given, what to do.
        code: a word for programs.
        param: the field of the request that is wrong, if it is one.
        kind: OpenAI's class of errors.
        headers: headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        kind: str = INVALID_REQUEST,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.kind = status, message, code, param, kind
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Returns the body of the answer."""
        return error_body(self.message, self.code, self.param, self.kind)


def error_body(message: str, code: str, param: str | None = None, kind: str = INVALID_REQUEST) -> dict[str, Any]:
    """Returns the body of an error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def no_space() -> ApiError:
    """Returns the answer to a request for which the server cannot write to its disk."""
    return ApiError(507, "the server cannot write to its disk - try again later", "no_space", None, SERVER)


def internal_error() -> ApiError:
    """Returns the answer to a request that ended in a bug of the server."""
    message = "the server has met an error of its own, which its log describes"
    return ApiError(500, message, "internal_error", None, SERVER)


def refusal(error: LtxError, known: tuple[str, ...] = ()) -> ApiError:
    """Returns the answer to a request that cannot be met; its words are those of the API instead of the command line's.

    Args:
        error: what is wrong.
        known: names of fields; if the message begins with one, it is the field that is wrong.
    """
    message = _in_fields(LtxError(error.problem, error.advice))
    first = message.partition(" ")[0]
    return ApiError(400, message, "invalid_value", first if first in known else None)


def _in_fields(error: LtxError) -> str:
    """Returns a message with names of fields for options: num_frames for --num-frames and num-frames."""
    text = _OPTION.sub(lambda match: match[1].replace("-", "_"), str(error))
    return _HYPHENATED.sub(lambda match: match[0].replace("-", "_"), text)


class ErrorDetail(BaseModel):
    """An error, which tells what was wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class VideoFailure(BaseModel):
    """The reason why a video could not be made."""

    code: str
    message: str


class VideoAnswer(BaseModel):
    """A video that was asked for: OpenAI's fields, and those that this server adds."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    seconds: str = Field(description="Length of the video.")
    size: str = Field(description="Width and height of the video in pixels.")
    prompt: str
    remixed_from_video_id: str | None
    error: VideoFailure | None
    seed: int
    num_frames: int
    fps: float
    started_at: int | None
    position: int | None = Field(description="Place in the queue, from 1; null unless it is queued.")
    request: dict[str, Any] = Field(description="Everything that was asked for, with what was filled in.")
    stages: dict[str, float] = Field(description="Seconds that each stage took, of a completed video.")
    remarks: dict[str, str] = Field(description="What is odd about a completed video, such as that it is black.")


class VideoList(BaseModel):
    """One page of the list of videos."""

    object: Literal["list"] = "list"
    data: list[VideoAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedAnswer(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool


def video_answer(job: Job, position: int | None = None) -> VideoAnswer:
    """Returns a job as clients see it.

    Args:
        job: the job.
        position: its place in the queue, from 1; None unless it is queued.
    """
    fields = job.fields
    twice = bool(fields.get("temporal_upscale"))
    num_frames = 2 * fields["num_frames"] - 1 if twice else fields["num_frames"]
    fps = 2 * fields["fps"] if twice else fields["fps"]
    return VideoAnswer(
        id=job.id,
        model=job.model,
        status=job.status,  # type: ignore[arg-type]
        progress=int(job.progress),
        created_at=job.created_at,
        completed_at=job.completed_at,
        expires_at=job.expires_at,
        seconds=_number(num_frames / fps),
        size=f"{fields['width']}x{fields['height']}",
        prompt=fields["prompt"],
        remixed_from_video_id=job.remixed_from,
        error=None if job.failure is None else VideoFailure(code=job.failure.code, message=job.failure.message),
        seed=fields["seed"],
        num_frames=num_frames,
        fps=fps,
        started_at=job.started_at,
        position=position,
        request=fields,
        stages=job.result.get("stages", {}),
        remarks=job.result.get("remarks", {}),
    )


def _number(value: float) -> str:
    """Returns a number with at most two decimals, and none if it is whole."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
