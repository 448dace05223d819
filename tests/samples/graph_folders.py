"""Version folders of graphs that may be loaded, with a tokenizer and no weights, for tests that only plan."""

import atexit
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import mkdtemp

from samples.onnx_bytes import graph_of

from ltx_runtime.folder.manifest import Manifest

WORDS = 32_128  # of T5


def folder_with_graphs(manifest: Manifest, tokenizer: Path) -> Path:
    """Writes the graphs and the tokenizer of a manifest into a folder that is removed at the end."""
    folder = Path(mkdtemp(prefix="graphs"))
    atexit.register(rmtree, folder, ignore_errors=True)
    copyfile(tokenizer, folder / tokenizer.name)
    for entry in manifest.components.values():
        for graph in entry.graphs.values():
            (folder / graph).write_bytes(graph_of(entry.signature, entry.weights[0], WORDS))
    return folder
