"""The promise of equal bytes, on the demo: whatever surrounds a run, its folder, request and seed decide its video.

tests/soak/equal_bytes.py holds it on every backend of a machine, and in more ways.
"""

import numpy as np
import pytest
from fakes.processors import CAN_CHANGE
from samples.clips import noisy, save_image
from samples.demo import folder_with_demo
from soak.equal_bytes import after, around, is_same
from soak.ways import Case, Circumstances, by_command, by_library, in_batch

from ltx_runtime.tensors import names_in, read_tensors

# A negative prompt of one token, which a network computes in another way than as a part of a batch.
WISHES = {"prompt": "A red fox", "negative_prompt": "", "guidance_scale": 3, "seed": 7}
SIZE = {"height": 128, "width": 96, "num_frames": 9}
VARIABLES = {"LC_ALL": "C", "TZ": "Asia/Kolkata", "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "3", "LTX_CACHE": ""}
WAYS = {
    "other surroundings": by_command(Circumstances((), VARIABLES, mask="077", elsewhere=True, name="Füchse 12:30")),
    "more memory than is needed": around("--memory", "20"),
    "a cache with the prompt alone": after({"guidance_scale": 1}, around()),
    "a batch": in_batch,
    "networks that were kept, with previews": by_library(2, previews=True, keep_loaded=True),
    "a run that was interrupted": by_library(interrupted_at=9),
}
if CAN_CHANGE:
    WAYS["one core"] = around(cores="0")
ROUNDING = 1e-6  # relative L2; 1.5e-7 to 6e-7 were measured, see docs/reproducibility.md


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    image = save_image(tmp_path_factory.mktemp("given") / "image.png", noisy(256, 200))
    conditions = [{"media": str(image), "frame": 0, "strength": 1.0}]
    return Case(folder_with_demo() / "engines" / "demo", {**WISHES, **SIZE, "conditions": conditions}, suffix=".mp4")


@pytest.fixture(scope="module")
def first(case, tmp_path_factory):
    return by_command()(case, tmp_path_factory.mktemp("first"))


@pytest.mark.parametrize("way", WAYS)
def test_the_same_request_makes_the_same_bytes_with(way, case, first, tmp_path):
    assert is_same(first, WAYS[way](case, tmp_path))


@pytest.mark.parametrize("option", [("--threads", "1"), ("--threads", "3"), ("--low-memory",)], ids=" ".join)
def test_another_order_of_sums_changes_no_more_than_their_rounding(option, case, first, tmp_path):
    other = around(*option)(case, tmp_path)
    (*_, name) = sorted(names_in(first.latents))
    latents, others = (read_tensors(path, (name,))[name] for path in (first.latents, other.latents))
    assert np.linalg.norm(others - latents) < ROUNDING * np.linalg.norm(latents)


def test_another_seed_makes_other_bytes(case, first, tmp_path):
    assert not is_same(first, around("--seed", "8")(case, tmp_path))
