"""Small wheels of pure Python, and a folder of them that pip takes for its only index."""

import base64
import hashlib
import zipfile
from importlib import metadata
from pathlib import Path

from ltx_export.bundle.own_wheel import wheel_from_installed

# The program ltx-run of a fake wheel: writes its arguments to the output, or refuses a folder without the version.
PROGRAM = """
import os, sys
from pathlib import Path

def main():
    words = sys.argv[1:]
    version = words[words.index("--version") + 1]
    if not (Path(os.environ["LTX_ENGINES"]) / version / "manifest.json").is_file():
        sys.exit("error: no engines")
    Path(words[words.index("--output") + 1]).write_text(" ".join(words))
"""


def write_wheel(
    folder: Path, name: str, version: str = "1.0", *, needs=(), extras=(), tag="py3-none-any", lines=(), files=None
) -> Path:
    """Writes a wheel with one module, or with the given files, and returns its path."""
    package, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    stated = [f"Requires-Dist: {need}" for need in needs] + [f"Provides-Extra: {extra}" for extra in extras]
    contents = {f"{package}.py": "VERSION = 1\n"} if files is None else dict(files)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines, *stated]
    contents[f"{info}/METADATA"] = "\n".join(lines)
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
    rows = []
    for place, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{place},sha256={digest},{len(text.encode())}\n")
    contents[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in contents.items():
            archive.writestr(zipfile.ZipInfo(place), text)
    return path


def own_wheel_at(folder: Path, needs=('fox; extra == "cpu"',), extras=("cpu",)) -> Path:
    """Writes a wheel with this project's name and a program ltx-run, which needs `fox` for its extra `cpu`."""
    info = "ltx_engines-0.1.0.dist-info"
    files = {"fake_run.py": PROGRAM, f"{info}/entry_points.txt": "[console_scripts]\nltx-run = fake_run:main\n"}
    lines = ["Requires-Python: >=3.10"]
    return write_wheel(folder, "ltx-engines", "0.1.0", needs=needs, extras=extras, lines=lines, files=files)


def lend_index(folder: Path, monkeypatch) -> Path:
    """Makes a folder with pip's own wheel the only place from which pip gets wheels; returns it."""
    folder.mkdir()
    wheel_from_installed(metadata.distribution("pip"), folder)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder
