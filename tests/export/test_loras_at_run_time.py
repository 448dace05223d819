"""LoRAs that are merged when a network is loaded compute what an export with the same LoRAs does, bit for bit."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from samples.demo import folder_with_demo, folder_with_quantized_demo
from samples.loras import shapes_of, write_lora
from samples.tiny import export

from ltx_export.build import ExportOptions
from ltx_export.recorded import SIZES, random_feeds, relative_l2
from ltx_runtime import LoraFile, LtxError, Pipeline, Request, read_record
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import BACKENDS, Backend, find, onnxruntime_cuda, open_session
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.sessions.found import FoundEngine
from ltx_runtime.weights import merging
from ltx_runtime.weights.graph import weights_of
from ltx_runtime.weights.merging import check_room, merged, merging_of

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
ON_CPU = ["cpu", *(["openvino"] if HAS_OPENVINO else [])]
SMALL = {"height": 64, "width": 96, "num_frames": 9, "seed": 3, "single_pass": True}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "loras"


def velocity(engines: Engines, backend: str, loras=(), sizes=SIZES[0]) -> np.ndarray:
    with open_session(find(engines, "transformer", backend, loras=loras)) as session:
        return session.run(random_feeds(session.component, sizes))["velocity"]


@pytest.mark.parametrize("kept", [True, False], ids=["cached", "in memory"])
@pytest.mark.parametrize("store", [None, "F32", "F16"])
def test_merging_at_load_equals_an_export_with_the_same_loras(exported, tmp_path, monkeypatch, store, kept):
    release = exported("0.9.0")
    shapes = shapes_of(release.folder)
    files = [write_lora(tmp_path / f"{seed}.safetensors", shapes, seed) for seed in range(2)]
    loras = [LoraFile(files[0], 0.7), LoraFile(files[1], -0.4)]
    precisions = ("fp32", "bf16")
    plain, with_loras = (
        open_engines(_exported(release, tmp_path / name, ExportOptions(precisions, store=store, loras=given)))
        for name, given in (("plain", ()), ("merged", loras))
    )
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "cache") if kept else "")
    for backend in ON_CPU:
        expected = velocity(with_loras, backend)
        for _ in range(2):  # the second time from the cache
            np.testing.assert_array_equal(velocity(plain, backend, loras), expected)
        assert not np.array_equal(velocity(plain, backend), expected)
        assert not np.array_equal(velocity(plain, backend, loras[:1]), expected)
    sets = sorted((tmp_path / "cache").glob("loras/*")) if kept else []
    assert len(sets) == (2 if kept else 0)  # of one LoRA and of two, whatever the precision and the backend
    exact = load_torch(with_loras.folder / "transformer.safetensors")
    found = find(plain, "transformer", "cpu", loras=loras)
    for name, weight in merged(found.merging).items():
        assert weight.raw.tobytes() == exact[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes(), name
    assert found.merging.changed.keys() == {name for name in shapes if "table" not in name}


def _exported(release, folder: Path, options: ExportOptions) -> Path:
    export(release.version, release.sources, folder, options=options)
    return folder


def test_what_a_graph_says_of_its_weights_is_what_onnx_reads(exported):
    types = {"F32": onnx.TensorProto.FLOAT, "F16": onnx.TensorProto.FLOAT16, "BF16": onnx.TensorProto.BFLOAT16}
    for folder in (exported("0.9.0").folder, folder_with_quantized_demo()):
        for graph in sorted(folder.glob("*.onnx")):
            model = onnx.load(str(graph), load_external_data=False)
            expected = {}
            for tensor in model.graph.initializer:
                place = {entry.key: entry.value for entry in tensor.external_data}
                if place:
                    where = folder / place["location"], int(place["offset"]), int(place["length"])
                    expected[tensor.name] = (*where, tensor.data_type, tuple(tensor.dims))
            found = {
                name: (one.file, one.offset, one.length, types.get(one.dtype) or int(one.dtype.split()[1]), one.shape)
                for name, one in weights_of(graph, folder).items()
            }
            assert found == expected
            assert expected


def test_a_damaged_graph_is_refused_in_one_sentence_or_read(exported, tmp_path):
    raw = bytearray((exported("0.9.0").folder / "transformer.fp32.onnx").read_bytes())
    random = np.random.default_rng(0)
    damaged = [bytes(raw[:length]) for length in (1, 7, len(raw) // 2, len(raw) - 1)]
    for _ in range(100):
        changed = raw.copy()
        for place in random.integers(0, len(raw), 3):
            changed[place] = random.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for content in damaged:
        (tmp_path / "graph.onnx").write_bytes(content)
        try:
            weights_of(tmp_path / "graph.onnx", tmp_path)
        except LtxError as error:
            refused += 1
            assert "graph.onnx is not an ONNX graph (" in str(error) and "\n" not in str(error)
    assert refused >= 4


def test_a_set_is_merged_once_and_a_change_of_anything_makes_another(exported, tmp_path, cache):
    engines = open_engines(exported("0.9.0").folder)
    file = write_lora(tmp_path / "fox.safetensors", shapes_of(engines.folder))
    other = write_lora(tmp_path / "owl.safetensors", shapes_of(engines.folder), seed=1)

    def path_of(*loras: LoraFile) -> Path:
        made = find(engines, "transformer", "cpu", loras=loras).merging
        merged(made)
        return made.path

    first = path_of(LoraFile(file, 0.5))
    before = first.stat().st_ino, first.read_bytes()
    assert path_of(LoraFile(file, 0.5)) == first
    assert (first.stat().st_ino, first.read_bytes()) == before
    paths = {first, path_of(LoraFile(file, 0.6)), path_of(LoraFile(other, 0.5))}
    paths |= {path_of(LoraFile(file), LoraFile(other)), path_of(LoraFile(other), LoraFile(file))}
    _scale_alphas(file, 2)
    paths.add(path_of(LoraFile(file, 0.5)))
    assert len(paths) == len(list(cache.iterdir())) == 6
    planned = find(engines, "transformer", "cpu", loras=[LoraFile(file, 0.9)]).merging
    _scale_alphas(file, 3)
    with pytest.raises(LtxError, match=r"fox\.safetensors has changed since the video was planned - start again"):
        merged(planned)
    _scale_alphas(file, 1 / 3)
    assert not planned.is_kept
    first.write_bytes(before[1][:1000])  # a file that is cut off is made again
    _scale_alphas(file, 0.5)
    assert path_of(LoraFile(file, 0.5)) == first
    assert first.read_bytes() == before[1]


def _scale_alphas(file: Path, factor: float) -> None:
    tensors = load_file(file)
    alphas = {name: np.array(factor * value, np.float32) for name, value in tensors.items() if name.endswith("alpha")}
    save_file(tensors | alphas, file)


def test_sets_that_were_not_used_for_longest_make_room(exported, tmp_path, cache, monkeypatch):
    engines = open_engines(exported("0.9.0").folder)
    file = write_lora(tmp_path / "fox.safetensors", shapes_of(engines.folder))
    made = [find(engines, "transformer", "cpu", loras=[LoraFile(file, scale)]).merging for scale in (1, 2, 3)]
    monkeypatch.setattr(merging, "LARGEST_BYTES", int(2.5 * made[0].size_bytes))
    merged(made[0])
    merged(made[1])
    merged(made[0])  # used again, so that the other one is older
    merged(made[2])
    assert [one.is_kept for one in made] == [True, False, True]


def test_a_cache_without_room_is_told_before_anything_runs(exported, tmp_path, cache, monkeypatch):
    import shutil

    engines = open_engines(exported("0.9.0").folder)
    file = write_lora(tmp_path / "fox.safetensors", shapes_of(engines.folder))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(LtxError, match=r"but only 0\.00 MB are free - free some space, or name another.* LTX_CACHE"):
        check_room(find(engines, "transformer", "cpu", loras=[LoraFile(file)]).merging)


def test_weights_of_integers_are_refused_and_auto_takes_a_graph_of_floats(tmp_path):
    engines = open_engines(folder_with_quantized_demo())
    file = write_lora(tmp_path / "fox.safetensors", shapes_of(engines.folder))
    with pytest.raises(LtxError, match=r"weights of transformer\.q8\.onnx are integers, .* - export .* with --lora"):
        merging_of(engines.folder / "transformer.q8.onnx", engines.folder, (), [LoraFile(file)])
    if HAS_OPENVINO:
        with pytest.raises(LtxError, match="are integers"):
            find(engines, "transformer", "openvino_q8", loras=[LoraFile(file)])
    found = find(engines, "transformer", cpu_mode="q8", loras=[LoraFile(file)])
    assert (found.backend, found.merging.loras[0].file) == ("cpu", file)


BAD = {
    "nothing.safetensors": (None, "no such file or directory - check the path"),
    "text.safetensors": (b"no tensors", "is not a complete safetensors file"),
    "foreign.safetensors": (
        {"other.block.lora_A.weight": (2, 8), "other.block.lora_B.weight": (8, 2)},
        "lacks modules",
    ),
    "wide.safetensors": (
        {"patchify_proj.lora_A.weight": (2, 8), "patchify_proj.lora_B.weight": (8, 2)},
        "another model",
    ),
    "dora.safetensors": ({"patchify_proj.dora_scale": (8,)}, "holds DoRA scales"),
    "checkpoint.safetensors": ({"patchify_proj.weight": (8, 8)}, "holds no LoRA"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_lora_that_cannot_be_used_is_refused_when_the_video_is_asked_for(tmp_path, name):
    content, told = BAD[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        save_file({key: np.ones(shape, np.float32) for key, shape in content.items()}, tmp_path / name)
    for backend in ("auto", "cpu"):
        with Pipeline(folder_with_demo() / "engines" / "demo", backend=backend) as pipe:
            with pytest.raises(LtxError, match=told) as refused:
                pipe("a fox", **SMALL, loras=[LoraFile(tmp_path / name)])
            assert str(tmp_path / name) in str(refused.value)
            assert "\n" not in str(refused.value)


def test_a_video_with_loras_is_planned_told_recorded_and_made_again(tmp_path, cache):
    folder = folder_with_demo() / "engines" / "demo"
    file = write_lora(tmp_path / "fox.safetensors", shapes_of(folder))
    request = Request("a fox", **SMALL, loras=(LoraFile(file, 0.5),))
    notes: list[str] = []
    with Pipeline(folder, backend="cpu", note=notes.append, keep_loaded=True) as pipe:
        video = pipe(request)
        plan = video.report()["loras"]
        assert plan["files"] == [{"file": str(file), "scale": 0.5}]
        assert (plan["is_merged"], plan["weights"]) == (False, len(load_file(file)) - 2 * _low_rank(file))
        assert f"LoRA: {file} at 0.5" in video.report_lines()
        assert not cache.exists()
        with_lora, plain = np.stack(list(video)), np.stack(list(pipe(request, loras=())))
        assert [note for note in notes if note.startswith("merging the LoRAs into the transformer, once: ")]
        assert not np.array_equal(with_lora, plain)
        again = pipe(request, overwrite=True)
        assert again.report()["loras"]["is_merged"]
        again.save(tmp_path / "fox.mp4")
        recorded = read_record(tmp_path / "fox.mp4")
        assert recorded.request.loras == request.loras
        assert {path.resolve() for path in recorded.inputs} == {file.resolve()}
        assert recorded.changed_inputs() == []
        pipe(recorded.request).save(tmp_path / "again.mp4")
        assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "fox.mp4").read_bytes()
        with pytest.raises(LtxError, match=f"{file} would be both the LoRA {file} and the file for noise"):
            pipe(request, save_noise=file, overwrite=True)
        write_lora(file, shapes_of(folder), seed=9)
        assert [path.name for path in recorded.changed_inputs()] == [file.name]
        assert not np.array_equal(np.stack(list(pipe(request))), with_lora)  # no network that is kept loaded is stale


def _low_rank(file: Path) -> int:
    return sum(name.endswith(".alpha") for name in load_file(file))


def test_an_interrupted_video_goes_on_with_its_loras_and_not_with_others(tmp_path, cache):
    folder = folder_with_demo() / "engines" / "demo"
    file = write_lora(tmp_path / "fox.safetensors", shapes_of(folder))
    kept: list[Path] = []

    with Pipeline(folder, backend="cpu") as pipe:
        request = Request("a fox", **SMALL, loras=(LoraFile(file, 0.5),))
        pipe(request).save(tmp_path / "whole.mp4")

        def interrupted(label, units):
            if label == "decode":
                raise KeyboardInterrupt
            return _silent(label, units)

        with pytest.raises(KeyboardInterrupt):
            pipe(request).save(tmp_path / "late.mp4", interrupted, unfinished=kept.append)
        before = file.read_bytes()
        write_lora(file, shapes_of(folder), seed=9)
        with pytest.raises(LtxError, match=r"fox\.safetensors is not what it was when the run began"):
            pipe.resume(kept[0])
        file.write_bytes(before)
        pipe.resume(kept[0]).save(tmp_path / "late.mp4")
    assert (tmp_path / "late.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def _silent(label, units):
    from ltx_runtime.progress import silent

    return silent(label, units)


def test_the_command_line_takes_several(tmp_path, monkeypatch, capsys):
    from ltx_runtime.cli import main

    folder = folder_with_demo() / "engines" / "demo"
    for seed, name in enumerate(("fox", "owl")):
        write_lora(tmp_path / f"{name}.safetensors", shapes_of(folder), seed)
    monkeypatch.chdir(tmp_path)
    size = ("--height", "64", "--width", "96", "--num-frames", "9", "--backend", "cpu", "--engines", str(folder))
    words = [
        "ltx-run",
        "a fox",
        *size,
        "--lora",
        "fox.safetensors:0.5",
        "--lora",
        "owl.safetensors",
        "--plan",
        "--json",
    ]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    plan = json.loads(capsys.readouterr().out)["loras"]
    assert plan["files"] == [{"file": "fox.safetensors", "scale": 0.5}, {"file": "owl.safetensors", "scale": 1.0}]
    assert plan["merged_file"] is None


def test_the_runner_of_a_gpu_takes_them_too(exported, tmp_path, monkeypatch):
    """Runs the code of the CUDA backend on ONNX Runtime's CPU provider; no GPU is needed."""
    engines = open_engines(exported("0.9.5").folder)
    loras = [LoraFile(write_lora(tmp_path / "fox.safetensors", shapes_of(engines.folder)), 0.5)]
    monkeypatch.setattr(onnxruntime_cuda, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime_cuda, "_DEVICE", "cpu")
    gpu = Gpu("made up", (9, 0), "13.0", 8_000_000_000)
    monkeypatch.setattr(onnxruntime_cuda, "find_gpu", lambda: gpu)
    expected = velocity(engines, "cpu", loras)
    assert relative_l2(velocity(engines, "cuda", loras), expected) < 1e-5
    assert relative_l2(velocity(engines, "cuda"), expected) > 1e-2


def test_an_engine_is_passed_over_and_told(exported, tmp_path, monkeypatch):
    engines = open_engines(exported("0.9.5").folder)
    loras = [LoraFile(write_lora(tmp_path / "fox.safetensors", shapes_of(engines.folder)))]
    graph = find(engines, "transformer", "cpu")
    module = ModuleType("engines_only")
    module.find = lambda engines, name, backend: FoundEngine(
        backend, graph.component, graph.path, graph.weights, address=None, sidecar=None
    )
    monkeypatch.setitem(sys.modules, "engines_only", module)
    monkeypatch.setitem(BACKENDS, "tensorrt", Backend("engines_only", "tensorrt"))
    with pytest.raises(LtxError, match=r"weights of the tensorrt engine of transformer cannot take LoRAs - use --back"):
        find(engines, "transformer", "tensorrt", loras=loras)
    found = find(engines, "transformer", loras=loras)
    assert found.backend == "cpu"
    assert found.reasons[0] == "tensorrt: the weights of the tensorrt engine of transformer cannot take LoRAs"


def test_a_folder_of_peft_is_read_recorded_and_part_of_the_key_with_its_configuration(exported, tmp_path, cache):
    engines = open_engines(exported("0.9.5").folder)
    layer, (out, inner) = "proj_out", shapes_of(engines.folder)["proj_out.weight"]
    tensors = {"A": np.ones((2, inner), np.float32), "B": np.ones((out, 2), np.float32)}
    named = {f"base_model.model.{layer}.lora_{part}.weight": value for part, value in tensors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    paths = []
    for alpha in (2, 4):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": alpha}))
        made = find(engines, "transformer", "cpu", loras=[LoraFile(tmp_path)]).merging
        assert [path.name for path in made.sources] == ["adapter_model.safetensors", "adapter_config.json"]
        assert made.changed.keys() == {f"{layer}.weight"}
        paths.append(made.path)
    assert paths[0] != paths[1]
