"""What a server refuses to be started with, and which workers a machine gets."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from ltx_runtime import LtxError
from ltx_serve.making import workers
from ltx_serve.settings import Settings, check_settings, is_loopback, url_of

USUAL = Settings(Path("engines"), Path("data"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_an_address_of_this_machine_alone_needs_no_token(host):
    assert check_settings(replace(USUAL, host=host)).token is None


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.4", "", "localhost.example", "127.0.0.1.example", "my-pc"]
)
def test_an_address_that_others_reach_needs_a_token(host):
    assert not is_loopback(host)
    with pytest.raises(LtxError, match="can be reached from other machines, and there is no token - set LTX_TOKEN"):
        check_settings(replace(USUAL, host=host))
    assert check_settings(replace(USUAL, host=host, token="secret"))


def test_the_address_that_is_printed_can_be_opened():
    assert url_of("127.0.0.1", 8000) == "http://127.0.0.1:8000/"
    assert url_of("::1", 8000) == "http://[::1]:8000/"
    for host in ("0.0.0.0", "::"):  # which name all addresses, and so none to open
        assert url_of(host, 8000) == f"http://{socket.gethostname()}:8000/"


@pytest.mark.parametrize("token", ["", "two\nlines", "schlüssel", "\x7f"])
def test_a_token_that_no_header_can_carry_is_refused(token):
    with pytest.raises(LtxError, match="the token must be"):
        check_settings(replace(USUAL, token=token))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *[(name, [0, -1]) for name in ("max_queue", "max_upload_bytes", "max_frames", "max_attempts")],
        *[(name, [0, -0.5, float("nan"), float("inf")]) for name in ("max_job_s", "keep_days", "memory")],
        *[("port", [-1, 65_536]), ("workers", [0, -2, 65]), ("keep_bytes", [-1]), ("max_pixels", [1023])],
        *[("grace_s", [-1, float("nan"), float("inf")]), ("threads", [0])],
    ],
)
def test_a_number_out_of_range_is_named_and_what_to_do_is_said(name, values):
    for value in values:
        with pytest.raises(LtxError, match=f"{name.replace('_', '-')} must be") as refused:
            check_settings(replace(USUAL, **{name: value}))
        assert refused.value.advice.startswith("leave it out")


@pytest.fixture
def started(monkeypatch):
    """Replaces worker processes by what they would be started with."""
    monkeypatch.setattr(workers, "ProcessMaker", lambda *given: given)
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.setattr(workers, "find_spec", lambda name: object())

    def started(gpus=(), **settings):
        monkeypatch.setattr(workers, "visible_gpus", lambda: [*gpus])
        return workers.workers_of(replace(USUAL, **settings))

    return started


def test_there_is_one_worker_for_each_gpu_which_sees_no_other(started):
    made = started(["GPU-one", "GPU-two"])
    assert [name for name, _, _ in made] == ["worker-1", "worker-2"]
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, _, environment in made] == ["GPU-one", "GPU-two"]
    more = started(["GPU-one", "GPU-two"], workers=3)
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, _, environment in more] == ["GPU-one", "GPU-two", "GPU-one"]


def test_without_a_gpu_there_is_one_worker_with_all_threads(started):
    for backend, gpus in (("auto", []), ("cpu", ["GPU-one"]), ("openvino", ["GPU-one", "GPU-two"])):
        ((_, arguments, environment),) = started(gpus, backend=backend)
        assert (arguments["threads"], environment) == (None, {})
        assert arguments["folder"] == str(Path("engines").absolute())


def test_workers_share_the_threads(started, monkeypatch):
    for count, threads, share in ((2, None, 4), (3, None, 2), (16, None, 1), (2, 6, 3), (1, 6, 6), (4, 2, 1)):
        made = started(workers=count, threads=threads)
        assert len(made) == count
        for _, arguments, environment in made:
            assert arguments["threads"] == share
            assert environment == {"OMP_NUM_THREADS": str(share)}


def test_a_machine_without_the_libraries_of_gpus_computes_on_its_processor(started, monkeypatch):
    monkeypatch.setattr(workers, "find_spec", lambda name: None)
    assert len(started(["GPU-one", "GPU-two"])) == 1


def test_an_unknown_backend_is_refused_before_anything_starts(started):
    with pytest.raises(LtxError, match="unknown backend 'tpu' - use one of auto, "):
        started(backend="tpu")
