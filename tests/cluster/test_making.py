"""Laws of a batch that a cluster goes on with, which need no cluster: what is there already is not made again."""

from types import SimpleNamespace

import pytest
from samples.demo import folder_with_demo

from ltx_runtime import Pipeline, Request
from ltx_runtime.batch.tasks import Task
from ltx_runtime.cluster.destination import Folder
from ltx_runtime.cluster.making import Batch, made_on_cluster

FOX = {"prompt": "a fox", "height": 64, "width": 96, "num_frames": 9, "seed": 3}


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_a_video_that_a_killed_batch_has_made_is_known_by_its_record_and_no_copy_of_it_stays(tmp_path, suffix):
    asked = []

    def made(tasks):
        asked.extend(task.number for task in tasks)
        return iter(())

    with Pipeline(folder_with_demo() / "engines" / "demo", note=lambda line: None) as pipe:
        saved = pipe(Request(**FOX)).save(tmp_path / f"fox{suffix}")
        batch = Batch(pipe, {}, tmp_path, Folder(tmp_path))
        same, other = (
            Task(number, number, FOX | {"seed": seed}, f"fox{suffix}", 1) for number, seed in ((1, 3), (2, 4))
        )
        found, taken = made_on_cluster([same, other], SimpleNamespace(made=made), batch, again=True)
    assert not asked and list(tmp_path.iterdir()) == [saved]
    assert found.result["file"] == saved.name and found.result["bytes"] > 1000
    assert taken.result is None and f"{saved.name} exists where the videos go" in taken.problem
