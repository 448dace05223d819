"""ltx-export: parse, call, print. Imports torch only in the command that traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ltx_export.engines.arguments import Asked
from ltx_runtime.cli.arguments import command_of
from ltx_runtime.errors import LtxError, reported
from ltx_runtime.spec.versions import find_version

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A release, e.g. 0.9.8-2b-distilled, or demo.")]
EnginesRoot = Annotated[Path, typer.Option(envvar="LTX_ENGINES", help="Root of the version folders.")]
_File = Path | None
Weights = Annotated[
    _File,
    typer.Option(
        help="Official single file, diffusers folder, GGUF transformer, or a folder with it (weights/VERSION)."
    ),
]
Upscaler = Annotated[_File, typer.Option(help="File or folder of the spatial upscaler, for a second pass.")]
TemporalUpscaler = Annotated[_File, typer.Option(help="File of the temporal upscaler, for twice the frame rate.")]
Vae = Annotated[_File, typer.Option(help="File or folder of the VAE, if not in the weights.")]
T5 = Annotated[_File, typer.Option(help="T5: safetensors, index of shards, folder of shards, or GGUF.")]
Precisions = Annotated[
    list[str] | None,
    typer.Option(help="fp32 (CPU), bf16 or fp16 (GPU); COMPONENT=PRECISION for one component (fp32 and bf16)."),
]
_STORES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@app.command()
@reported()
def onnx(
    version: VersionName,
    weights: Weights = None,
    vae: Vae = None,
    t5: T5 = None,
    tokenizer: Annotated[Path | None, typer.Option(help="T5's SentencePiece model.")] = None,
    upscaler: Upscaler = None,
    temporal_upscaler: TemporalUpscaler = None,
    variant: Annotated[str, typer.Option(help="Which weights of folders to take, e.g. bf16.")] = "",
    engines: EnginesRoot = Path("engines"),
    precision: Precisions = None,
    lora: Annotated[list[str] | None, typer.Option(help="FILE or FOLDER[:SCALE], merged into the transformer.")] = None,
    store: Annotated[str | None, typer.Option(help="Rewrite all weights as fp32, fp16 or bf16.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Leave the weights where they are.")] = False,
    stg: Annotated[bool, typer.Option("--stg", help="Let layers be skipped though no preset does.")] = False,
    without: Annotated[list[str] | None, typer.Option(help="Leave a component out; can be repeated.")] = None,
) -> None:
    """Trace a version's networks to ONNX graphs over its own weights."""
    release = find_version(version)
    _need("torch", "onnxscript", "onnxruntime")
    from ltx_export import build
    from ltx_export.checkpoints import lora as loras
    from ltx_export.sources.find import find_sources

    everywhere, of_component = _precisions(precision or list(build.DEFAULT_PRECISIONS))
    merged, left_out = [loras.parse_lora(one) for one in lora or ()], _optional(without or [])
    precisions = everywhere or build.DEFAULT_PRECISIONS
    options = build.ExportOptions(precisions, of_component, _stored(store), merged, link, stg, left_out)
    folder = weights or Path("weights") / release.name
    named = {"vae": vae, "t5": t5, "upscaler": upscaler, "temporal_upscaler": temporal_upscaler}
    sources = find_sources(release, folder, **named, tokenizer=tokenizer, variant=variant)
    build.export_version(release, sources, engines / release.name, options, print, _progress)
    print(f"{engines / release.name} is complete")


def _stored(store: str | None) -> str | None:
    if store is not None and store not in _STORES:
        raise LtxError(f"weights cannot be stored as {store!r}", f"use one of {', '.join(_STORES)}")
    return _STORES[store] if store else None


def _precisions(asked: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """`bf16` holds for every component, `text_encoder=bf16` for one."""
    from ltx_export.graphs.precision import PRECISIONS
    from ltx_runtime.spec.components import COMPONENT_NAMES

    everywhere: list[str] = []
    of_component: dict[str, list[str]] = {}
    for one in asked:
        component, _, precision = one.rpartition("=")
        if component and component not in COMPONENT_NAMES:
            raise LtxError(f"unknown component {component!r}", f"use one of {', '.join(COMPONENT_NAMES)}")
        if precision not in PRECISIONS:
            raise LtxError(f"unknown precision {precision!r}", f"use one of {', '.join(PRECISIONS)}")
        (of_component.setdefault(component, []) if component else everywhere).append(precision)
    return everywhere, of_component


def _optional(components: list[str]) -> tuple[str, ...]:
    """Raises LtxError if one is none that may be left out."""
    from ltx_runtime.spec.components import OPTIONAL

    for one in components:
        if one not in OPTIONAL:
            raise LtxError(f"{one!r} is no component that can be left out", f"use one of {', '.join(OPTIONAL)}")
    return tuple(components)


@app.command()
@reported("what has arrived is kept, and not fetched again")
def download(
    version: VersionName,
    folder: Annotated[Path | None, typer.Argument(help="Where to (weights/VERSION).")] = None,
    t5: Annotated[str, typer.Option(help="bf16, or a quantization such as Q8_0 or Q5_K_M.")] = "Q8_0",
    missing: Annotated[
        bool, typer.Option("--missing", help="Take what is there as it is, without asking the hub.")
    ] = False,
    temporal_upscaler: Annotated[
        bool, typer.Option("--temporal-upscaler", help="The temporal upscaler too, for twice the frame rate.")
    ] = False,
) -> None:
    """Fetch a version's checkpoint, upscaler, T5 and tokenizer from the hub; what is there is not fetched again."""
    release = find_version(version)
    _need("huggingface_hub")
    from ltx_export.sources.download import download as fetch

    target = folder or Path("weights") / release.name
    fetch(release, target, t5, print, only_missing=missing, temporal_upscaler=temporal_upscaler)
    print(f"{target} is complete")


@app.command()
@reported()
def inspect(
    path: Annotated[Path, typer.Argument(help="A file of weights, or any folder of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same for programs.")] = False,
) -> None:
    """Say what a file or folder is, which version and why, what is missing, and what memory it will need."""
    import dataclasses
    import json

    from ltx_export.inspection.inspect import inspect as look
    from ltx_export.inspection.lines import lines_of

    found = look(path)
    print(json.dumps(dataclasses.asdict(found), indent=1) if as_json else "\n".join(lines_of(found)))


@app.command()
@reported()
def check(
    folder: Annotated[Path, typer.Argument(help="A version folder, or a folder with one.")] = Path("engines"),
    version: Annotated[str | None, typer.Option(help="Which version; not needed when there is one.")] = None,
) -> None:
    """Verify a version folder where it has arrived: checksums, and every fp32 graph on what was recorded at export."""
    _need("onnxruntime")
    from ltx_export.recorded import check_folder
    from ltx_runtime.folder.manifest import find_folder, open_engines

    found = open_engines(find_folder(folder, find_version(version).name if version else None))
    print(f"{found.folder}: {len(found.manifest.files)} files are whole")
    check_folder(found, print)


@app.command()
@reported()
def random_weights(
    version: VersionName,
    folder: Annotated[Path | None, typer.Argument(help="Where to (weights/VERSION).")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    sparse: Annotated[bool, typer.Option(help="Zeros that take no disk space, to measure large versions.")] = False,
) -> None:
    """Write files of random weights in the official formats; `demo` is made of nothing else."""
    release = find_version(version)
    _need("torch")
    from ltx_export.random_weights import write_random_weights

    target = folder or Path("weights") / release.name
    write_random_weights(release, target, seed=seed, sparse=sparse)
    print(f"{target} holds random weights of {release.name}")


@reported("engines that are whole are kept, and not built again")
def _engine(asked: Asked) -> None:
    """Build TensorRT or TensorRT-RTX engines from a version's bf16 or fp16 graphs; needs no PyTorch."""
    _need("onnx", "filelock", extra="tensorrt-rtx")
    from functools import partial

    from ltx_export.engines.command import run_command

    run_command(asked, partial(print, flush=True))


app.command("engine")(command_of(_engine, Asked))


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error for what goes through many bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=total)
        yield lambda done: bars.update(task, advance=done)


def _need(*modules: str, extra: str = "export") -> None:
    """Raises LtxError if a package of an extra is not installed."""
    import importlib.util

    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise LtxError(f"{', '.join(absent)} not installed", command=f"pip install 'ltx-engines[{extra}]'")


def main() -> None:
    """The `ltx-export` command."""
    app()
