"""Chooses the backend of each component of a request, and checks its sizes, before anything is loaded.

This module stands between the plan and the road, which runs it. It examines version folders, libraries and GPUs only
through `sessions.find`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.profiles import profile_for, profiles
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import Plan
from ltx_runtime.sessions import AUTO, BACKENDS, check_loadable, find
from ltx_runtime.sessions.found import Found, FoundEngine
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.tile_sizes import (
    BYTES_PER_PIXEL,
    HALF_BYTES_PER_PIXEL,
    OPENVINO_BYTES_PER_PIXEL,
    UnservedError,
)
from ltx_runtime.vae.tiling import Tiling
from ltx_runtime.weights.lora import LoraFile
from ltx_runtime.weights.merging import check_room

# Optional component -> what needs it, and advice for a version folder without it.
_MISSING: dict[ComponentName, tuple[str, str]] = {
    "text_encoder": (
        "a prompt needs",
        "give its embeddings with --embeddings-file FILE (in Python: embeddings), or export the version again without "
        "leaving it out",
    ),
    "vae_encoder": ("images and clips need", "export the version again without leaving it out"),
    "upsampler": (
        "the second pass needs",
        "add --single-pass, or export the version again with --upscaler FILE",
    ),
    "temporal_upsampler": (
        "--temporal-upscale needs",
        "export the version again with --temporal-upscaler FILE",
    ),
}


@dataclass(frozen=True)
class Size:
    """Size that engines can be built for: height and width in pixels, frames, and whether one pass makes the video."""

    height: int
    width: int
    num_frames: int
    single_pass: bool

    def __str__(self) -> str:
        return f"{self.width}x{self.height} with {self.num_frames} frames"

    @property
    def options(self) -> str:
        """Returns the size as options of `ltx-export engine`."""
        return f"--static {self.height}x{self.width}x{self.num_frames}{' --single-pass' if self.single_pass else ''}"


@dataclass(frozen=True)
class Chosen:
    """Which backend runs each component of a request.

    Attributes:
        options: how the request is run.
        size: size of the video.
        names: the components that the request runs, in the order of use.
        found: the graph or engine that runs each component; without LoRAs shared with other requests to the same
            version folder.
        loras: LoRAs that are merged into the transformer.
    """

    options: RunOptions
    size: Size
    names: tuple[ComponentName, ...]
    found: dict[ComponentName, Found]
    loras: tuple[LoraFile, ...] = ()

    def tiling(self, grid: Grid, *, encoding: bool = False) -> Tiling:
        """Returns tiles for the latents of a grid that fit into memory and that the engine serves.

        Raises:
            LtxError: the memory is too small, or the engine serves no tiles of this grid.
        """
        name: ComponentName = "vae_encoder" if encoding else "vae_decoder"
        found = self.found[name]
        try:
            return self.options.tiling(
                grid,
                encoding=encoding,
                bytes_per_pixel=self.bytes_per_pixel(name),
                served=found.profiles,
                gpu_bytes=found.activation_bytes,
            )
        except UnservedError:
            raise self._refusal(name, {"batch": 1, **asdict(grid)}) from None

    def bytes_per_pixel(self, name: ComponentName) -> int:
        """Returns the estimated memory that the VAE's encoder or decoder takes for each pixel, see tile_sizes."""
        found = self.found[name]
        if found.backend.startswith("openvino"):
            return OPENVINO_BYTES_PER_PIXEL
        return BYTES_PER_PIXEL if found.precision == "fp32" else HALF_BYTES_PER_PIXEL

    def check_passes(self, planned: Plan, added_frames: int, *, conditioned: bool) -> None:
        """Checks what each step of the transformer needs, and the sizes of upsamplers and decoder.

        Args:
            planned: the plan of the request.
            added_frames: number of latent frames that images and clips add to the video's own.
            conditioned: whether there are images or clips, so that every token has its own timestep.

        Raises:
            LtxError: a step uses STG, but the transformer was exported without it; an engine does not serve one of the
                sizes (with the command that builds an engine for it); or the memory is too small to decode.
        """
        ports = {port.name for port in self.found["transformer"].component.inputs}
        if "skip_mask" not in ports and any(step.uses_stg for one in planned.passes for step in one.guidance):
            raise LtxError(
                "this transformer was exported without STG", "export it again with --stg, or use --stg-scale 0"
            )
        for one in planned.passes:
            tokens = one.grid.tokens + added_frames * one.grid.rows * one.grid.columns
            batches = {1 if self.options.low_memory else 1 + step.uses_cfg + step.uses_stg for step in one.guidance}
            for batch in sorted(batches):
                sizes = {"batch": batch, "tokens": tokens, "timesteps": tokens if conditioned else 1}
                self._check("transformer", sizes)
        for one in planned.passes[:-1]:
            self._check("upsampler", {"batch": 1, **asdict(one.grid)})
        last = planned.passes[-1].grid
        if planned.temporal_upscale:
            self._check("temporal_upsampler", {"batch": 1, **asdict(last)})
            last = replace(last, frames=2 * last.frames - 1)
        self.tiling(last)

    def check_text(self, text_tokens: int) -> None:
        """Raises LtxError if the transformer's engine does not serve this number of text tokens."""
        served = self.found["transformer"].profiles
        if served and profile_for(served, {"text_tokens": text_tokens}) is None:
            most = max(profile["text_tokens"].max for profile in served)
            raise LtxError(
                f"the transformer's engine takes {most} tokens of text; got {text_tokens}",
                "use a shorter text, or add --backend cpu",
            )

    def _check(self, name: ComponentName, sizes: Mapping[str, int]) -> None:
        served = self.found[name].profiles
        if served and profile_for(served, sizes) is None:
            raise self._refusal(name, sizes)

    def _refusal(self, name: ComponentName, sizes: Mapping[str, int]) -> LtxError:
        """Returns an LtxError with the command that builds an engine for these sizes; size options only if needed."""
        found = self.found[name]
        assert isinstance(found, FoundEngine)  # a graph serves every size
        command = found.address.rebuild_command()  # without the size options that the engine was built with
        usual = profile_for(profiles(found.component), sizes) is not None
        told = ", ".join(f"{count} {axis}" for axis, count in sizes.items())
        return LtxError(
            f"the {found.backend} engine of {name} does not serve {self.size} ({told})",
            "add --backend cpu",
            command if usual else f"{command} {self.size.options}",
        )

    def replace_failed(self, engines: Engines, name: ComponentName, error: LtxError) -> Found:
        """Finds the next backend for a component whose backend failed to load or run it, and uses that one from now on.

        Raises:
            LtxError: no further backend can run the component, or the backend was requested by name.
        """
        failed = self.found[name].backend
        if self.options.backend != AUTO or failed == [*BACKENDS][-1]:
            raise error
        self.found[name] = _found(engines, name, self.options, _loras_of(name, self.loras), after=failed)
        return self.found[name]

    def lines(self) -> list[str]:
        """Returns which backend runs each component and why; components with the same backend and reasons share a line.

        The list is empty if the backend was requested by name.
        """
        if self.options.backend != AUTO:
            return []
        said: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for name in self.names:
            found = self.found[name]
            said.setdefault((found.backend, tuple(_clauses(name, found.reasons))), []).append(name)
        lines = []
        for (backend, reasons), names in said.items():
            who = "everything" if len(said) == 1 else ", ".join(names)
            why = f" ({'; '.join(reasons)})" if reasons else ""
            lines.append(f"{who} on {backend}{why}")
        return lines


def needed(planned: Plan, options: RunOptions) -> list[ComponentName]:
    """Returns the components that a request runs, in the order of use."""
    request = planned.request
    names: list[tuple[ComponentName, bool]] = [
        ("text_encoder", options.embeddings is None),
        ("vae_encoder", bool(request.conditions) or request.video is not None),
        ("transformer", True),
        ("upsampler", len(planned.passes) > 1),
        ("temporal_upsampler", planned.temporal_upscale),
        ("vae_decoder", True),
    ]
    return [name for name, runs in names if runs]


def choose(
    engines: Engines,
    names: Sequence[ComponentName],
    options: RunOptions,
    size: Size,
    known: dict[ComponentName, Found] | None = None,
    loras: tuple[LoraFile, ...] = (),
) -> Chosen:
    """Finds the graph or engine that runs each of these components.

    Args:
        engines: the version folder.
        names: names of the components, in the order of use.
        options: how they are run.
        size: size of the video, for messages.
        known: what earlier calls with the same options found; without LoRAs, new findings are added to it.
        loras: LoRAs that are merged into the transformer.

    Raises:
        LtxError: the folder lacks a component, or nothing on this machine can run it, see `sessions.find`; its graph
            may not be loaded; a LoRA cannot be used, or there is no room for the merged weights.
    """
    known = {} if known is None else known
    if loras:
        known = {name: found for name, found in known.items() if name != "transformer"}
    for name in names:
        if name in _MISSING and name not in engines.manifest.components:
            needed_by, advice = _MISSING[name]
            raise LtxError(f"{engines.folder} has no {name}, which {needed_by}", advice)
    for name in names:
        if name not in known:
            known[name] = _found(engines, name, options, _loras_of(name, loras))
    if loras and (merging := known["transformer"].merging) is not None:
        check_room(merging)
    return Chosen(options, size, tuple(names), known, loras)


def _loras_of(name: ComponentName, loras: tuple[LoraFile, ...]) -> tuple[LoraFile, ...]:
    return loras if name == "transformer" else ()


def _found(
    engines: Engines, name: ComponentName, options: RunOptions, loras: tuple[LoraFile, ...] = (), after: str = ""
) -> Found:
    found = find(engines, name, options.backend, after=after, cpu_mode=options.cpu_mode, loras=loras)
    found.held.read(lambda: check_loadable(found.placed()))
    return replace(found, gpu_memory_bytes=options.gpu_memory_bytes, threads=options.threads)


def _clauses(name: str, reasons: Sequence[str]) -> Iterator[str]:
    """Yields the reasons without the component's name."""
    for reason in reasons:
        yield reason.replace(f" of {name}", "")
