"""Small pictures in memory."""

import io

from PIL import Image


def png(size: tuple[int, int] = (96, 64), colour: str = "red") -> bytes:
    """Returns the content of a PNG of one colour."""
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()
