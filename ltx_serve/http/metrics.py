"""The routes for operators: whether the server answers and can make videos, figures for Prometheus, and a log."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltx_runtime.errors import printable
from ltx_serve.jobs.store import Store, StoreError
from ltx_serve.making.crew import Crew

_log = logging.getLogger("ltx_serve.requests")
_NO_WORKER = "no worker can make videos at present; the log says why"
_LOOK_S = 1.0
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Metrics:
    """Figures about requests and jobs, as Prometheus collects them. No label has a value that a client chose."""

    def __init__(self, store: Store, crew: Crew) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.registry.register(_Jobs(store, crew))
        self.requests = Counter(
            "ltx_requests", "Requests by route and status.", ("method", "route", "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "ltx_request_seconds",
            "Time until the answer begins; of POST /v1/videos, until the job is accepted.",
            ("method", "route"),
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )


class _Jobs(Collector):
    """Reads the figures of the queue and of the crew when they are asked for."""

    def __init__(self, store: Store, crew: Crew) -> None:
        self._store, self._crew = store, crew

    def collect(self) -> Iterator[Metric]:
        """Yields the jobs that are known, those that have ended, the seconds of stages, and what the makers do."""
        known = GaugeMetricFamily("ltx_jobs", "Jobs that the server knows, by status.", labels=["status"])
        for status, count in self._store.counts().items():
            known.add_metric([status], count)
        yield known
        figures, busy = self._crew.figures, self._crew.busy
        ended = CounterMetricFamily("ltx_jobs_ended", "Jobs that have ended since the start.", labels=["outcome"])
        for outcome, count in figures.outcomes.items():
            ended.add_metric([outcome], count)
        yield ended
        stages = SummaryMetricFamily("ltx_stage_seconds", "Seconds that stages took.", labels=["stage"])
        for stage, (count, seconds) in figures.stages.items():
            stages.add_metric([stage], count, seconds)
        yield stages
        lost = "Workers that were lost while they made a video, and started again."
        yield CounterMetricFamily("ltx_workers_lost", lost, figures.lost_makers)
        yield GaugeMetricFamily("ltx_workers", "Workers.", len(busy))
        yield GaugeMetricFamily("ltx_workers_busy", "Workers that make a video.", sum(map(bool, busy.values())))


class Observer:
    """Counts, times and logs every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, answered_s = time.perf_counter(), 0, 0.0

        async def observed(message: Message) -> None:
            nonlocal status, answered_s
            if message["type"] == "http.response.start":
                status, answered_s = message["status"], time.perf_counter() - began
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            status = status or 500
            raise
        finally:
            whole_s = time.perf_counter() - began
            self._note(scope, status, answered_s or whole_s, whole_s)

    def _note(self, scope: Scope, status: int, answered_s: float, whole_s: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # of paths that lead nowhere, there is no end
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.request_seconds.labels(method, route).observe(answered_s)
        client = scope.get("client") or ("",)
        _log.info(
            "%s %s %d",
            method,
            printable(scope["path"]),
            status,
            extra={
                "method": method,
                "path": scope["path"],
                "status": status,
                "client": client[0],
                "answered_s": round(answered_s, 4),
                "seconds": round(whole_s, 4),
            },
        )


def operator_routes(metrics: Metrics, store: Store, crew: Crew, data: Path) -> APIRouter:
    """Returns the routes for operators and what watches over servers for them."""
    routes = APIRouter(tags=["operation"])
    readiness_now = _Readiness(store, crew, data)

    @routes.get("/healthz")
    def health() -> State:
        """Says that the server answers."""
        return State(status="ok")

    @routes.get("/readyz", responses={503: {"model": State}})
    def readiness() -> JSONResponse:
        """Says whether videos can be made: the queue can be read, the disk be written, and there is a worker."""
        problem = readiness_now.problem()
        state = State(status="not ready" if problem else "ok", reason=problem)
        return JSONResponse(state.model_dump(), 503 if problem else 200)

    @routes.get("/metrics", response_class=PlainTextResponse)
    def figures() -> PlainTextResponse:
        """Returns figures in the format of Prometheus."""
        return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


class State(BaseModel):
    """Whether the server can do something, and why not."""

    status: str
    reason: str | None = None


class _Readiness:
    """Looks whether videos can be made, at most once a second: everyone may ask, and a look writes to the disk."""

    def __init__(self, store: Store, crew: Crew, data: Path) -> None:
        self._store, self._crew, self._data = store, crew, data
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._disk_problem: str | None = None

    def problem(self) -> str | None:
        """Returns why no video can be made at present; None if nothing is known to be in the way."""
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK_S:
                self._disk_problem = self._look()
                self._looked = time.monotonic()
            return self._disk_problem or (None if self._crew.is_working else _NO_WORKER)

    def _look(self) -> str | None:
        try:
            self._store.counts()
        except StoreError:
            return "the queue cannot be read"
        try:
            with tempfile.TemporaryFile(dir=self._data) as file:
                file.write(b"written")
                file.flush()
        except OSError:
            return "the folder of the data cannot be written"
        return None
