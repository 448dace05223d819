"""What a builder has measured of kernels, kept beside its engines so that the next build measures less.

Libraries that compile kernels where they run measure nothing while they build, and keep nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltx_runtime.files import written_whole
from ltx_runtime.sessions.trt.library import compiles_at_run_time

CACHE = "timing.cache"


@contextmanager
def timings_kept(library: Any, config: Any, folder: Path) -> Iterator[None]:
    """Gives a builder the folder's timings, and writes them back with what it measured inside the block.

    The caller holds the folder's lock. Timings that the library does not take, such as another version's, are begun
    anew; a block that fails leaves the file as it is.
    """
    if compiles_at_run_time(library) or not hasattr(config, "create_timing_cache"):
        yield
        return
    path = folder / CACHE
    stored = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    with written_whole(path) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
