"""Reads the text that media.video stored in a file: a tag of mp4 and WebM, a comment of GIF, a text of PNG."""

from __future__ import annotations

from pathlib import Path

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.media.clips import opened_container
from ltx_runtime.media.pictures import file_of

PNG_KEYWORD = "Comment"
_MOST_PIXELS = 1 << 26  # of a video whose text is read, for which a frame may have to be decoded


def ascii_of(text: str) -> bytes:
    """Returns JSON text for a format that only stores ASCII; other characters become JSON's escapes."""
    return "".join(c if c.isascii() else _escaped(c) for c in text).encode("ascii")


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def read_comment(path: Path) -> str:
    """Returns the text that is stored in a video, picture or folder of frames; empty if there is none.

    Raises:
        LtxError: the file cannot be read, or is neither a video nor a picture.
    """
    if path.is_dir():
        frames = sorted(path.glob("frame_*.png"))
        if not frames:
            raise LtxError(f"{path} has no frames", "give a video, or a folder of frames")
        path = frames[0]
    path = file_of(path)
    with explaining(f"read {path}"), path.open("rb") as file:
        start = file.read(8)
    try:
        return _of_picture(path) if start.startswith((b"GIF8", b"\x89PNG")) else _of_video(path)
    except Exception as error:  # the libraries raise nearly any exception for a damaged file
        raise LtxError(f"{path} is damaged, or neither a video nor a picture", "give a video of ltx-run") from error


def _of_picture(path: Path) -> str:
    from PIL import Image  # noqa: PLC0415

    with Image.open(path, formats=("PNG", "GIF")) as picture:
        if picture.height * picture.width > _MOST_PIXELS:  # the text of a PNG may stand behind its pixels
            raise ValueError
        texts = getattr(picture, "text", {})  # of PNG
        stored = texts.get(PNG_KEYWORD) or picture.info.get("comment") or ""
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)


def _of_video(path: Path) -> str:
    with path.open("rb") as file, opened_container(file, _MOST_PIXELS) as container:
        tags = {name.lower(): text for name, text in container.metadata.items()}
    return str(tags.get("comment", ""))
