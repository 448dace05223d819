"""A short form of `make fuzz`: every reader takes its seeds, and refuses or reads whatever becomes of them."""

import random

import pytest
from fuzz.reader import attempt
from fuzz.readers import READERS

CHANGES = 10


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")  # of odd tags
def test_a_reader_reads_its_seeds_and_reads_or_refuses_changed_ones(tmp_path, name):
    reader, chance = READERS[name], random.Random(name)
    path = tmp_path / f"fuzzed{reader.suffix}"
    seeds = [*reader.seeds()]
    taken = [attempt(reader, seed, path) for seed in seeds]
    for _ in range(CHANGES):
        changed = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(min(len(changed), 400))] = chance.choice(
                (0, 1, 127, 128, 255, chance.randrange(256))
            )
        attempt(reader, bytes(changed[: chance.choice((len(changed), chance.randrange(len(changed))))]), path)
    assert (
        any(taken) or name == "index" or name.startswith("record-of")
    )  # of shards, and of engines, that are not there
