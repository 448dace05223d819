"""The workers of a machine: one for each GPU, or one for the processor, and each its share of the threads."""

from __future__ import annotations

from importlib.util import find_spec

from ltx_runtime.errors import LtxError
from ltx_runtime.sessions import AUTO, BACKENDS
from ltx_runtime.sessions.cuda.driver import visible_gpus
from ltx_runtime.sessions.processor import cores
from ltx_serve.making.process import ProcessMaker
from ltx_serve.settings import Settings

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"


def workers_of(settings: Settings) -> list[ProcessMaker]:
    """Starts the workers of this machine, which share its GPUs or its processor.

    Raises:
        LtxError: the backend is unknown.
    """
    gpus = gpus_of(settings.backend)
    count = settings.workers or max(len(gpus), 1)
    threads = settings.threads or (cores() if count > 1 else None)
    share = None if threads is None else max(threads // count, 1)
    arguments = {
        "folder": str(settings.engines.absolute()),
        "backend": settings.backend,
        "memory": settings.memory,
        "threads": share,
        "trust_engines": settings.trust_engines,
    }
    of_threads = {} if share is None else {_THREADS: str(share)}
    workers = []
    for number in range(count):
        gpu = gpus[number % len(gpus)] if gpus else None
        of_gpu = {} if gpu is None else {_VISIBLE: gpu}
        workers.append(ProcessMaker(f"worker-{number + 1}", arguments, {**of_threads, **of_gpu}))
    return workers


def gpus_of(backend: str) -> list[str]:
    """Returns the GPUs that a backend would use, each as a value of CUDA_VISIBLE_DEVICES."""
    if backend != AUTO and backend not in BACKENDS:
        raise LtxError(f"unknown backend {backend!r}", f"use one of {', '.join((AUTO, *BACKENDS))}")
    if backend != AUTO and BACKENDS[backend].on_cpu:
        return []
    # Every backend for GPUs needs cuda-bindings; without it, auto computes on the processor.
    return visible_gpus() if find_spec("cuda") is not None and find_spec("cuda.bindings") is not None else []
