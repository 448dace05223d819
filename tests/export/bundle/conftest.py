"""A version folder of a few bytes with graphs in several precisions, a link, and files that no graph needs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.stages import engines_of
from fakes.wheels import lend_index

from ltx_runtime.folder.manifest import Engines, Quantized, describe_files, write_manifest
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.trust.made_here import record_link

SPIECE = Path(__file__).parents[2] / "golden" / "t5" / "spiece.model"


@pytest.fixture
def engines(tmp_path) -> Engines:
    """Returns a version folder: fp32 and bf16 of everything, q8 of the transformer, a link to the decoder's weights."""
    folder, elsewhere = tmp_path / "engines" / "demo", tmp_path / "elsewhere"
    for place in (folder / "portable-tensorrt_rtx-1.7", elsewhere):
        place.mkdir(parents=True)
    shutil.copy(SPIECE, folder)
    manifest = engines_of(VERSIONS["demo"], SPIECE).manifest
    components = {
        name: replace(entry, graphs={precision: f"{name}.{precision}.onnx" for precision in ("fp32", "bf16")})
        for name, entry in manifest.components.items()
    }
    one = components["transformer"]
    q8 = {"q8": Quantized(("transformer.q8.data",), 0.01)}
    components["transformer"] = replace(one, graphs={**one.graphs, "q8": "transformer.q8.onnx"}, quantized=q8)
    names = {name for entry in components.values() for name in entry.files()}
    linked = {"vae_decoder.data": str(elsewhere)}
    places = {name: Path(linked.get(name, folder)) / name for name in names} | {SPIECE.name: folder / SPIECE.name}
    for number, name in enumerate(sorted(names)):
        places[name].write_bytes(bytes([number]) * 3000 * (1 + number % 3))
    (folder / "portable-tensorrt_rtx-1.7" / "transformer.bf16.engine").write_bytes(b"engine")
    files = describe_files(places)
    write_manifest(folder, replace(manifest, components=components, linked=linked, files=files))
    for name in linked:
        record_link(places[name], files[name].size_bytes, files[name].checksum)
    return open_engines(folder)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """Returns a folder that is pip's only index, with nothing in it but pip."""
    return lend_index(tmp_path / "index", monkeypatch)
