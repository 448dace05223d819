"""What tests of batches share: a small size, what a folder and a file of results hold, and stages that fail."""

import json
from collections import Counter

from fakes import stages as fake_stages

SIZE = ("--height", "64", "--width", "96", "--num-frames", "9")


def videos_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.mp4")}


def statuses(path):
    """Returns how many lines of each status a file of results has."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return Counter(line["status"] for line in lines if "status" in line)


def failing(stage, calls, error=MemoryError):
    """Returns a stage that raises an error in these of its calls, counted from 1."""
    original, count = fake_stages.STAGES[stage], [0]

    def run(feeds):
        count[0] += 1
        if count[0] in calls:
            raise error
        return original(feeds)

    return run
