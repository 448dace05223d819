"""Coverage-guided fuzzing of the checkpoint readers; the test suite checks the same properties with hypothesis.

    pip install atheris
    python tests/fuzz_readers.py safetensors -max_total_time=600
    python tests/fuzz_readers.py gguf -max_total_time=600

Arguments after the reader's name go to libFuzzer. It stops at the first input that is neither refused in one line
nor a file whose tensors all lie inside it, or that takes more than 512 MB, writes that input to a file and names it.
"""

import json
import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["ltx_export"]):
    from ltx_export.checkpoints.gguf import open_gguf
    from ltx_runtime.weights.checkpoint import open_safetensors
from ltx_runtime.errors import LtxError

MEMORY_MB = 512
SEEDS = 4  # number of seeds of each kind


def safetensors_seed(number: int) -> bytes:
    """Returns a header alone; `safetensors_file` puts its length in front and bytes for its tensors behind."""
    tensors = {f"x{i}": {"dtype": "BF16", "shape": [i, 2], "data_offsets": [0, 4 * i]} for i in range(number)}
    return b"\0" + json.dumps({"__metadata__": {"config": "{}"}, **tensors}).encode()


def gguf_seed(number: int) -> bytes:
    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder, "x.gguf"), "t5encoder")
        writer.add_uint32("t5.block_count", number)
        writer.add_array("words", ["a", "b"][:number])
        for i in range(number):
            writer.add_tensor(f"x{i}", np.ones((2, 32), np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Path(folder, "x.gguf").read_bytes()


def safetensors_file(data: bytes) -> bytes:
    """Returns an input's file: half are whole files, half headers with a correct length, which reach deeper code."""
    kind, rest = data[:1], data[1:]
    return rest if kind > b"\x7f" else len(rest).to_bytes(8, "little") + rest + bytes(64)


READERS = {
    "safetensors": (open_safetensors, safetensors_file, safetensors_seed),
    "gguf": (open_gguf, bytes, gguf_seed),
}


def main(name: str, arguments: list[str], folder: Path) -> None:
    open_file, file_of, seed_of = READERS[name]
    path, corpus = folder / f"fuzzed.{name}", folder / "corpus"
    corpus.mkdir()
    for number in range(SEEDS):
        (corpus / str(number)).write_bytes(seed_of(number))

    def try_one(data: bytes) -> None:
        raw = file_of(data)
        path.write_bytes(raw)
        try:
            found = open_file(path)
        except LtxError as error:
            assert "\n" not in str(error) and str(path) in str(error), error
            return
        for tensor in found.tensors.values():
            assert tensor.offset >= 0 and tensor.offset + tensor.length <= len(raw), tensor
            assert len(tensor.read(0, tensor.length)) == tensor.length, tensor

    atheris.Setup([sys.argv[0], f"-rss_limit_mb={MEMORY_MB}", *arguments, str(corpus)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], sys.argv[2:], Path(temporary))
