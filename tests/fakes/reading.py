"""Reads files with code in them by every reader of this project, and tells what an audit hook of Python has heard.

Usage: python -m fakes.reading FOLDER PLACE [careless]. With `careless`, unsafe readers of Python, NumPy and PyYAML are
added, as a proof that the hook hears them. Standard output is a JSON object: `heard`, events with the reader and the
file; `raised`, what was raised but LtxError; and `count`, how many files were read.
"""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from samples.files_with_code import write_all, write_folders

from ltx_export.checkpoints.readers import open_weights
from ltx_export.inspection.inspect import inspect
from ltx_export.recorded import read_record
from ltx_export.sources.find import find_sources, open_sources
from ltx_runtime.batch.rows import read_rows
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines, read_manifest
from ltx_runtime.folder.sidecar import read_sidecar
from ltx_runtime.media.prepare import look_at, prepared_media
from ltx_runtime.planning.preset import read_preset
from ltx_runtime.spec.components import upsampler
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import names_in, read_metadata
from ltx_runtime.text.embeddings import read_text
from ltx_runtime.text.tokenizer import Tokenizer
from ltx_runtime.vae.saved_latents import read_latents
from ltx_runtime.weights.lora import files_of, open_lora

# What no reader may do at all, and what it does only when it imports a library, for the first file that it reads.
NEVER = {
    *("pickle.find_class", "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.startfile"),
    *("socket.connect", "socket.getaddrinfo", "webbrowser.open"),
}
IMPORTING = {"exec", "compile", "marshal.loads", "code.__new__", "import", "ctypes.dlopen"}

RELEASE = VERSIONS["0.9.8-2b-distilled"]
FILE_READERS: dict[str, Callable[[Path], object]] = {
    "tensors": names_in,
    "metadata": read_metadata,
    "latents": lambda path: read_latents(path, 128),
    "embeddings": lambda path: read_text(path, 4096, negative=True),
    "checkpoint": open_weights,
    "lora": lambda path: [open_lora(file, 1.0, {}) for file in files_of(path)],
    "preset": read_preset,
    "rows": lambda path: [*read_rows(path, lambda line: None)],
    "media": look_at,
    "pixels": lambda path: prepared_media(path, 3),
    "tokenizer": lambda path: Tokenizer(path, 128),
    "sidecar": lambda path: read_sidecar(path.with_suffix("")),
    "record": lambda path: read_record(path, upsampler(128)),
    "inspect": inspect,
}
FOLDER_READERS: dict[str, Callable[[Path], object]] = {
    "manifest": read_manifest,
    "engines": open_engines,
    "sources": lambda folder: open_sources(find_sources(RELEASE, folder)),
    "inspect": inspect,
    "checkpoint": open_weights,
    "lora": lambda path: [open_lora(file, 1.0, {}) for file in files_of(path)],
}
CARELESS: dict[str, Callable[[Path], object]] = {
    "pickle": lambda path: pickle.loads(path.read_bytes()),
    "numpy": lambda path: np.load(path, allow_pickle=True)["latents"],
    "yaml": lambda path: yaml.load(path.read_text(), yaml.UnsafeLoader),
    "eval": lambda path: eval(path.read_text()),
}


def main(folder: Path, place: Path, *careless: str) -> None:
    """Reads all files twice: whatever a reader imports, it has imported when it reads them again."""
    readers = FILE_READERS | (CARELESS if careless else {})
    work = [(name, read, path) for path in write_all(folder, place) for name, read in readers.items()]
    work += [(name, read, path) for path in write_folders(folder, place) for name, read in FOLDER_READERS.items()]
    heard: dict[str, None] = {}
    raised: dict[str, None] = {}
    bad, now = set(NEVER), ""

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        # NumPy parses the header of an array to a syntax tree (ast.literal_eval), which nothing runs.
        parses = event == "compile" and arguments[1] in ("<unknown>", b"<unknown>")
        if event in bad and now and not parses:
            heard[f"{event} by {now}"] = None

    sys.addaudithook(hear)
    for turn in range(2):
        for name, read, path in work:
            now = f"{name} of {path.name}"
            try:
                read(path)
            except LtxError:
                pass
            except Exception as error:
                raised[f"{type(error).__name__} by {now}"] = None
        now = ""
        if turn == 0:
            bad |= IMPORTING
    json.dump({"heard": [*heard], "raised": [*raised], "count": len(work)}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
