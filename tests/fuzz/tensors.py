"""Readers of tensors: checkpoints, GGUF files, indexes of shards, LoRAs, latents, embeddings, noise and records."""

import io
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from fuzz.reader import Reader
from gguf import GGUFWriter
from safetensors.numpy import save

from ltx_export.checkpoints.gguf import open_gguf
from ltx_export.recorded import read_record
from ltx_runtime.media.prepare import prepared_media
from ltx_runtime.noise.noise import FileNoise
from ltx_runtime.spec.components import text_encoder
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.text.embeddings import read_text
from ltx_runtime.vae.saved_latents import Ending, read_initial, read_latents
from ltx_runtime.weights.checkpoint import StoredTensor, open_safetensors, open_shards
from ltx_runtime.weights.lora import open_lora

CHANNELS = 4
SEEDS = 4  # number of seeds of checkpoints
GRID = Grid(1, 2, 3)
WHOLE_FILE, HEADER = b"\x80", b"\0"  # what an input for `safetensors_file` begins with
LINEAR = {"transformer_blocks.0.attn1.to_q.weight": (8, 8), "transformer_blocks.0.attn1.to_q.bias": (8,)}
ENDING = Ending("demo", (64, 96), (0, 0, 0, 0), 9, 24.0, 7, 0.6, 0.05, 0.025)


def safetensors_file(data: bytes) -> bytes:
    """Returns an input's file: half are whole files, half headers with a correct length, which reach deeper code."""
    kind, rest = data[:1], data[1:]
    return rest if kind >= WHOLE_FILE else len(rest).to_bytes(8, "little") + rest + bytes(512)


def saved(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> list[bytes]:
    """Returns a file of tensors as an input for `safetensors_file`: whole, and as its header."""
    raw = save(tensors, metadata)
    length = int.from_bytes(raw[:8], "little")
    return [WHOLE_FILE + raw, HEADER + raw[8 : 8 + length]]


def of_tensors(read: Callable[[Path], object], tensors: dict[str, np.ndarray], metadata=None) -> Reader:
    """Returns a reader of safetensors files that begins with one of these tensors."""
    return Reader(read, lambda: saved(tensors, metadata), safetensors_file, ".safetensors")


# --- checkpoints ----------------------------------------------------------------------------------


def read_all(tensors: Iterable[StoredTensor], size_bytes: int) -> None:
    """Reads tensors, which must all lie inside their file."""
    for tensor in tensors:
        assert 0 <= tensor.offset <= tensor.offset + tensor.length <= size_bytes, tensor
        assert len(tensor.read(0, tensor.length)) == tensor.length, tensor


def checkpoint_seeds() -> list[bytes]:
    seeds = []
    for number in range(SEEDS):
        tensors = {f"x{i}": {"dtype": "BF16", "shape": [i, 2], "data_offsets": [0, 4 * i]} for i in range(number)}
        seeds.append(HEADER + json.dumps({"__metadata__": {"config": "{}"}, **tensors}).encode())
    return seeds


def gguf_seed(number: int) -> bytes:
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


def index_seeds() -> list[bytes]:
    return [json.dumps({"metadata": {}, "weight_map": {"a": name, "b": name}}).encode() for name in ("a", "b/c")]


def lora_tensors() -> dict[str, np.ndarray]:
    module = "diffusion_model.transformer_blocks.0.attn1.to_q"
    down, up = np.ones((2, 8), np.float32), np.ones((8, 2), np.float16)
    factors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up, f"{module}.alpha": np.float32(2)}
    return {name: np.asarray(tensor) for name, tensor in factors.items()} | {f"{module}.diff_b": np.ones(8, np.float32)}


# --- what runs read -------------------------------------------------------------------------------


def record_seed() -> bytes:
    file = io.BytesIO()
    ids = np.ones((1, 3), np.int64)
    np.savez(file, ids=ids, mask=ids, text=np.ones((1, 3, CHANNELS), np.float32))
    return file.getvalue()


def embeddings() -> dict[str, np.ndarray]:
    rows, mask = np.ones((1, 3, CHANNELS), np.float32), np.ones((1, 3), np.int64)
    names = ("prompt_embeds", "prompt_attention_mask")
    return {
        prefix + name: tensor for prefix in ("", "negative_") for name, tensor in zip(names, (rows, mask), strict=True)
    }


TENSORS = {
    "safetensors": Reader(
        lambda path: read_all(open_safetensors(path).tensors.values(), path.stat().st_size),
        checkpoint_seeds,
        safetensors_file,
    ),
    "gguf": Reader(
        lambda path: read_all(open_gguf(path).tensors.values(), path.stat().st_size),
        lambda: map(gguf_seed, range(SEEDS)),
    ),
    "index": Reader(open_shards, index_seeds, suffix=".json"),
    "lora": of_tensors(lambda path: open_lora(path, 1.0, LINEAR), lora_tensors()),
    "latents": of_tensors(
        lambda path: read_latents(path, CHANNELS),
        {"first": np.ones((1, CHANNELS, 2, 2, 3), np.float32)},
        {"ltx": json.dumps(asdict(ENDING) | {"decode": "first"})},
    ),
    "initial-latents": of_tensors(
        lambda path: read_initial(path, GRID, CHANNELS), {"initial_latents": np.ones((1, 6, CHANNELS), np.float16)}
    ),
    "embeddings": of_tensors(lambda path: read_text(path, CHANNELS, negative=True), embeddings()),
    "noise": of_tensors(
        lambda path: FileNoise(path).draw("initial", (1, 4, 1, 2, 3)), {"initial": np.ones((1, 4, 1, 2, 3), np.float32)}
    ),
    "prepared-media": of_tensors(
        lambda path: prepared_media(path, 9), {"media": np.ones((1, 3, 1, 32, 32), np.float32)}
    ),
    "record": Reader(lambda path: read_record(path, text_encoder(CHANNELS)), lambda: [record_seed()], suffix=".npz"),
}
