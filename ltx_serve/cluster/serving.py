"""Serves on a cluster: one replica of the application, which holds the queue, and replicas that make videos."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from ltx_runtime.cli.streams import answer
from ltx_runtime.cluster.joining import Node, joined, nodes
from ltx_runtime.cluster.node import Introduction, introduction_of
from ltx_runtime.errors import LtxError, first_line, printable
from ltx_runtime.packages import need
from ltx_serve.cluster.maker import ReplicaMaker
from ltx_serve.cluster.replica import Replica
from ltx_serve.http.application import application
from ltx_serve.http.models import Models
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.store import Store
from ltx_serve.making.crew import Crew
from ltx_serve.settings import STOPPING, Settings, url_of

APPLICATION, MAKERS = "ltx-serve", "makers"
# The queue is a file, so its replica stays on one node: the head, without which there is no cluster either.
_ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
_MORE_GRACE_S = 15.0
_CHECK_S = 120.0


def serve(settings: Settings, address: str) -> None:
    """Serves on a cluster until the process is told to end; then videos under way are finished or queued again.

    Args:
        settings: as for a single machine; `workers` is the number of replicas that make videos.
        address: HOST:PORT of the head node; AUTO for the cluster of this machine.

    Raises:
        LtxError: there is no such cluster, or a node of it lacks the engines.
    """
    need("ray", extra="ray")
    if settings.port == 0:
        raise LtxError("port 0 cannot be used on a cluster", "give the number of a free port")
    models = Models(settings.engines, trust=settings.trust_engines)
    with joined(address):
        from ray import serve as ray_serve

        settings = replace(settings, workers=_check(settings, [model.engines.folder for model in models]))
        if not ray_serve.status().proxies:  # otherwise Ray Serve itself has the port
            _check_free(settings.host, settings.port)
        options = {"host": settings.host, "port": settings.port}
        ray_serve.start(proxy_location="HeadOnly", http_options=options)
        try:
            _run(settings)
            names = ", ".join(model.version.name for model in models)
            place = printable(str(settings.data))
            url = url_of(settings.host, settings.port)
            answer(f"{url} serves {names}; videos are in {place}", "it serves all the same")
            _wait()
            print(STOPPING, file=sys.stderr)
        finally:
            ray_serve.delete(APPLICATION)
            if not ray_serve.status().applications:  # nobody else's
                ray_serve.shutdown()


def _run(settings: Settings) -> None:
    """Starts the deployments, or replaces those of an earlier server."""
    from ray import serve as ray_serve

    on_gpus = any(node.gpus for node in nodes())
    resources = {"num_gpus": 1, "num_cpus": 0} if on_gpus else {"num_cpus": 1}
    arguments = {
        "folder": str(settings.engines),
        "backend": settings.backend,
        "memory": settings.memory,
        "threads": settings.threads,
        "trust_engines": settings.trust_engines,
    }
    makers = ray_serve.deployment(
        Replica,
        name=MAKERS,
        num_replicas=settings.workers,
        max_ongoing_requests=1,
        ray_actor_options=resources,
        max_replicas_per_node=None if on_gpus else 1,
    )
    front = ray_serve.deployment(
        ray_serve.ingress(lambda: _application(settings))(),
        name="front",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options=_ON_HEAD,
        graceful_shutdown_timeout_s=settings.grace_s + _MORE_GRACE_S,
    )
    try:
        ray_serve.run(front.bind(makers.bind(arguments)), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        reason = f"Ray Serve cannot start the server: {first_line(error)}"
        raise LtxError(reason, "see the logs of Ray Serve on the head") from None


def _application(settings: Settings) -> FastAPI:
    """Returns the application with a crew whose makers are the replicas."""
    from ray import serve as ray_serve

    handle = ray_serve.get_deployment_handle(MAKERS, APPLICATION)
    store = Store(settings.data / "jobs.sqlite", settings.max_queue, settings.keep_days)
    folders = Folders(settings.data / "videos")
    makers = [ReplicaMaker(f"replica-{number + 1}", handle) for number in range(settings.workers or 1)]
    crew = Crew(store, folders, settings, makers)
    app = application(settings, crew, store, folders)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state:
            crew.start()
            try:
                yield state
            finally:
                await asyncio.to_thread(crew.stop, settings.grace_s)
                store.close()

    app.router.lifespan_context = running
    return app


def _check(settings: Settings, folders: list[Path]) -> int:
    """Returns how many replicas make videos: those asked for, or one per GPU, else one per node with CPU cores.

    Raises:
        LtxError: a node could make other videos than the others, or none.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = nodes()
    on_gpus = any(node.gpus for node in alive)
    room = [node for node in alive if (node.gpus if on_gpus else node.cpus)]
    if not room:
        raise LtxError("no node of the Ray cluster has a GPU or CPU cores", "add nodes with: ray start --address")
    ask = ray.remote(num_cpus=0, max_retries=0)(introduction_of)
    for folder in folders:
        ours = introduction_of(folder)
        answers = {
            node: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(folder)
            for node in room
        }
        for node, introduced in answers.items():
            _compare(node, _answer(node, introduced), ours, folder)
    most = sum(node.gpus if on_gpus else 1 for node in room)
    if settings.workers is not None and settings.workers > most:
        has = f"{most} GPUs" if on_gpus else f"{most} nodes that make videos"
        raise LtxError(f"the Ray cluster has {has}; got --workers {settings.workers}", f"use {most} or fewer")
    return settings.workers or most


def _check_free(host: str, port: int) -> None:
    """Raises LtxError if nothing can listen on an address of this machine; Ray Serve would try for a long time."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            advice = "add --port and another number, or use 127.0.0.1"
            raise LtxError(f"cannot listen on port {port} of {host}: {error.strerror}", advice) from None


def _answer(node: Node, answer: Any) -> Introduction:
    import ray

    try:
        introduction: Introduction = ray.get(answer, timeout=_CHECK_S)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LtxError):
            raise LtxError(f"{node.name}: {error.cause}") from None
        raise LtxError(f"{node.name} has no ltx-engines of this release", "install it there") from None
    except ray.exceptions.RayError as error:
        raise LtxError(f"{node.name} does not answer: {type(error).__name__}", "start it again") from None
    return introduction


def _compare(node: Node, theirs: Introduction, ours: Introduction, folder: Path) -> None:
    if theirs.release != ours.release:
        raise LtxError(f"{node.name} has release {theirs.release} of ltx-engines, and this machine {ours.release}")
    if theirs.engines != ours.engines:
        raise LtxError(f"{folder} on {node.name} is another version folder than here", "copy it there")


def _wait() -> None:
    """Waits until the process is told to end, which `reported` makes an exception."""
    with suppress(KeyboardInterrupt):
        while True:
            threading.Event().wait(3600.0)
