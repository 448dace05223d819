"""The library's page and the README: every block of Python in them runs as it is, in order."""

import re
import shutil
from pathlib import Path

import psutil
import pytest
from samples.demo import folder_with_demo

from ltx_runtime import Pipeline
from ltx_runtime.files import amount
from ltx_runtime.spec.versions import find_version

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Returns a folder with engines/demo in it."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(folder_with_demo() / "engines", folder / "engines")
    return folder


def blocks_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def test_the_page_of_the_library_runs_from_top_to_bottom(demo, monkeypatch):
    monkeypatch.chdir(demo)
    blocks, names = blocks_of("docs/python.md"), {"__name__": "docs"}
    assert len(blocks) > 5
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"block {number} of docs/python.md", "exec"), names)


def test_the_readme_s_program_runs_on_any_folder(demo, monkeypatch):
    monkeypatch.chdir(demo)
    (block,) = blocks_of("README.md")
    release = "engines/0.9.8-2b-distilled"
    assert release in block
    smaller = block.replace(release, "engines/demo").replace("seed=7", "seed=7, height=64, width=96, num_frames=9")
    (demo / "fox.mp4").unlink(missing_ok=True)  # another page makes one as well
    exec(compile(smaller, "README.md", "exec"), {})
    assert (demo / "fox.mp4").stat().st_size > 0


def test_no_other_page_holds_python_that_nobody_runs():
    pages = [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if "```python" in page.read_text()]
    assert {str(page.relative_to(ROOT)) for page in pages} == {"README.md", "docs/python.md", "docs/serving.md"}


def test_the_readme_s_sizes_of_downloads_are_the_table_s():
    table = (ROOT / "README.md").read_text().partition("| download |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`0\.9.*?) \| ([\d.]+ GB) \|", table, re.MULTILINE)
    names = [(name, size) for row, size in rows for name in re.findall(r"`(.*?)`", row)]
    assert len(names) > 5
    for name, size in names:
        assert amount(find_version(name).download_bytes, 1) == size, name


def test_many_videos_in_one_process_take_no_more_memory_than_a_few(demo):
    """Compares the process's resident memory after each video; the first ones fill caches and thread pools."""
    held = []
    with Pipeline(demo / "engines" / "demo", keep_loaded=True) as pipe:
        for seed in range(24):
            for frame in pipe("a fox", height=64, width=96, num_frames=9, seed=seed):
                assert frame.shape == (64, 96, 3)
            held.append(psutil.Process().memory_info().rss)
    assert max(held[-3:]) < 1.05 * max(held[2:5])
