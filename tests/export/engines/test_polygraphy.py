"""Polygraphy, NVIDIA's own tool, reads, runs and builds what we export, as an independent check."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ltx_export.recorded import SIZES, random_feeds
from ltx_runtime.folder.profiles import profiles
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session
from ltx_runtime.spec.components import COMPONENT_NAMES, line_of

RELEASE = "0.9.8-13b-distilled"
TOOL = "from polygraphy.tools import main; main()"
BUILD = """
import json, sys
from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath, Profile
graph, shapes = sys.argv[1], json.loads(sys.argv[2])
profile = Profile()
for name, (least, best, most) in shapes.items():
    profile.add(name, min=least, opt=best, max=most)
network = NetworkFromOnnxPath(graph, strongly_typed=True)
engine = EngineBytesFromNetwork(network, config=CreateConfig(profiles=[profile]))()
print(len(bytes(engine)))
"""


@pytest.fixture(scope="module")
def engines(exported):
    return open_engines(exported(RELEASE).folder)


def names_of(engines):
    return [name for name in COMPONENT_NAMES if name in engines.manifest.components]


def polygraphy(*arguments, **environment):
    """Runs a Polygraphy command and returns its output."""
    ended = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


def test_it_shows_the_ports_of_every_graph(engines):
    for name in names_of(engines):
        entry = engines.component(name)
        shown = polygraphy(
            "-c", TOOL, "inspect", "model", "--ignore-external-data", str(engines.folder / entry.graphs["fp32"])
        )
        for port in (*entry.signature.inputs, *entry.signature.outputs):
            assert f"{port.name} [dtype={port.dtype}" in shown, name


def test_it_runs_a_graph_to_the_numbers_of_our_session(engines):
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    for name in ("transformer", "vae_decoder"):
        found = find(engines, name, "cpu")
        feeds = random_feeds(found.component, SIZES[0])
        with open_session(found) as session, OnnxrtRunner(SessionFromOnnx(str(found.path))) as runner:
            ours, theirs = session.run(feeds), runner.infer(feeds)
            for port in found.component.outputs:
                np.testing.assert_allclose(theirs[port.name], ours[port.name], rtol=1e-4, atol=1e-4)


def test_it_builds_an_engine_from_our_graph_and_our_profile(engines):
    for name in ("transformer", "vae_decoder"):
        entry = engines.component(name)
        spans = profiles(entry.signature)[0]

        def shape(port, which, spans=spans):
            return [
                axis if isinstance(axis, int) else line_of(axis).size(getattr(spans[line_of(axis).name], which))
                for axis in port.axes
            ]

        shapes = {
            port.name: [shape(port, which) for which in ("min", "best", "max")] for port in entry.signature.inputs
        }
        graph = str(engines.folder / entry.graphs["bf16"])
        size = polygraphy("-c", BUILD, graph, json.dumps(shapes), POLYGRAPHY_USE_TENSORRT_RTX="1").split()[-1]
        assert int(size) > 10_000
