"""What runs each component of a request, and whether it serves the request's sizes: decided before anything is loaded.

Stands between a plan and the road. Looks at version folders, libraries and GPUs through `sessions.find` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.profiles import profile_for, profiles
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import Plan
from ltx_runtime.sessions import AUTO, BACKENDS, Found, FoundEngine, find
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.tile_sizes import UnservedError
from ltx_runtime.vae.tiling import Tiling

# What needs a component that may be left out, and what to do without it.
_MISSING: dict[ComponentName, tuple[str, str]] = {
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
    """What a video's engines are built for: height and width in pixels, frames, and whether one pass makes it."""

    height: int
    width: int
    num_frames: int
    single_pass: bool

    def __str__(self) -> str:
        return f"{self.width}x{self.height} with {self.num_frames} frames"

    @property
    def options(self) -> str:
        """As `ltx-export engine` takes it."""
        return f"--static {self.height}x{self.width}x{self.num_frames}{' --single-pass' if self.single_pass else ''}"


@dataclass(frozen=True)
class Chosen:
    """Which backend runs each component of a request.

    Attributes:
        options: how the request is run.
        size: of the video.
        names: the components that are run, in the order of the road.
        found: what runs each of them; shared with other requests to the same folder.
    """

    options: RunOptions
    size: Size
    names: tuple[ComponentName, ...]
    found: dict[ComponentName, Found]

    def tiling(self, grid: Grid, *, encoding: bool = False) -> Tiling:
        """How the latents of a grid are cut, so that memory and engine suffice.

        Raises:
            LtxError: the memory is too little, or the engine serves no such tiles.
        """
        name: ComponentName = "vae_encoder" if encoding else "vae_decoder"
        found = self.found[name]
        try:
            return self.options.tiling(
                grid,
                encoding=encoding,
                half=found.precision != "fp32",
                served=found.profiles,
                gpu_bytes=found.activation_bytes,
            )
        except UnservedError:
            raise self._refusal(name, {"batch": 1, **asdict(grid)}) from None

    def check_passes(self, planned: Plan, added_frames: int, *, conditioned: bool) -> None:
        """Checks the sizes of every step of every pass, and of what stands between passes.

        Args:
            planned: the request.
            added_frames: latent frames that stand beside the video's own.
            conditioned: whether anything is given, so that every token has a timestep of its own.

        Raises:
            LtxError: an engine does not serve one of them; says which command builds the one that does.
        """
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
        """Raises LtxError if the transformer takes no text so long."""
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
        """Names the command that builds an engine for these sizes: the usual one if that serves them."""
        found = self.found[name]
        assert isinstance(found, FoundEngine)  # a graph serves every size
        command = found.address.rebuild_command()  # without the options that narrowed it
        usual = profile_for(profiles(found.component), sizes) is not None
        told = ", ".join(f"{count} {axis}" for axis, count in sizes.items())
        return LtxError(
            f"the {found.backend} engine of {name} does not serve {self.size} ({told})",
            "add --backend cpu",
            command if usual else f"{command} {self.size.options}",
        )

    def replace_failed(self, engines: Engines, name: ComponentName, error: LtxError) -> Found:
        """Finds, and from now on takes, what runs a component that its backend turned out not to run.

        Raises:
            LtxError: nothing does, or the backend was asked for.
        """
        failed = self.found[name].backend
        if self.options.backend != AUTO or failed == [*BACKENDS][-1]:
            raise error
        options = self.options
        self.found[name] = replace(
            find(engines, name, after=failed), gpu_memory_bytes=options.gpu_memory_bytes, threads=options.threads
        )
        return self.found[name]

    def lines(self) -> list[str]:
        """Which backend runs each component, with the reasons; components with the same answer share a line."""
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
    """The components that a request runs, in the order of the road."""
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
) -> Chosen:
    """Finds what runs each of these components.

    Args:
        engines: the version folder.
        names: of the components, in the order of the road.
        options: how they are run.
        size: of the video, for messages.
        known: what was found before with the same options; what is found now is added.

    Raises:
        LtxError: the folder lacks one, or nothing runs it here; see `sessions.find`.
    """
    known = {} if known is None else known
    for name in names:
        if name in _MISSING and name not in engines.manifest.components:
            needed_by, advice = _MISSING[name]
            raise LtxError(f"{engines.folder} has no {name}, which {needed_by}", advice)
    for name in names:
        if name not in known:
            known[name] = replace(
                find(engines, name, options.backend), gpu_memory_bytes=options.gpu_memory_bytes, threads=options.threads
            )
    return Chosen(options, size, tuple(names), known)


def _clauses(name: str, reasons: Sequence[str]) -> Iterator[str]:
    """Reasons without the component's name."""
    for reason in reasons:
        yield reason.replace(f" of {name}", "")
