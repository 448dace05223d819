"""Compiles the stand-ins for CUDA's libraries, on which ONNX Runtime's real CUDA provider runs without a GPU.

    python tests/stand_ins/cuda_libraries/build.py PACKAGES FOLDER

PACKAGES is a folder with the packages onnxruntime-gpu, nvidia-cuda-runtime and nvidia-cuda-crt (the headers of CUDA);
the libraries are put into FOLDER, which LD_LIBRARY_PATH has to name.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CUDNN = "libcudnn.so.9"  # the one that the provider does not name, but opens when it is needed
_DEFINED = re.compile(r"^[\w ]+?[ *&]+(\w+)\(", re.MULTILINE)


def build(provider: Path, headers: Path, folder: Path) -> Path:
    """Compiles one library that goes by the names of all, and returns it.

    Args:
        provider: libonnxruntime_providers_cuda.so, which says what it needs.
        headers: the folder of cuda_runtime_api.h.
        folder: where the libraries are put; for LD_LIBRARY_PATH.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _wanted(provider)
    stubs, versions, library = folder / "stubs.cpp", folder / "versions", folder / CUDNN
    defined = set(_DEFINED.findall((HERE / "libraries.cpp").read_text()))
    stubs.write_text(_stubs_of(sorted(set(wanted) - defined)))
    versions.write_text(_versions_of(wanted))
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-Wl,--version-script={versions}", f"-I{headers}"]
    subprocess.run([*command, str(HERE / "libraries.cpp"), str(stubs), "-o", str(library)], check=True)
    for name in _needed(provider):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(CUDNN)
    return library


def _needed(provider: Path) -> list[str]:
    """Returns the names of CUDA's libraries that are loaded together with the provider."""
    listed = subprocess.run(["readelf", "-d", provider], capture_output=True, text=True, check=True)
    return re.findall(r"NEEDED.*\[(libcu[^]]+)\]", listed.stdout)


def _wanted(provider: Path) -> dict[str, str]:
    """Returns the functions that the provider takes from CUDA, and the library of each ("" if it is not said)."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    wanted = {}
    for symbol in (line.split()[-1] for line in listed.stdout.splitlines()):
        name, _, library = symbol.partition("@")
        if library.startswith("libcu") or name.startswith("cu"):
            wanted[name] = library
    looked_up = set(re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes()))  # cuDNN is opened when it is needed
    return wanted | dict.fromkeys((name.decode() for name in looked_up), "")


def _stubs_of(names: list[str]) -> str:
    lines = ["// Made by build.py: what does nothing, succeeds and is written down.", 'extern "C" {']
    lines.append("void stand_in_unknown(const char* name);")
    lines += [f'long {name}() {{ stand_in_unknown("{name}"); return 0; }}' for name in names]
    return "\n".join([*lines, "}", ""])


def _versions_of(wanted: dict[str, str]) -> str:
    blocks = []
    for library in sorted(set(wanted.values()) - {""}):
        names = "; ".join(name for name, of in sorted(wanted.items()) if of == library)
        blocks.append(f"{library} {{ global: {names}; }};\n")
    return "".join(blocks)


if __name__ == "__main__":
    packages, folder = map(Path, sys.argv[1:])
    (headers,) = packages.glob("nvidia/cu*/include")
    build(packages / "onnxruntime/capi/libonnxruntime_providers_cuda.so", headers, folder)
