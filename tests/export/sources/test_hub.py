"""One-sentence errors of a hub that refuses, fails or is unreachable; and the environment that says where it is."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes.hub_server import RELEASE, SHARDS, TOKEN, UPSCALER, WITH_GGUF, Fault, bring, found, lent_hub

from ltx_export.sources.download import TEXT_ENCODER_INDEX, TOKENIZER
from ltx_runtime.errors import LtxError

ROOT = Path(__file__).parents[3]
CHECKPOINT = RELEASE.checkpoint
hub = pytest.fixture(lent_hub)

CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from ltx_export.sources.download import download
from ltx_runtime.errors import reported
from ltx_runtime.spec.versions import VERSIONS
if "small blocks" in sys.argv:
    from huggingface_hub import constants
    constants.DOWNLOAD_CHUNK_SIZE = 1024
release = replace(VERSIONS["0.9.8-2b-distilled"], repository="tests/video", text_repository="tests/text")
with reported():
    download(release, Path(sys.argv[1]), "Q8_0", print)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def refusal(folder, t5="Q8_0"):
    """Returns the sentence with which a download is refused."""
    with pytest.raises(LtxError) as refused:
        bring(folder, t5)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert " - " in sentence
    return sentence


@pytest.mark.parametrize(
    ("status", "headers", "advice"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "tests/video is gated - accept its licence there, then set HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, "tests/video is gated - accept its licence there, then set HF_TOKEN"),
        (401, {"X-Error-Code": "RepoNotFound"}, "tests/video does not exist or is private - "),
        (404, {"X-Error-Code": "RepoNotFound"}, "tests/video does not exist or is private - "),
        (404, {"X-Error-Code": "EntryNotFound"}, f"tests/video has no file {UPSCALER} - "),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "(status 401) - set HF_TOKEN to"),
        (403, {}, f"tests/video refuses {UPSCALER} (status 403) - set HF_TOKEN"),
        (404, {"X-Error-Code": "RevisionNotFound"}, f"cannot download {UPSCALER} from"),
        (400, {}, f"cannot download {UPSCALER} from"),
        (418, {}, "tests/video: status 418"),
    ],
)
def test_what_a_user_may_not_have_is_refused_before_anything_is_fetched(hub, folder, status, headers, advice):
    hub.faults = [Fault(UPSCALER, status=status, headers=headers)]
    sentence = refusal(folder)
    assert advice in sentence
    assert hub.url in sentence
    assert str(folder) not in sentence  # the contents of the folder do not matter
    assert [one.name for one in hub.requests] == [CHECKPOINT, UPSCALER]
    assert found(folder) == {}


def test_a_repository_and_a_file_that_are_not_there_are_told_apart(hub, folder):
    hub.remove("tests/video", UPSCALER)
    assert f"tests/video has no file {UPSCALER}" in refusal(folder)
    hub.remove("tests/video", CHECKPOINT)
    assert "tests/video does not exist" in refusal(folder)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_faults_that_pass_are_waited_for(hub, folder, method, status):
    hub.faults = [Fault(CHECKPOINT, 3, method, status)]
    bring(folder)
    assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}
    assert hub.waits_s == [1, 2, 4]


def test_a_hub_that_stays_busy_is_given_up_and_what_is_there_kept(hub, folder):
    hub.faults = [Fault(CHECKPOINT, method="GET", status=503)]
    assert f"status 503); the partial download of {CHECKPOINT} is kept - run the command again" in refusal(folder)
    assert len(hub.asked("GET")) == 4


def test_a_refusal_in_the_middle_of_the_transfer_is_told(hub, folder):
    hub.faults = [Fault(CHECKPOINT, method="GET", status=403)]
    assert f"refuses {CHECKPOINT} (status 403)" in refusal(folder)


def test_a_body_shorter_than_promised_is_asked_for_again(hub, folder):
    hub.send_instead[CHECKPOINT] = hub.contents[CHECKPOINT][:4096]
    assert "is kept - run the command again" in refusal(folder)
    assert len(hub.asked("GET")) == 4
    hub.send_instead.clear()
    bring(folder)
    assert found(folder)[CHECKPOINT] == hub.contents[CHECKPOINT]


def test_a_small_file_is_resumed_though_the_hub_would_compress_it(hub, folder):
    content = hub.publish("tests/text", TOKENIZER, hub.contents[CHECKPOINT][:8192], in_lfs=False).content
    hub.faults = [Fault("spiece.model", 1, break_at=2048)]
    bring(folder)
    assert found(folder)[TOKENIZER] == content
    assert [one.start for one in hub.asked("GET") if one.name == "spiece.model"] == [None, 2048]


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Repo-Commit", ""), ("X-Linked-Etag", "W/strange"), ("X-Linked-Etag", '"../x"'), ("X-Linked-Size", "")],
)
def test_a_server_that_says_too_little_of_a_file_is_no_hub(hub, folder, name, value):
    hub.other_headers[name] = value
    assert "returned no size and checksum for tests/video" in refusal(folder)
    assert hub.asked("GET") == []


def test_a_token_that_can_not_be_sent_is_refused(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "ключ")
    assert "HF_TOKEN" in refusal(folder)
    assert hub.requests == []


def offline(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def unplugged(hub, monkeypatch):
    hub.close()


def down(hub, monkeypatch):
    hub.faults = [Fault(status=502)]


def misspelt(hub, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "no.hub/{repo_id}/{revision}/{filename}"
    )


@pytest.mark.parametrize(
    ("absence", "reason"),
    [
        (offline, r"offline mode is on \(HF_HUB_OFFLINE\)"),
        (unplugged, r"http://127\.0\.0\.1:\d+ cannot be reached or is busy \(.*refused"),
        (down, r"http://127\.0\.0\.1:\d+ cannot be reached or is busy \(status 502\)"),
        (misspelt, r"cannot be reached or is busy \(.*protocol"),
    ],
)
def test_without_the_hub_a_complete_folder_will_do_and_a_gap_is_named(hub, folder, monkeypatch, absence, reason):
    bring(folder, "bf16")
    before = found(folder)
    hub.requests.clear()
    absence(hub, monkeypatch)
    (line,) = [line for line in bring(folder, "bf16") if "text encoder" not in line]
    assert line.endswith(f"the 6 files in {folder} could not be checked against the hub")
    assert found(folder) == before
    for gap in (SHARDS[1], UPSCALER, TEXT_ENCODER_INDEX):
        (folder / gap).unlink()
        sentence = refusal(folder, "bf16")
        assert re.search(reason, sentence)
        assert gap in sentence
        assert SHARDS[0] not in sentence


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub, folder):
    bring(folder)
    assert {one.token for one in hub.requests if one.host == "hub"} == {TOKEN}
    assert {one.token for one in hub.requests if one.host == "storage"} == {None}


def start(folder, *options, **environment):
    """Starts a download in a separate process, where huggingface_hub reads the environment."""
    places = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder.parent / "home")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, str(folder), *options],
        env={**places, "HF_HOME": str(folder.parent / "huggingface"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_endpoint_token_cache_and_offline_mode_are_those_of_the_environment(hub, folder):
    from huggingface_hub import hf_hub_download

    hf_hub_download("tests/video", UPSCALER)  # into the cache of the same HF_HOME
    hub.requests.clear()
    online = start(folder, HF_ENDPOINT=hub.url, HF_TOKEN="hf_of_the_environment")
    out, err = online.communicate(timeout=60)
    assert online.returncode == 0, err
    assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}
    assert f"{UPSCALER}: taken from" in out
    heads = [one for one in hub.asked("HEAD") if "/resolve/" in one.path]
    assert [one.token for one in heads] == ["hf_of_the_environment"] * 4
    hub.requests.clear()
    without = start(folder, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    out, err = without.communicate(timeout=60)
    assert without.returncode == 0, err
    assert "offline mode is on (HF_HUB_OFFLINE): the 4 files" in out
    assert hub.requests == []
    assert not (folder.parent / "home").exists()


def test_an_endpoint_that_the_library_can_not_read_is_refused(hub, folder):
    ended = start(folder, HF_ENDPOINT="http://127.0.0.1:port")
    _, err = ended.communicate(timeout=60)
    assert (ended.returncode, err.count("\n")) == (2, 1)
    assert "HF_" in err


def test_variables_that_change_other_things_of_the_library_change_nothing_here(hub, folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    ended = start(
        folder,
        HF_ENDPOINT=f"{hub.url}///",
        HF_HOME="/proc/none",
        HF_HUB_CACHE=str(tmp_path / "file"),
        HF_HUB_ENABLE_HF_TRANSFER="1",
        HF_XET_HIGH_PERFORMANCE="?",
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_PROGRESS_BARS="?",
        REQUESTS_CA_BUNDLE="/none",
        CURL_CA_BUNDLE="/none",
    )
    _, err = ended.communicate(timeout=60)
    assert ended.returncode == 0, err
    assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "TQDM_MININTERVAL"])
def test_a_number_that_the_library_cannot_read_is_told_with_its_variable(hub, folder, name):
    ended = start(folder, HF_ENDPOINT=hub.url, **{name: "soon"})
    _, err = ended.communicate(timeout=60)
    assert (ended.returncode, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: huggingface_hub cannot use the value of {name}: ")


def test_a_number_that_only_a_request_cannot_use_is_told_among_the_variables_that_are_set(hub, folder):
    ended = start(folder, HF_ENDPOINT=hub.url, HF_HUB_ETAG_TIMEOUT="-5")
    _, err = ended.communicate(timeout=60)
    assert (ended.returncode, err.startswith("error: cannot download ")) == (2, True)
    assert "HF_HUB_ETAG_TIMEOUT" in err.splitlines()[0].partition(" - check ")[2]


def test_ctrl_c_leaves_a_partial_file_which_the_next_run_completes(hub, folder):
    hub.faults = [Fault(CHECKPOINT, break_at=40_960, stall=True)]
    child = start(folder, "small blocks", HF_ENDPOINT=hub.url)
    assert hub.stalled.wait(60)
    for _ in range(1000):
        if any(path.stat().st_size for path in folder.rglob("*.incomplete")):
            break
        threading.Event().wait(0.01)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert found(folder) == {}
    (partial,) = folder.rglob("*.incomplete")
    kept = partial.stat().st_size
    assert kept > 0
    hub.faults.clear()
    hub.requests.clear()
    bring(folder)
    assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}
    assert kept in {one.start for one in hub.asked("GET", "storage")}
