"""Real engines on a real GPU: built, run, and compared with the fp32 graphs on the CPU. Skipped without a GPU."""

import shutil

import numpy as np
import pytest

from ltx_export.recorded import random_feeds, relative_l2
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session
from ltx_runtime.sessions.cuda.gpu import find_gpu
from ltx_runtime.sessions.trt.library import LIBRARIES, load_library

# bf16 keeps 8 bits, and two layers lose a few of them.
LIMIT = 0.05
GRID = {"batch": 1, "frames": 2, "rows": 3, "columns": 2, "tokens": 12, "text_tokens": 9}

pytestmark = pytest.mark.gpu


def why_not(builder):
    """Returns the reason why this test cannot run here, or None."""
    try:
        find_gpu()
        load_library(builder)
    except LtxError as error:
        return str(error)
    return None


@pytest.mark.parametrize("weights", ["embedded", "inputs"])
@pytest.mark.parametrize("builder", LIBRARIES)
def test_engines_come_near_the_graphs_that_they_were_built_from(exported, tmp_path, builder, weights):
    reason = why_not(builder)
    if reason:
        pytest.skip(reason)
    from ltx_export.engines.command import Asked, run_command

    root = tmp_path / "0.9.1"
    shutil.copytree(exported("0.9.1").folder, root)
    asked = Asked(version="0.9.1", engines=tmp_path, builder=builder, weights=weights, max_height=256, max_width=256)
    run_command(asked, print)
    engines = open_engines(root)
    for name, entry in engines.manifest.components.items():
        output = entry.signature.outputs[0].name
        feeds = [random_feeds(entry.signature, {**GRID, "timesteps": steps}) for steps in (1, GRID["tokens"])]
        with open_session(find(engines, name, "cpu")) as session:
            expected = [session.run(one)[output] for one in feeds]
        with open_session(find(engines, name, builder)) as session:
            for _ in range(3):
                for one, right in zip(feeds, expected, strict=True):
                    for _ in range(3):  # the third run replays a CUDA graph
                        made = session.run(one)[output]
                        assert np.isfinite(made).all()
                        assert relative_l2(made, right) < LIMIT
