"""The end of the head node, and with it of the cluster."""

import pytest
from fakes.ray_nodes import until

pytestmark = pytest.mark.ray


def test_a_batch_ends_with_a_sentence_and_the_command_that_goes_on_if_the_head_node_dies(cluster, program, tmp_path):
    cluster.add("north")
    folder = tmp_path / "out"
    process = program.start("--prompts", program.prompts, "--output-dir", folder, "--ray", cluster.address)
    until(lambda: any(folder.glob("*.mp4")) or process.poll() is not None, "nothing is made")
    cluster.kill("head")
    _, told = process.communicate(timeout=150)
    assert process.returncode == 2, told
    assert told.splitlines()[-1].startswith("error: this machine has lost the Ray cluster: ")
    assert "ltx-run --resume" in told
    assert [path for path in folder.iterdir() if path.suffix not in (".mp4", ".jsonl")] == []
