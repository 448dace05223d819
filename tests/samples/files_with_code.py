"""Files of every kind that this project reads, with code in them that makes a folder if anything runs it."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Every name under which a reader could be led to take a file for what it is not.
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".gguf", ".npz", ".json", ".yaml", ".csv", ".png", ".mp4", ".model")


class _Made:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def contents(place: Path) -> Iterator[tuple[str, bytes]]:
    """Yields contents with code that makes the folder `place`, by a name of each."""
    for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
        yield f"pickle-{protocol}", pickle.dumps(_Made(place), protocol)
    packed = pickle.dumps(_Made(place))
    yield "torch", _zipped({"archive/data.pkl": packed, "archive/version": b"3\n"})
    array = io.BytesIO()
    np.save(array, np.array([_Made(place)], object), allow_pickle=True)
    yield "npy", array.getvalue()
    yield "npz", _zipped({name: array.getvalue() for name in ("latents.npy", "tokens.npy", "velocity.npy")})
    header = json.dumps(
        {"__metadata__": {"format": "pt", "config": packed.hex()}, "x": packed.decode("latin-1")}
    ).encode()
    yield "header", len(header).to_bytes(8, "little") + header + packed
    command = f"__import__('os').mkdir({str(place)!r})"
    for tag in ("python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/object/apply:eval"):
        yield tag.replace("/", "-"), f"!!{tag} [{command if 'eval' in tag else str(place)!r}]\n".encode()
    yield "field", f"guidance_scale: !!python/object/apply:os.mkdir [{str(place)!r}]\n".encode()
    remote = {"auto_map": {"AutoModel": "code.Model", "AutoTokenizer": ["code.T", None]}, "trust_remote_code": True}
    yield "config", json.dumps({**remote, "_class_name": "Model", "model_type": "t5"}).encode()
    yield "index", json.dumps({"weight_map": {"x": "pickle.bin", "y": "torch.pt"}}).encode()
    yield "python", f"{command}\n".encode()
    yield "script", f"#!/bin/sh\nmkdir '{place}'\n".encode()
    yield "postscript", f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%mkdir {place}) (r) file\n".encode()
    yield "playlist", f"#EXTM3U\n#EXTINF:1,\n{place}.ts\n".encode()
    yield "gguf", gguf(f"{{{{ cycler.__init__.__globals__.os.mkdir({str(place)!r}) }}}}")
    yield "table", f"prompt,output\n=cmd|'/c mkdir {place}'!A1,$(mkdir {place}).mp4\n".encode()


def write_all(folder: Path, place: Path) -> list[Path]:
    """Writes every content under every suffix, and returns the files; `code.py` beside them is what configs name."""
    kinds = dict(contents(place))
    (folder / "code.py").write_bytes(kinds["python"])
    (folder / "pickle.bin").write_bytes(kinds["pickle-2"])
    (folder / "torch.pt").write_bytes(kinds["torch"])
    files = []
    for kind, data in kinds.items():
        for suffix in SUFFIXES:
            files.append(folder / f"{kind}{suffix}")
            files[-1].write_bytes(data)
    return files


def write_folders(folder: Path, place: Path) -> list[Path]:
    """Writes folders in the layouts of diffusers, transformers and this project, with code in every file."""
    kinds = dict(contents(place))
    weights = [kinds[kind] for kind in ("pickle-2", "torch", "header")]
    folders = []
    for number, data in enumerate(weights):
        root = folder / f"layout-{number}"
        for part in ("transformer", "vae", "text_encoder", "tokenizer"):
            (root / part).mkdir(parents=True)
            for name in (
                "diffusion_pytorch_model.safetensors",
                "pytorch_model.bin",
                "model.safetensors",
                "spiece.model",
            ):
                (root / part / name).write_bytes(data)
            for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
                (root / part / name).write_bytes(kinds["config"])
            (root / part / "code.py").write_bytes(kinds["python"])
        for name in ("model_index.json", "manifest.json", "adapter_config.json"):
            (root / name).write_bytes(kinds["config"])
        (root / "ltx-video.safetensors").write_bytes(data)
        (root / "adapter_model.bin").write_bytes(kinds["pickle-2"])
        folders.append(root)
    return folders


def gguf(template: str) -> bytes:
    """Returns a GGUF file without tensors whose chat template is the given one."""
    key, text = b"tokenizer.chat_template", template.encode()
    string = (8).to_bytes(4, "little")  # the type of a value that is a string
    entry = len(key).to_bytes(8, "little") + key + string + len(text).to_bytes(8, "little") + text
    return b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + entry


def _zipped(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()
