"""What a fuzzer has to know of a reader: how it is called, and which files it begins with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        read: reads a file as far as a run would. It raises LtxError if the file cannot be used; any other exception
            is a failure.
        seeds: returns inputs to begin with, in the form that `file_of` takes.
        file_of: turns an input into the bytes of a file, such as by adding a length or a checksum without which the
            reader would look no further.
        suffix: suffix of the file's name, or of that of its folder with the name behind it.
    """

    read: Callable[[Path], object]
    seeds: Callable[[], Iterable[bytes]]
    file_of: Callable[[bytes], bytes] = bytes
    suffix: str = ""


def attempt(reader: Reader, data: bytes, path: Path) -> bool:
    """Gives an input to a reader in a file at `path`; returns whether it was read, and not refused.

    Raises:
        AssertionError: the refusal is not one line that names the file.
        Exception: whatever else the reader raises, which is a failure, too.
    """
    from ltx_runtime.errors import LtxError

    path.parent.mkdir(exist_ok=True)
    path.write_bytes(reader.file_of(data))
    try:
        reader.read(path)
    except LtxError as error:
        assert "\n" not in str(error) and path.name in str(error), error
        return False
    return True
