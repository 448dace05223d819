"""ltx-export: parse, call, print. Imports torch only in the command that traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ltx_runtime.errors import LtxError, reported
from ltx_runtime.versions import Version, find_version

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A release, e.g. 0.9.8-2b-distilled, or demo.")]


@app.command()
@reported()
def onnx(
    version: VersionName,
    weights: Annotated[
        Path | None, typer.Option(help="Folder with the checkpoint, text encoder and tokenizer [weights/VERSION].")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Official single-file checkpoint.")] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="T5 as one safetensors file.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="T5's SentencePiece model.")] = None,
    engines: Annotated[Path, typer.Option(envvar="LTX_ENGINES", help="Root of the version folders.")] = Path("engines"),
    precision: Annotated[list[str] | None, typer.Option(help="fp32 (CPU) or bf16 (GPU engines) [both].")] = None,
) -> None:
    """Trace a version's networks to ONNX graphs over its own, uncopied weights."""
    release = find_version(version)
    _need("torch", "onnxscript", "onnxruntime")
    from ltx_export import build

    folder = weights or Path("weights") / release.name
    precisions = precision or list(build.PRECISIONS)
    unknown = sorted(set(precisions) - set(build.PRECISIONS))
    if unknown:
        raise LtxError(f"unknown precision {unknown[0]!r}; use one of {', '.join(build.PRECISIONS)}")
    sources = build.Sources(
        checkpoint or folder / release.checkpoint,
        text_encoder or folder / build.TEXT_ENCODER_FILE,
        tokenizer or folder / build.TOKENIZER_FILE,
    )
    _check_sources(release, [sources.checkpoint, sources.text_encoder, sources.tokenizer])
    build.export_version(release, sources, engines / release.name, precisions, print)
    print(f"{engines / release.name} is complete")


@app.command()
@reported()
def random_weights(
    version: VersionName,
    folder: Annotated[Path | None, typer.Argument(help="Where to [weights/VERSION].")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    sparse: Annotated[bool, typer.Option(help="Zeros that take no disk space, to measure large versions.")] = False,
) -> None:
    """Write a checkpoint of random weights in the official format; `demo` is made of nothing else."""
    release = find_version(version)
    _need("torch")
    from ltx_export.random_weights import write_random_weights

    target = folder or Path("weights") / release.name
    write_random_weights(release, target, seed=seed, sparse=sparse)
    print(f"{target} holds random weights of {release.name}")


@app.command()
@reported()
def engine(
    version: VersionName,
    engines: Annotated[Path, typer.Option(envvar="LTX_ENGINES", help="Root of the version folders.")] = Path("engines"),
    component: Annotated[list[str] | None, typer.Option(help="Only this one; can be repeated [all].")] = None,
    force: Annotated[bool, typer.Option(help="Build even where a fitting engine exists.")] = False,
    check: Annotated[bool, typer.Option(help="Build nothing; fail if an engine is missing or does not fit.")] = False,
) -> None:
    """Build TensorRT-RTX engines from a version's bf16 graphs; needs neither PyTorch nor a GPU."""
    import time

    from ltx_export.engine_from_onnx import BUILDER, build_engine, builder_library
    from ltx_runtime.components import COMPONENT_NAMES
    from ltx_runtime.manifest import find_folder, open_engines
    from ltx_runtime.sidecar import check_engine, engine_path

    found = open_engines(find_folder(engines, find_version(version).name))
    library_version = builder_library().__version__
    unknown = sorted(set(component or ()) - set(COMPONENT_NAMES))
    if unknown:
        raise LtxError(f"unknown component {unknown[0]!r}; use one of {', '.join(COMPONENT_NAMES)}")
    for name in component or COMPONENT_NAMES:
        path = engine_path(found, name, BUILDER, library_version)
        if not force:
            try:
                check_engine(found, name, path, BUILDER, library_version)
                print(f"{path} fits")
                continue
            except LtxError:
                if check:
                    raise
        started = time.perf_counter()
        build_engine(found, name)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s")


def _check_sources(release: Version, paths: list[Path]) -> None:
    folders = [str(path) for path in paths if path.is_dir()]
    if folders:
        raise LtxError(f"{folders[0]} is a folder - give the file in it")
    missing = [str(path) for path in paths if not path.is_file()]
    if not missing:
        return
    advice = (
        f"get {release.checkpoint} from {release.repository}, T5-v1.1-XXL's encoder as one safetensors file, and its "
        f"tokenizer/spiece.model from {release.text_repository}"
        if release.repository
        else f"run: ltx-export random-weights {release.name}"
    )
    raise LtxError(f"{', '.join(missing)} not found - {advice}")


def _need(*modules: str) -> None:
    """Raises LtxError if a package of the `export` extra is not installed."""
    import importlib.util

    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise LtxError(f"{', '.join(absent)} not installed - run: pip install 'ltx-engines[export]'")


def main() -> None:
    """The `ltx-export` command."""
    app()
