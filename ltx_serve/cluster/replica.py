"""A replica that makes videos on a node of a cluster, in a process of its own as on a single machine.

The files of a job come with the call, and what is told, then the files of the video, go back as a stream of plain data.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ltx_serve.jobs.failures import making_error_of
from ltx_serve.jobs.folders import THUMBNAIL, VIDEO
from ltx_serve.jobs.job import Job
from ltx_serve.making.events import CancelledError, MakerLostError
from ltx_serve.making.process import ProcessMaker

# The kinds of what is streamed, each beside its data.
EVENT, FILE, DONE, FAILED, LOST, STOPPED = "event", "file", "done", "failed", "lost", "stopped"
OUTPUTS = (THUMBNAIL, VIDEO)  # the video last, since a job is made when it has one
Item = tuple[str, Any]


class Replica:
    """Makes one video at a time.

    Args:
        arguments: arguments of Pipeline by name, as plain data: at least `folder`.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._maker = ProcessMaker("replica", arguments)
        self._free = asyncio.Lock()

    async def make(self, job: Job, inputs: Mapping[str, bytes]) -> AsyncIterator[Item]:
        """Makes the video of a job.

        Args:
            job: what to make.
            inputs: content of the files in the job's folder, by name.

        Yields:
            Events as they come, the files of the video, and in the end what came of it.
        """
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item | None]()

        def tell(item: Item | None) -> None:
            with suppress(RuntimeError):  # the replica ends, and nobody listens
                loop.call_soon_threadsafe(items.put_nowait, item)

        def work() -> None:
            for item in self._items(job, inputs, lambda event: tell((EVENT, event))):
                tell(item)
            tell(None)

        async with self._free:  # after a job that was cancelled, until its process has stopped
            thread = threading.Thread(target=work, name=job.id, daemon=True)
            thread.start()
            try:
                while (item := await items.get()) is not None:
                    yield item
            finally:
                if thread.is_alive():
                    self._maker.cancel(job.id)
                    await asyncio.shield(asyncio.to_thread(thread.join))

    def _items(self, job: Job, inputs: Mapping[str, bytes], tell: Any) -> list[Item]:
        """Makes the video of a job, and returns its files and what came of it."""
        with tempfile.TemporaryDirectory(prefix="ltx-replica-") as name:
            folder = Path(name)
            try:
                for file, content in inputs.items():
                    (folder / file).write_bytes(content)
                result = self._maker.make(job, folder, tell)
                return [*((FILE, (file, (folder / file).read_bytes())) for file in OUTPUTS), (DONE, result)]
            except CancelledError:
                return [(STOPPED, None)]
            except MakerLostError as error:
                return [(LOST, (error.reason, error.out_of_memory, error.before_work))]
            except Exception as error:
                failure = making_error_of(error)
                return [(FAILED, (failure.code, failure.problem, failure.advice, failure.command))]

    def __del__(self) -> None:
        with suppress(AttributeError):  # its making has failed
            self._maker.close()
