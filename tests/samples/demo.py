"""The demo version, exported once per process for all tests that run it."""

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from samples.tiny import export, sources_of

from ltx_export.build import ExportOptions, export_version
from ltx_export.random_weights import write_random_weights
from ltx_runtime.spec.versions import VERSIONS

DEMO = VERSIONS["demo"]


@cache
def folder_with_demo() -> Path:
    """Returns a folder with engines/demo in fp32, which tests must not change."""
    folder = Path(mkdtemp(prefix="demo"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_random_weights(DEMO, folder / "weights")
    sources = sources_of(DEMO, folder / "weights")
    export(DEMO, sources, folder / "engines" / "demo")
    return folder


@cache
def folder_with_quantized_demo() -> Path:
    """Returns a version folder of the demo with graphs in fp32 and q8, which tests must not change."""
    folder = Path(mkdtemp(prefix="demo-q8"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sources = sources_of(DEMO, folder_with_demo() / "weights")
    export_version(DEMO, sources, folder / "demo", ExportOptions(("fp32", "q8")), lambda line: None)
    return folder / "demo"
