"""Speed-up of two nodes over one: the same batch on a Ray cluster of one and of two nodes, on this machine.

python benchmarks/cluster.py [--videos N] [--rounds N]

Every node is bound to a core of its own, so two nodes need a machine with two cores and nothing else to do.
Two times are stated: of the whole command, and of a video without the start of processes and networks.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import psutil
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[1]
OBJECT_STORE_BYTES = 80 << 20
RUN = "from ltx_runtime.cli.main import main; main()"


def started(nodes: int) -> Cluster:
    """Starts a cluster whose head node makes nothing, and whose other nodes are bound to a core each."""
    cluster = Cluster()
    cluster.add_node(num_cpus=0, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
    for core in range(nodes):
        node = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in (raylet, *raylet.children(recursive=True)):  # those that it starts later inherit it
            process.cpu_affinity([core])
    return cluster


def seconds_of(nodes: int, prompts: Path) -> tuple[float, float]:
    """Returns the seconds of a batch on so many nodes: of the whole command, and per video from the first result on."""
    cluster = started(nodes)
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", RUN, "--prompts", str(prompts), "--output-dir", folder, "--threads", "1"]
            started_at, results = time.perf_counter(), []
            process = subprocess.Popen(
                [*command, "--ray", cluster.address, "--json", "--engines", str(ROOT / "engines" / "demo")],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "LTX_CACHE": "", "PYTHONPATH": str(ROOT)},
            )
            assert process.stdout is not None
            for _ in process.stdout:
                results.append(time.perf_counter())
            assert process.wait() == 0
            ended_at = time.perf_counter()
    finally:
        cluster.shutdown()
    # Every node's first video loads its networks.
    warm = results[nodes:]
    return ended_at - started_at, (warm[-1] - warm[0]) / (len(warm) - 1)


def told(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Prints the seconds of every round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        rows = [
            {"prompt": f"A red fox, number {seed}", "seed": seed, "height": 192, "width": 256, "num_frames": 25}
            for seed in range(asked.videos)
        ]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        measured: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for number in range(asked.rounds):
            for nodes in measured:
                measured[nodes].append(seconds_of(nodes, prompts))
                whole, each = measured[nodes][-1]
                told(f"round {number + 1}, {nodes} node(s): {whole:.1f} s in all, {each:.3f} s per video")
    for place, name in enumerate(("the whole command", "per video once warm")):
        one, two = (statistics.median(times[place] for times in measured[nodes]) for nodes in (1, 2))
        told(f"{name}: {one:.3f} s on one node, {two:.3f} s on two: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
