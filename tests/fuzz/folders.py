"""Readers of what a version folder holds besides weights: manifest, sidecars of engines, graphs, and the tokenizer."""

import io
import itertools
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import sentencepiece
from fakes.stages import engines_of
from fuzz.reader import Reader
from samples.changed_values import VALUES, changed, places_in
from samples.onnx_bytes import FLOAT, field, graph_that_adds, integers, model, node, outside, value

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import FORMAT, FileEntry
from ltx_runtime.folder.profiles import Span
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.folder.release import release_of
from ltx_runtime.folder.sidecar import Sidecar, WeightInput, read_sidecar
from ltx_runtime.graph.check import check_graph
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Request
from ltx_runtime.sessions.onnxruntime_cpu import CpuRunner
from ltx_runtime.spec.components import text_encoder
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.text.tokenizer import Tokenizer

TEXT, EDITS = b"\0", b"\x80"  # what an input for `edited` begins with
WEIGHTS = {"weights.bin": 4096}
PROMPT = "A red fox ﬁnds ① x² in Ünïcode, 漢字\u0301\u200b!</s>"
_numbers = itertools.count()


def manifest_data() -> object:
    """Returns a manifest of all components, with a decoder that takes noise."""
    manifest = engines_of(VERSIONS["0.9.1"], Path("tokenizer.model")).manifest
    names = {"tokenizer.model", *(file for entry in manifest.components.values() for file in entry.files())}
    data = {"format": FORMAT, **asdict(manifest), "files": {name: asdict(FileEntry(1, "0" * 64)) for name in names}}
    return json.loads(json.dumps(data))


def sidecar_data() -> object:
    """Returns a sidecar of an engine whose weights are inputs."""
    weight = WeightInput("checkpoint.safetensors", 8, 24, "bf16", (3, 4))
    words = ("tensorrt", "10.1", "sm_90", "linux", "H200", "12.8", "transformer", "bf16", "inputs")
    profiles = [{"batch": Span(1, 1, 3), "tokens": Span(1, 20, 32)}]
    return json.loads(json.dumps(asdict(Sidecar(*words, profiles, {"a": "0" * 64}, "0", "0", {"w": weight}))))


def edited(data: object) -> Callable[[bytes], bytes]:
    """Returns a function that turns an input into JSON: half are the text itself, half edits of good data."""
    places = [*places_in(data)]

    def file_of(content: bytes) -> bytes:
        kind, rest = content[:1], content[1:]
        if kind < EDITS:
            return rest
        result = data
        for place, what in zip(rest[::2], rest[1::2], strict=False):
            with suppress(KeyError, IndexError, TypeError):  # an earlier edit has removed it
                result = changed(result, places[(place * 7 + what) % len(places)], VALUES[what % len(VALUES)])
        return json.dumps(result).encode()

    return file_of


def json_seeds(data: object) -> Callable[[], Iterable[bytes]]:
    return lambda: (TEXT + json.dumps(data).encode(), *(EDITS + bytes([n, 3 * n]) for n in range(8)))


def read_version(path: Path) -> None:
    """Reads a manifest, and plans a video with it."""
    manifest = read_manifest(path.parent)
    with suppress(LtxError):  # the release, which is not named by a file
        plan(Request("a fox"), release_of(manifest), manifest.schedule, manifest.allowed_sigmas)


def read_engine(path: Path) -> None:
    read_sidecar(path.with_suffix(""))


def load_graph(path: Path) -> None:
    """Checks a graph, and loads what was not refused."""
    weights = path.with_name("weights.bin")
    if not weights.exists():
        weights.write_bytes(bytes(WEIGHTS[weights.name]))
    check_graph(path, text_encoder(6), {**WEIGHTS, f"another.{next(_numbers)}": 0})  # checked each time
    with suppress(MemoryError):
        CpuRunner(path, path.parent).close()


def graph_seeds() -> Iterable[bytes]:
    yield graph_that_adds("ids", "mask", output="text")
    axes = ("batch", "text_tokens")
    nodes = (
        node("Gather", ["table", "ids"], "rows", field(5, field(1, "axis") + field(3, 0) + field(20, 2))),
        node("Mul", ["rows", "scale"], "text"),
    )
    constants = (
        outside("table", FLOAT, [7, 6], location="weights.bin", offset=8, length=168),
        outside("scale", FLOAT, [], location="weights.bin", offset=0, length=4),
        integers("unused", [1, 2, 3]),
    )
    yield model(
        nodes, [value(name, 7, axes) for name in ("ids", "mask")], [value("text", FLOAT, (*axes, 6))], constants
    )


def read_tokens(path: Path) -> None:
    """Opens a tokenizer, and reads a prompt of many kinds of characters with it."""
    tokenizer = Tokenizer(path, 256)
    assert all(0 <= token < tokenizer.pieces for token in tokenizer.tokens(PROMPT))
    tokenizer.read(PROMPT)


def tokenizer_seeds() -> Iterable[bytes]:
    for rules in ("nmt_nfkc", "identity"):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a cat walks on wet grass at dawn", "snow falls slowly over the town"] * 10),
            model_writer=written,
            vocab_size=30,
            normalization_rule_name=rules,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
        yield written.getvalue()


_MANIFEST, _SIDECAR = manifest_data(), sidecar_data()
FOLDERS = {
    "manifest": Reader(read_version, json_seeds(_MANIFEST), edited(_MANIFEST), "/manifest.json"),
    "sidecar": Reader(read_engine, json_seeds(_SIDECAR), edited(_SIDECAR), ".engine.json"),
    "graph": Reader(load_graph, graph_seeds, suffix=".onnx"),
    "tokenizer": Reader(read_tokens, tokenizer_seeds, suffix=".model"),
}
