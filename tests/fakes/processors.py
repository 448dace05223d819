"""Other numbers of processor cores than this machine has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

CAN_CHANGE = hasattr(os, "sched_setaffinity")  # only Linux binds a process to cores


@contextmanager
def one_core() -> Iterator[None]:
    """Binds this process to one core inside the block, which is then all that libraries see."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
