"""Laws of the device: it says what is wrong with the GPU, frees all memory once, waits before reading or freeing."""

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.sessions.cuda.device import Device
from ltx_runtime.sessions.cuda.gpu import find_gpu
from ltx_runtime.sessions.cuda.memory import STAGING_BYTES, GpuMemoryError

LARGE = STAGING_BYTES // 4 * 5 + 12_345  # more chunks than the staging memory holds


@pytest.fixture
def device(machine):
    """Yields a device with one user, who leaves at the end; then nothing may be left."""
    made = Device()
    made.join()
    yield made
    made.leave()
    machine.assert_nothing_left()


def bytes_of(size, seed=0):
    return np.random.RandomState(seed).randint(0, 256, size).astype(np.uint8)


def test_a_gpu_is_told_as_the_driver_tells_it(machine):
    gpu = find_gpu()
    assert (gpu.name, gpu.compute_capability) == ("NVIDIA GeForce RTX 4090", (8, 9))
    assert (gpu.driver, gpu.memory_bytes) == ("13.0", 1 << 30)


@pytest.mark.parametrize(
    "state, said",
    [
        ({"driver": 0}, "no NVIDIA driver.* - use a machine with an NVIDIA GPU"),
        ({"driver": 12080}, r"driver is for CUDA 12\.8, and cuda-bindings for 13\.0 - update the driver"),
        ({"devices": 0}, "finds no GPU - check nvidia-smi and CUDA_VISIBLE_DEVICES"),
        (
            {"errors": {"cudaGetDeviceCount": "cudaErrorDevicesUnavailable"}},
            r"cannot be used \(cudaErrorDevicesUnavailable\) - check",
        ),
        ({"errors": {"cudaGetDeviceProperties": "cudaErrorInvalidValue"}}, r"\(cudaErrorInvalidValue\) - check"),
    ],
)
def test_what_keeps_a_gpu_from_being_used_is_said_in_one_clause(machine, state, said):
    for name, value in state.items():
        setattr(machine, name, value)
    with pytest.raises(LtxError, match=said) as refused:
        find_gpu()
    assert "\n" not in str(refused.value)
    with pytest.raises(LtxError, match=said):
        Device()


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(LtxError, match=r"cuda-bindings cannot be loaded .* - run: .*pip install .*onnxruntime-gpu"):
        find_gpu()


@pytest.mark.parametrize("size", [1, 255, STAGING_BYTES // 4, LARGE])
def test_what_is_uploaded_comes_back(device, size):
    values = bytes_of(size)
    buffer = device.allocate(size, "it", "give up")
    device.upload(values, buffer)
    back = np.zeros_like(values)
    device.download(buffer, back)
    np.testing.assert_array_equal(back, values)
    device.free(buffer)


def test_an_array_may_change_as_soon_as_its_upload_returns(device):
    values = bytes_of(LARGE)
    expected = values.copy()
    buffer = device.allocate(LARGE, "it", "give up")
    device.upload(values, buffer)
    values[:] = 0
    back = np.zeros_like(values)
    device.download(buffer, back)
    np.testing.assert_array_equal(back, expected)
    device.free(buffer)


def test_many_small_uploads_share_the_staging_without_disturbing_each_other(device):
    size = STAGING_BYTES // 4 - 100
    arrays = [bytes_of(size, seed) for seed in range(9)]
    buffers = [device.allocate(size, "it", "give up") for _ in arrays]
    for array, buffer in zip(arrays, buffers, strict=True):
        device.upload(array, buffer)
    for array, buffer in zip(arrays, buffers, strict=True):
        back = np.zeros_like(array)
        device.download(buffer, back)
        np.testing.assert_array_equal(back, array)
        device.free(buffer)


def test_an_upload_may_begin_within_a_buffer(device):
    buffer = device.allocate(12, "it", "give up")
    device.upload(np.zeros(3, np.int32), buffer)
    device.upload(np.array([7], np.int32), buffer, 4)
    back = np.empty(3, np.int32)
    device.download(buffer, back)
    assert back.tolist() == [0, 7, 0]
    device.free(buffer)


@pytest.mark.parametrize("size, offset", [(13, 0), (12, 1), (1, 12), (1, -1)])
def test_a_copy_that_leaves_its_buffer_is_refused_before_cuda_sees_it(device, machine, size, offset):
    buffer = device.allocate(12, "it", "give up")
    with pytest.raises(ValueError, match="more than a buffer of 12 holds"):
        device.upload(np.zeros(size, np.uint8), buffer, offset)
    device.synchronize()
    assert machine.uploaded == 0
    device.free(buffer)


def test_an_array_with_gaps_is_refused(device):
    buffer = device.allocate(100, "it", "give up")
    with pytest.raises(ValueError, match="not contiguous"):
        device.upload(np.zeros((4, 4), np.uint8)[:, ::2], buffer)
    device.free(buffer)


def test_too_little_memory_is_one_sentence_with_what_was_asked_what_is_free_and_what_to_do(device, machine):
    machine.take((1 << 30) - 300_000_000)
    with pytest.raises(
        GpuMemoryError, match=r"^the weights needs 0\.5 GB of GPU memory, and 0\.3 GB of 1\.1 GB are free - buy one$"
    ):
        device.allocate(500_000_000, "the weights", "buy one")
    machine.give_back(*machine.blocks)


def test_too_little_memory_of_the_host_is_no_matter_of_the_gpu(machine):
    device = Device()
    machine.errors["cudaHostAlloc"] = "cudaErrorMemoryAllocation"
    with pytest.raises(MemoryError):
        device.pinned(100)


@pytest.mark.parametrize("name", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaMemGetInfo"])
def test_any_other_error_of_cuda_names_the_call_and_the_error(device, machine, name):
    buffer = device.allocate(4, "it", "give up")
    machine.errors[name] = "cudaErrorIllegalAddress"
    with pytest.raises(RuntimeError, match=f"^{name} failed: cudaErrorIllegalAddress$"):
        device.allocate(4, "it", "give up")
        device.upload(np.zeros(4, np.uint8), buffer)
        device.synchronize()
        device.free_bytes()
    machine.errors.clear()
    for address in [*machine.blocks]:
        machine.do_all(device.stream)
        machine.give_back(address)


def noted(machine, device, notes, word):
    """Returns a function that queues work, which notes that it was done."""
    return lambda: machine.put(device.stream, lambda: notes.append(word), [])


def test_a_graph_does_nothing_when_it_is_recorded_and_everything_when_it_is_launched(device, machine):
    notes = []
    graph = device.record(noted(machine, device, notes, "run"))
    device.synchronize()
    assert notes == []
    for times in (1, 2):
        device.launch(graph)
        device.synchronize()
        assert notes == ["run"] * times
    device.forget(graph)


def test_work_that_fails_while_it_is_recorded_leaves_the_stream_as_it_was(device, machine):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match=r"^no$"):
        device.record(fail)
    notes = []
    noted(machine, device, notes, "after")()
    device.synchronize()
    assert notes == ["after"]


def test_work_that_cannot_be_recorded_leaves_the_stream_as_it_was(device, machine):
    def spoil():
        machine.invalidated = True

    with pytest.raises(RuntimeError, match="cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated"):
        device.record(spoil)
    device.synchronize()


def test_the_arena_grows_and_never_shrinks_while_somebody_uses_it(device, machine):
    first = device.arena.reserve(1000, "it", "give up")
    assert device.arena.reserve(10, "it", "give up") is first
    second = device.arena.reserve(2000, "it", "give up")
    assert second.address != first.address
    assert device.arena.reserve(1000, "it", "give up") is second
    assert machine.used_bytes() == 2000


def test_the_arena_waits_for_work_that_uses_it_before_it_moves(device, machine):
    buffer = device.arena.reserve(1000, "it", "give up")
    notes = []
    machine.put(device.stream, lambda: notes.append("done"), [(buffer.address, buffer.size)])
    device.arena.reserve(2000, "it", "give up")
    assert notes == ["done"]


def test_an_arena_that_cannot_grow_is_empty_and_can_be_asked_for_less(device, machine):
    device.arena.reserve(1000, "it", "give up")
    with pytest.raises(GpuMemoryError, match="it needs 2\\.1 GB"):
        device.arena.reserve(1 << 31, "it", "give up")
    assert machine.used_bytes() == 0
    assert device.arena.reserve(500, "it", "give up").size == 500


def test_the_last_user_takes_the_arena_and_the_staging_with_him(machine):
    device = Device()
    for _ in range(2):
        device.join()
        device.join()
        buffer = device.arena.reserve(1000, "it", "give up")
        device.upload(bytes_of(10), buffer)
        device.leave()
        assert machine.used_bytes() == 1000
        assert len(machine.pinned) == 1
        device.leave()
        machine.assert_nothing_left()


def real_gpu():
    """Finds the real GPU, or skips the test and says why there is none."""
    try:
        return find_gpu()
    except LtxError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
def test_a_real_gpu_copies_in_both_directions_and_gives_its_memory_back():
    assert real_gpu().memory_bytes > 0
    device = Device()
    device.join()
    free = device.free_bytes()
    values = bytes_of(LARGE)
    buffer = device.allocate(LARGE, "it", "give up")
    device.upload(values, buffer)
    back = np.zeros_like(values)
    device.download(buffer, back)
    np.testing.assert_array_equal(back, values)
    device.free(buffer)
    device.leave()
    assert device.free_bytes() >= free


@pytest.mark.gpu
def test_a_real_gpu_says_how_much_memory_it_lacks():
    real_gpu()
    with pytest.raises(GpuMemoryError, match="are free - give up"):
        Device().allocate(1 << 50, "it", "give up")
