"""The process that checks requests: what it answers, its limits, and that it is replaced when it is lost."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from fakes.servers import write_demo
from samples.pictures import png

from ltx_runtime import VERSIONS, LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.outputs.plain import request_from_fields
from ltx_serve.checking import checker as checking
from ltx_serve.checking.checker import Checker, CheckerLostError, CheckerMissingError
from ltx_serve.checking.room import rooms_of

ASKED = {"prompt": "A fox", "height": 64, "width": 96, "num_frames": 9}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    root = tmp_path_factory.mktemp("engines") / "engines"
    write_demo(root)
    return Engines(root / "demo", read_manifest(root / "demo"))


@pytest.fixture(scope="module")
def checker():
    checker = Checker(max_pixels=200_000, max_frames=97)
    yield checker
    checker.close()


def checking_processes() -> set[psutil.Process]:
    """Returns the processes that check requests."""
    return {child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())}


def process_of() -> psutil.Process:
    """Returns the process of the checker that most tests share."""
    (process,) = checking_processes()
    return process


def test_a_request_comes_back_with_everything_filled_in_and_stays_so_when_checked_again(checker, engines, tmp_path):
    filled = checker.check({"prompt": "A fox"}, tmp_path, engines)
    request = request_from_fields(filled, tmp_path)
    assert (request.prompt, request.width, request.height, request.num_frames) == ("A fox", 384, 256, 25)
    assert request.seed is not None and request.negative_prompt
    assert checker.check(filled, tmp_path, engines) == filled


def test_images_keep_their_names_and_decide_the_size_if_they_are_to(checker, engines, tmp_path):
    (tmp_path / "input-1").write_bytes(png((200, 100)))
    fields = {"prompt": "A fox", "num_frames": 9, "conditions": [{"media": "input-1"}], "fit": "size-from-image"}
    filled = checker.check(fields, tmp_path, engines)
    assert filled["conditions"] == [{"media": "input-1"}]
    assert filled["width"] == 2 * filled["height"]


def test_what_is_too_large_or_damaged_is_refused_without_naming_places_of_the_server(checker, engines, tmp_path):
    (tmp_path / "input-1").write_bytes(b"damaged")
    for change in (
        {"width": 9600},
        {"num_frames": 105},
        {"conditions": [{"media": "input-1"}]},
        {"conditions": [{"media": "input-2"}]},
        {"video": "input-1"},
        {"prompt": "  "},
        {"seed": "7"},
        {"steps": -1},
    ):
        with pytest.raises(LtxError) as refused:
            checker.check({**ASKED, **change}, tmp_path, engines)
        assert str(tmp_path) not in str(refused.value) and str(engines.folder) not in str(refused.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the data of a process")
def test_the_process_has_a_limit_of_memory_and_leaves_no_core(checker, engines, tmp_path):
    checker.check(ASKED, tmp_path, engines)
    assert process_of().rlimit(psutil.RLIMIT_DATA) == (4_000_000_000, 4_000_000_000)
    assert process_of().rlimit(psutil.RLIMIT_CORE) == (0, 0)


def test_a_process_that_was_killed_or_hangs_is_replaced_for_the_next_request(checker, engines, tmp_path, monkeypatch):
    filled = checker.check(ASKED, tmp_path, engines)
    first = process_of()
    first.kill()
    while first.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert checker.check({**filled}, tmp_path, engines) == filled
    monkeypatch.setattr(checking, "_CHECK_S", 0.5)
    hanging = process_of().pid
    os.kill(hanging, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(CheckerLostError, match=r"more than 0\.5 seconds"):
        checker.check(ASKED, tmp_path, engines)
    assert time.monotonic() - began < 5
    assert not psutil.pid_exists(hanging)
    monkeypatch.undo()
    assert checker.check({**filled}, tmp_path, engines) == filled


def test_a_process_that_dies_while_it_checks_is_told(checker, engines, tmp_path):
    checker.check(ASKED, tmp_path, engines)
    process = process_of()
    os.kill(process.pid, signal.SIGSTOP)
    killing = threading.Timer(0.3, process.kill)
    killing.start()
    with pytest.raises(CheckerLostError, match="too much memory, or crashed"):
        checker.check(ASKED, tmp_path, engines)
    killing.join()


def test_it_can_be_asked_by_many_threads(checker, engines, tmp_path):
    seeds: list[int] = []

    def ask(seed: int) -> None:
        seeds.append(checker.check({**ASKED, "seed": seed}, tmp_path, engines)["seed"])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seeds) == [*range(20)]


def test_closing_does_not_wait_for_the_check_that_is_under_way(engines, tmp_path):
    others = checking_processes()
    checker = Checker(max_pixels=200_000, max_frames=97)
    checker.check(ASKED, tmp_path, engines)
    (process,) = checking_processes() - others
    os.kill(process.pid, signal.SIGSTOP)
    ends: list[BaseException] = []

    def check() -> None:
        try:
            checker.check(ASKED, tmp_path, engines)
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    checker.close()
    assert time.monotonic() - began < 5
    thread.join()
    assert [type(end) for end in ends] == [CheckerMissingError]
    with pytest.raises(CheckerMissingError):
        checker.check(ASKED, tmp_path, engines)


def test_a_process_that_does_not_start_is_no_fault_of_the_request(engines, tmp_path, monkeypatch):
    checker = Checker(max_pixels=200_000, max_frames=97)
    monkeypatch.setattr(checking, "_serve", os.getcwd)  # which ends at once, since it takes no arguments
    with pytest.raises(CheckerMissingError):
        checker.check(ASKED, tmp_path, engines)
    monkeypatch.undo()
    monkeypatch.setattr(checking, "_START_S", 0.0)
    with pytest.raises(CheckerMissingError):
        checker.check(ASKED, tmp_path, engines)
    monkeypatch.undo()
    assert checker.check({"prompt": "A fox"}, tmp_path, engines)["prompt"] == "A fox"
    checker.close()


def test_a_video_that_needs_more_memory_than_there_is_is_refused_by_the_estimate_of_its_plan(engines, tmp_path):
    (room,) = rooms_of([engines.folder], "cpu").values()
    assert 0 < room.memory_bytes <= psutil.virtual_memory().total  # less in a container
    large = {"prompt": "A fox", "height": 1088, "width": 1920, "num_frames": 257}
    tokens = (1088 // 32) * (1920 // 32) * ((257 - 1) // 8 + 1)
    scores_bytes = 4 * VERSIONS["demo"].transformer.heads * tokens**2  # which ONNX Runtime holds for every pair
    for memory_bytes, refuses in ((scores_bytes, True), (100 * scores_bytes, False)):
        checker = Checker(1920 * 1088, 257, rooms={engines.folder: replace(room, memory_bytes=memory_bytes)})
        try:
            assert checker.check(ASKED, tmp_path, engines)
            if refuses:
                with pytest.raises(LtxError, match=r"^size 1920x1088 with 257 frames needs about \d+ GB .* smaller"):
                    checker.check(large, tmp_path, engines)
            else:
                assert checker.check(large, tmp_path, engines)
        finally:
            checker.close()


def test_what_the_decoder_has_no_memory_for_is_refused_with_the_size_that_was_asked_for(engines, tmp_path):
    rooms = rooms_of([engines.folder], "cpu")
    checker = Checker(1920 * 1088, 257, memory_bytes=1_000_000, rooms=rooms)
    try:
        with pytest.raises(LtxError, match=r"^size 96x64 with 9 frames cannot be made here: "):
            checker.check(ASKED, tmp_path, engines)
    finally:
        checker.close()
