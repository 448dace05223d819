"""Laws of opening an engine: a misfit is reported early in one sentence, and nothing is left of it."""

import json
import re

import pytest
from stand_ins.engine_cases import BUILDERS, Bench, expected, feeds_for, recipes
from stand_ins.engines import VERSIONS, write_engine
from stand_ins.gpu_machine import Machine

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import checksum
from ltx_runtime.folder.sidecar import read_sidecar, write_sidecar
from ltx_runtime.sessions import open_session
from ltx_runtime.sessions.cuda.memory import GpuMemoryError

pytest.importorskip("filelock", reason="sessions of engines need it; it comes with them")

EVERY_BUILDER = pytest.mark.parametrize("builder", BUILDERS)
COMMAND = "run: ltx-export engine 0.9.5 --component transformer --builder "


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Yields a version folder; whatever happens to its engines, nothing of them may be left on the GPU."""
    made = Bench(tmp_path / "0.9.5", monkeypatch)
    yield made
    made.machine.assert_nothing_left()


def run_once(bench, name="transformer", **changed):
    """Opens a component, runs it, closes it and checks its outputs."""
    found = bench.find(name)
    feeds = feeds_for(name)
    with open_session(type(found)(**{**vars(found), **changed})) as session:
        made = session.run(feeds)
    for output, values in expected(name, feeds).items():
        assert (made[output] == values).all()


def refused(bench, error=LtxError, **changed):
    """Returns the error that a component raises instead of running, after which nothing may be left."""
    try:
        run_once(bench, **changed)
    except error as said:
        message = str(said)
    else:
        pytest.fail("it ran")
    assert "\n" not in message
    bench.machine.assert_nothing_left()
    return message


@EVERY_BUILDER
def test_an_engine_is_found_with_what_is_needed_to_run_it(bench, builder):
    bench.build(builder)
    found = bench.find("vae_decoder")
    assert found.path.name == "vae_decoder.bf16.engine"
    assert found.path.parent.name.endswith(f"-{builder}-{VERSIONS[builder]}")
    assert (found.backend, found.precision, found.weights) == (builder, "bf16", bench.engines.folder)
    assert found.profiles == found.sidecar.profiles != []


def test_where_there_is_no_engine_neither_library_nor_gpu_is_looked_for(bench):
    bench.build(machine=Machine(driver=0), recipe={})
    assert refused(bench) == f"no engine of transformer - {COMMAND}tensorrt_rtx --engines {bench.engines.folder}"


def test_engines_behind_a_link_are_told_from_none(bench, tmp_path):
    bench.build()
    (folder,) = bench.engines.folder.glob("*-tensorrt_rtx-*")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert refused(bench).startswith(f"no engine of transformer: {folder.name} is a link, and engines are used only ")


def test_without_a_gpu_that_is_said(bench):
    bench.build(machine=Machine(driver=0))
    assert "no NVIDIA driver" in refused(bench)


def test_without_the_library_that_is_said(bench, monkeypatch):
    bench.build()
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    assert "TensorRT-RTX cannot be loaded" in refused(bench)


def test_a_gpu_that_the_library_makes_nothing_for_is_told_what_does(bench):
    bench.build(machine=Machine(name="NVIDIA H100", compute_capability=(9, 0)))
    assert "makes nothing for NVIDIA H100 (SM90) - use --backend tensorrt, or cuda" in refused(bench)


def test_any_gpu_will_do_for_the_library_that_built_on_it(bench):
    bench.build("tensorrt", machine=Machine(name="NVIDIA H100", compute_capability=(9, 0)))
    run_once(bench)


def test_an_engine_of_another_gpu_is_not_taken_and_said_to_be_for_that(bench):
    bench.build("tensorrt", machine=Machine(name="NVIDIA L4"))
    bench.machine.name = "NVIDIA L40"
    message = refused(bench)
    assert "for sm89-nvidia-l40-tensorrt" in message
    assert "only for sm89-nvidia-l4-tensorrt" in message
    assert message.endswith(f"{COMMAND}tensorrt --engines {bench.engines.folder}")


@pytest.mark.parametrize("precision, other", [("bf16", "fp16"), ("fp16", "bf16")])
def test_bf16_comes_first_and_another_precision_where_it_does_not_fit(bench, precision, other):
    bench.build()
    second = recipes(precision="fp16")["transformer"]
    write_engine(bench.engines, "transformer", bench.maker, second)
    assert bench.find().precision == "bf16"
    path = bench.find().path
    path.with_name(f"transformer.{other}.engine").write_bytes(b"other")
    assert bench.find().precision == precision


def test_of_engines_that_do_not_fit_the_first_is_told_of(bench):
    bench.build()
    bench.find().path.write_bytes(b"other")
    assert re.search(
        rf"transformer\.bf16\.engine has changed .* - {COMMAND}tensorrt_rtx --engines \S+ --force", refused(bench)
    )


@EVERY_BUILDER
def test_a_damaged_engine_is_refused_in_the_library_s_words_with_the_command_that_rebuilds_it(bench, builder):
    bench.build(builder)
    path = bench.find().path
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_sidecar(path, type(read_sidecar(path))(**{**vars(read_sidecar(path)), "engine_checksum": checksum(path)}))
    message = refused(bench)
    assert "cannot be loaded by TensorRT" in message and "Version tag does not match" in message
    assert message.endswith(f"{COMMAND}{builder} --engines {bench.engines.folder} --force")


def test_an_engine_with_other_inputs_is_refused(bench):
    bench.build()
    path = bench.find().path
    spec = json.loads(path.read_text())
    spec["inputs"]["latent"] = spec["inputs"].pop("latents")
    path.write_text(json.dumps(spec))
    write_sidecar(path, type(read_sidecar(path))(**{**vars(read_sidecar(path)), "engine_checksum": checksum(path)}))
    assert "has other inputs or outputs than its graph" in refused(bench)


def test_an_engine_is_never_copied_into_the_machine_s_memory(bench):
    bench.build()
    run_once(bench)
    assert [one.__name__ for one in bench.seen.deserialized] == ["mmap"]


def test_an_engine_that_is_larger_than_the_memory_that_may_be_used_is_not_even_read(bench):
    bench.build()
    message = refused(bench, GpuMemoryError, gpu_memory_bytes=1000)
    assert "and 0.0 MB may be used - " in message
    assert "--weights embedded --weight-streaming, or use a smaller version" in message
    assert bench.seen.deserialized == []


@EVERY_BUILDER
def test_an_engine_for_which_memory_is_too_little_when_it_is_loaded_says_so(bench, builder):
    bench.build(builder, Machine(memory_bytes=1 << 20), recipes(own_bytes=2 << 20))
    message = refused(bench, GpuMemoryError)
    assert "needs more GPU memory than the 1.0 MB that are free" in message and "--weight-streaming" in message


@EVERY_BUILDER
@pytest.mark.parametrize("spare", [0, 40, 200, 1000, 2000])
def test_too_little_memory_for_a_run_is_said_with_what_to_change(bench, builder, spare):
    bench.build(builder, Machine(memory_bytes=200_000), recipes(own_bytes=200_000 - spare))
    message = refused(bench, GpuMemoryError)
    assert message.endswith(" are free - ask for a smaller size or fewer frames, or add --low-memory")


def test_a_session_that_lacked_memory_once_runs_what_is_smaller(bench):
    bench.build("tensorrt", Machine(memory_bytes=200_000))
    small, large = feeds_for("transformer", tokens=4), feeds_for("transformer", tokens=32, batch=3)
    with open_session(bench.find()) as session:
        session.run(small)
        block = bench.machine.take(bench.machine.memory_bytes - bench.machine.used_bytes() - 5000)
        for _ in range(2):
            with pytest.raises(GpuMemoryError):
                session.run(large)
            for run in range(3):
                feeds = feeds_for("transformer", run, tokens=4)
                assert (session.run(feeds)["velocity"] == expected("transformer", feeds)["velocity"]).all()
        bench.machine.give_back(block)


@pytest.mark.parametrize("free", [0, 300, 1000, 2000, 5000])
def test_sizes_that_do_not_fit_may_be_tried_one_after_another(bench, free):
    bench.build("tensorrt", Machine(memory_bytes=200_000))
    with open_session(bench.find()) as session:
        session.run(feeds_for("transformer", tokens=4))
        block = bench.machine.take(bench.machine.memory_bytes - bench.machine.used_bytes() - free)
        for tokens in (20, 32, 28, 32):
            with pytest.raises(GpuMemoryError):
                session.run(feeds_for("transformer", tokens=tokens, batch=3))
        bench.machine.give_back(block)
        feeds = feeds_for("transformer", tokens=32)
        assert (session.run(feeds)["velocity"] == expected("transformer", feeds)["velocity"]).all()


def test_a_decoder_that_lacks_memory_names_the_setting_for_tiles(bench):
    bench.build(machine=Machine(memory_bytes=30_000))
    with pytest.raises(GpuMemoryError, match=r"give a smaller --memory$"):
        run_once(bench, "vae_decoder")


STREAMABLE = 100_000
ACTIVATIONS = 24 * sum(
    array.size for array in feeds_for("transformer", tokens=32, batch=3, timesteps=32, text_tokens=16).values()
)
SPARE = 512 << 20


@EVERY_BUILDER
@pytest.mark.parametrize(
    "limit, budget",
    [
        (None, STREAMABLE),
        (SPARE + STREAMABLE + ACTIVATIONS + 4096, STREAMABLE),
        (SPARE + STREAMABLE + ACTIVATIONS + 4095, STREAMABLE - 1),
        (SPARE + ACTIVATIONS + 4096 + 10, 10),
        (1000, 0),
    ],
)
def test_weights_stay_in_the_machine_s_memory_as_far_as_they_do_not_fit_beside_activations(
    bench, builder, limit, budget
):
    bench.build(builder, recipe=recipes(streamable=STREAMABLE))
    run_once(bench, gpu_memory_bytes=limit)
    assert bench.seen.budgets[-1] == budget


def test_a_context_for_which_memory_is_too_little_says_so(bench):
    enough = SPARE + STREAMABLE + ACTIVATIONS + 4096
    bench.build(machine=Machine(memory_bytes=enough), recipe=recipes(streamable=STREAMABLE))
    take = bench.machine.take
    bench.machine.take = lambda size: None if size > 20_000 else take(size)
    message = refused(bench, GpuMemoryError)
    assert message.endswith("close other programs that use it, or use a smaller version")


def test_kernels_for_the_sizes_at_hand_are_compiled_before_the_first_run_and_not_beside_it(bench, monkeypatch):
    configs = []
    bench.build("tensorrt_rtx")
    import tensorrt_rtx as library

    make = library.ICudaEngine.create_runtime_config
    monkeypatch.setattr(
        library.ICudaEngine, "create_runtime_config", lambda engine: configs.append(make(engine)) or configs[-1]
    )
    run_once(bench)
    eager = library.DynamicShapesKernelSpecializationStrategy.EAGER
    assert [config.dynamic_shapes_kernel_specialization_strategy for config in configs] == [eager]
