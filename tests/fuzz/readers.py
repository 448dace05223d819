"""The table of all readers that are fuzzed, by the name that `make fuzz` is given."""

from fuzz.folders import FOLDERS
from fuzz.going_on import GOING_ON
from fuzz.media import MEDIA
from fuzz.reader import Reader
from fuzz.tensors import TENSORS

READERS: dict[str, Reader] = {**TENSORS, **MEDIA, **FOLDERS, **GOING_ON}
