"""ltx-export: parse, call, print. Only the commands `onnx` and `random-weights` import torch."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ltx_export.engines.arguments import Asked
from ltx_runtime.cli.arguments import command_of
from ltx_runtime.cli.streams import answer, run
from ltx_runtime.errors import LtxError, reported
from ltx_runtime.files import engines_folder
from ltx_runtime.packages import need
from ltx_runtime.replacing.tidying import tidy
from ltx_runtime.spec.versions import find_version

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A release, e.g. 0.9.8-2b-distilled, or demo.")]
_File = Path | None
EnginesRoot = Annotated[
    _File,
    typer.Option(
        envvar="LTX_ENGINES", help="Folder of exported versions (default: ./engines, else the user's data folder)."
    ),
]
TrustEngines = Annotated[
    bool,
    typer.Option(
        "--trust-engines",
        envvar="LTX_TRUST_ENGINES",
        help="Use links to other folders that somebody else has put into the folder.",
    ),
]
Weights = Annotated[
    _File,
    typer.Option(
        help="Checkpoint file, diffusers folder, GGUF transformer, or a folder with one, also the hub's cache or "
        "ComfyUI's models (default: weights/VERSION; those of the demo come with this program)."
    ),
]
Upscaler = Annotated[_File, typer.Option(help="File or folder of the spatial upscaler, for a second pass.")]
TemporalUpscaler = Annotated[
    _File, typer.Option(help="File or folder of the temporal upscaler, for twice the frame rate.")
]
Vae = Annotated[
    _File, typer.Option(help="File or folder of the VAE (default: the one in the checkpoint or beside it).")
]
T5 = Annotated[
    _File,
    typer.Option(
        help="Text encoder (T5): safetensors file, folder or index of shards, or GGUF (default: the one in the "
        "checkpoint or beside it)."
    ),
]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        help="fp32 (exact on a CPU), bf16 or fp16 (for a GPU; bf16 also for OpenVINO), or q8 (8-bit weights for "
        "OpenVINO); COMPONENT=PRECISION sets one component. Can be repeated (default: fp32 and bf16, and q8 of the "
        "transformer where OpenVINO is installed and there is no NVIDIA GPU)."
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(help="FILE[:SCALE] or FOLDER[:SCALE]: a LoRA to merge into the transformer. Can be repeated."),
]
Link = Annotated[
    bool,
    typer.Option(
        "--link", help="Use the weights in their present place instead of placing them in the version folder."
    ),
]
Stg = Annotated[bool, typer.Option("--stg", help="Support STG even if the version's presets do not use it.")]
_STORES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@app.command()
@reported()
def onnx(
    version: VersionName,
    weights: Weights = None,
    vae: Vae = None,
    t5: T5 = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer file of T5, e.g. spiece.model.")] = None,
    upscaler: Upscaler = None,
    temporal_upscaler: TemporalUpscaler = None,
    variant: Annotated[str, typer.Option(help="Variant of the files in a diffusers folder, e.g. bf16.")] = "",
    engines: EnginesRoot = None,
    precision: Precisions = None,
    lora: Loras = None,
    store: Annotated[str | None, typer.Option(help="Convert all weights to fp32, fp16 or bf16.")] = None,
    link: Link = False,
    stg: Stg = False,
    without: Annotated[list[str] | None, typer.Option(help="Leave this component out. Can be repeated.")] = None,
) -> None:
    """Export a version's networks as ONNX graphs that use the checkpoint's weights."""
    release = find_version(version)
    need("torch", "onnxscript", "onnxruntime", extra="export")
    from ltx_export import build
    from ltx_export.sources.find import find_sources
    from ltx_export.sources.layouts import weights_folder
    from ltx_runtime.cli.progress import display
    from ltx_runtime.weights import lora as loras

    everywhere, of_component = _precisions(precision or list(build.DEFAULT_PRECISIONS))
    merged, left_out = [loras.parse_lora(argument) for argument in lora or ()], _optional_components(without or [])
    precisions = everywhere or build.DEFAULT_PRECISIONS
    quantize = _runs_on_cpu() and not (precision and everywhere)
    options = build.ExportOptions(precisions, of_component, _store_dtype(store), merged, link, stg, left_out, quantize)
    folder, target = weights or weights_folder(release), engines_folder(engines) / release.name
    for place in (folder, target.parent):
        tidy(place, print)
    paths = {"vae": vae, "t5": t5, "upscaler": upscaler, "temporal_upscaler": temporal_upscaler}
    sources = find_sources(release, folder, **paths, tokenizer=tokenizer, variant=variant, without=left_out)
    with display(in_bytes=True) as progress:
        build.export_version(release, sources, target, options, print, progress)
    print(f"{target} is complete")


def _store_dtype(store: str | None) -> str | None:
    if store is not None and store not in _STORES:
        raise LtxError(f"weights cannot be stored as {store!r}", f"use one of {', '.join(_STORES)}")
    return _STORES[store] if store else None


def _runs_on_cpu() -> bool:
    """Returns whether OpenVINO will run the transformer on this machine, as far as can be seen."""
    from importlib.util import find_spec

    from ltx_runtime.sessions.cuda.driver import has_nvidia_driver

    return find_spec("openvino") is not None and not has_nvidia_driver()


def _precisions(arguments: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Parses precisions such as `bf16`, which applies to every component, and `text_encoder=bf16`, for only one."""
    from ltx_export.graphs.precision import PRECISIONS
    from ltx_runtime.folder.manifest import CALIBRATED, QUANTIZED
    from ltx_runtime.spec.components import COMPONENT_NAMES

    everywhere: list[str] = []
    of_component: dict[str, list[str]] = {}
    for argument in arguments:
        component, _, precision = argument.rpartition("=")
        if component and component not in COMPONENT_NAMES:
            raise LtxError(f"unknown component {component!r}", f"use one of {', '.join(COMPONENT_NAMES)}")
        if precision not in (*PRECISIONS, QUANTIZED):
            known = ", ".join((*PRECISIONS, QUANTIZED))
            if precision == CALIBRATED:
                raise LtxError(
                    "int8 graphs are not exported but calibrated", "run ltx-export calibrate after the export"
                )
            raise LtxError(f"unknown precision {precision!r}", f"use one of {known}")
        (of_component.setdefault(component, []) if component else everywhere).append(precision)
    return everywhere, of_component


def _optional_components(components: list[str]) -> tuple[str, ...]:
    """Returns the components as a tuple. Raises LtxError if one of them cannot be left out."""
    from ltx_runtime.spec.components import OPTIONAL

    for name in components:
        if name not in OPTIONAL:
            raise LtxError(f"{name!r} is not a component that can be left out", f"use one of {', '.join(OPTIONAL)}")
    return tuple(components)


@app.command()
@reported("what was downloaded is kept, and not downloaded again")
def download(
    version: VersionName,
    folder: Annotated[Path | None, typer.Argument(help="Target folder (default: weights/VERSION).")] = None,
    t5: Annotated[str, typer.Option(help="Text encoder: bf16, a GGUF such as Q8_0 or Q5_K_M, or none.")] = "Q8_0",
    missing: Annotated[
        bool,
        typer.Option(
            "--missing", help="Accept existing files without comparing checksums; download only missing ones."
        ),
    ] = False,
    temporal_upscaler: Annotated[
        bool, typer.Option("--temporal-upscaler", help="Download the temporal upscaler too, for twice the frame rate.")
    ] = False,
) -> None:
    """Download a version's checkpoint, upscaler, T5 and tokenizer from Hugging Face, except files already there."""
    release = find_version(version)
    need("huggingface_hub", "filelock", extra="download")
    from ltx_export.sources.download import download as fetch

    target = folder or Path("weights") / release.name
    tidy(target, print)
    fetch(release, target, t5, print, only_missing=missing, temporal_upscaler=temporal_upscaler)
    print(f"{target} is complete")


@app.command("publish")
@reported("what was uploaded is not uploaded again")
def publish_folder(
    folder: Annotated[Path, typer.Argument(help="A version folder.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Let only the owner see a new repository.")] = False,
    trust_engines: TrustEngines = False,
) -> None:
    """Upload a version folder to Hugging Face, where ltx-run --fetch gets it; engines are left out."""
    need("huggingface_hub", extra="download")
    from ltx_export.publish import publish
    from ltx_runtime.folder.finding import find_tidied
    from ltx_runtime.folder.reading import open_engines

    opened = open_engines(find_tidied(folder, None, print), trust=trust_engines)
    address = publish(opened, repository, print, private=private)
    print(f"{address} is complete - get it with: ltx-run --fetch {repository}")


@app.command("bundle")
@reported()
def bundle_version(
    version: VersionName,
    output: Annotated[Path, typer.Argument(metavar="OUT.tar", help="File to write.")],
    engines: EnginesRoot = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(help="What to install: cpu, openvino, gpu, tensorrt-rtx, ... Can be repeated (default: cpu)."),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(help="Tag of the machine to install on, e.g. manylinux_2_28_x86_64 (default: this machine)."),
    ] = None,
    python: Annotated[str | None, typer.Option(help="Its Python, e.g. 3.11 (default: this one).")] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Only graphs of this precision. Can be repeated (default: all that can be run there)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    trust_engines: TrustEngines = False,
) -> None:
    """Pack a version, all wheels and an installer into one file, for a machine that has only Python and no network."""
    release = find_version(version)
    from ltx_export.bundle.bundle import INSTALLER, Options, bundle, folder_of
    from ltx_export.bundle.target import target_of
    from ltx_runtime.cli.progress import display
    from ltx_runtime.folder.finding import find_tidied
    from ltx_runtime.folder.reading import open_engines

    options = Options(target_of(platform, python), tuple(extra or ["cpu"]), tuple(precision or ()), overwrite)
    found = find_tidied(engines_folder(engines), release.name, print)
    opened = open_engines(found, trust=trust_engines)
    with display(in_bytes=True) as progress:
        bundle(opened, output, options, print, progress)
    installer = f"{folder_of(release.name, options.target)}/{INSTALLER}"
    print(f"{output} is complete - on the other machine: tar -xf {output.name} && python3 {installer}")


@app.command()
@reported()
def inspect(
    path: Annotated[Path, typer.Argument(help="A weights file, a folder of weights, or a version folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    trust_engines: TrustEngines = False,
) -> None:
    """Show what a file or folder is, which version and why, what is missing, and how much memory it will need."""
    import dataclasses
    import json

    from ltx_export.inspection.inspect import inspect as look
    from ltx_export.inspection.lines import lines_of

    inspection = look(path, trust=trust_engines)
    answer(json.dumps(dataclasses.asdict(inspection), indent=1) if as_json else "\n".join(lines_of(inspection)))


@app.command()
@reported()
def check(
    folder: Annotated[
        _File,
        typer.Argument(
            help="A version folder, or a folder of exported versions (default: ./engines, else the user's data folder)."
        ),
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version to check, if the folder has several.")] = None,
    trust_engines: TrustEngines = False,
) -> None:
    """Verify a version folder that was copied: checksums, and the fp32 graphs' results against those at export."""
    need("onnxruntime", extra="cpu")
    from ltx_export.recorded import check_folder
    from ltx_runtime.folder.finding import find_tidied
    from ltx_runtime.folder.reading import open_engines

    name = find_version(version).name if version else None
    engines = open_engines(find_tidied(engines_folder(folder), name, print), trust=trust_engines)
    print(f"{engines.folder}: {len(engines.manifest.files)} files are intact")
    check_folder(engines, print)


@app.command()
@reported()
def calibrate(
    version: VersionName,
    engines: EnginesRoot = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with a prompt on each line; the last one is only tested.")
    ] = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTHxFRAMES of the videos that are denoised.")] = "256x384x25",
    error: Annotated[
        float, typer.Option(help="Largest relative L2 of a step to fp32; the worst products stay q8 to keep it.")
    ] = 0.025,
    trust_engines: TrustEngines = False,
) -> None:
    """Measure a transformer's activations for a few prompts, and add its int8 graph for --cpu-mode int8."""
    release = find_version(version)
    need("onnx_ir", "onnxruntime", "filelock", extra="export")
    from ltx_export.calibration.calibrate import PROMPTS
    from ltx_export.calibration.calibrate import calibrate as add_int8
    from ltx_runtime.cli.progress import display
    from ltx_runtime.folder.finding import find_tidied
    from ltx_runtime.folder.reading import open_engines
    from ltx_runtime.spec.geometry import size_of

    found = find_tidied(engines_folder(engines), release.name, print)
    opened = open_engines(found, trust=trust_engines)
    with display() as progress:
        add_int8(
            opened,
            print,
            prompts=PROMPTS if prompts is None else _lines_of(prompts),
            size=size_of(size, "--size"),
            limit=error,
            progress=progress,
        )
    print(f"{opened.folder} has an int8 graph, which ltx-run uses with --cpu-mode int8")


def _lines_of(path: Path) -> list[str]:
    """Returns the lines of a text file that are not empty.

    Raises:
        LtxError: the file cannot be read, or is not UTF-8.
    """
    from ltx_runtime.errors import explaining

    try:
        with explaining(f"read {path}"):
            return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise LtxError(f"{path} is not text in UTF-8 ({error.reason})", "save it as UTF-8") from None


@app.command()
@reported()
def random_weights(
    version: VersionName,
    folder: Annotated[Path | None, typer.Argument(help="Target folder (default: weights/VERSION).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    sparse: Annotated[
        bool, typer.Option(help="Write zeros as sparse files, to measure large versions without disk space.")
    ] = False,
) -> None:
    """Write random weights in the official file formats, for tries without a download."""
    release = find_version(version)
    need("torch", extra="export")
    from ltx_export.random_weights import write_random_weights

    target = folder or Path("weights") / release.name
    tidy(target, print)
    write_random_weights(release, target, seed=seed, sparse=sparse)
    print(f"{target} holds random weights of {release.name}; use them with --weights {shlex.quote(str(target))}")


@reported("complete engines are kept, and not built again")
def _engine(options: Asked) -> None:
    """Build TensorRT or TensorRT-RTX engines from a version's bf16 or fp16 graphs; needs no PyTorch."""
    need("onnx", "filelock", extra="tensorrt-rtx")
    from functools import partial

    from ltx_export.engines.command import run_command

    run_command(options, partial(print, flush=True))


app.command("engine")(command_of(_engine, Asked))


def main() -> None:
    """Runs the `ltx-export` command."""
    run(app, "ltx-export", sys.argv[1:] or ["--help"])
