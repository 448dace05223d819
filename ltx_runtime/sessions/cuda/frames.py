"""Frames of a video that a decoder has left on the GPU: as bytes they are a quarter of what would be copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

VIDEO = "video"  # the output of a decoder from which they are made
FRAMES = ("frames", "mean")
_GRAPH = Path(__file__).with_name("frames.onnx")


class FramesOfVideo:
    """A session of ONNX Runtime that turns a video on a device into frames.

    Beside the video this takes as much memory again, and half as much for bytes in both orders of their axes.
    """

    def __init__(self, library: Any, provider: tuple[str, dict[str, str]]) -> None:
        options = library.SessionOptions()
        options.log_severity_level = 4
        self._session: Any = library.InferenceSession(_GRAPH, options, providers=[provider], enable_fallback=0)

    def run(self, video: Any, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns `frames` (B, F, H, W, 3) uint8 RGB and `mean` (B,) float32 of a video, whichever are wanted.

        Args:
            video: an OrtValue (B, 3, F, H, W) float32.
            wanted: names of outputs.
        """
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(VIDEO, video)
        for name in wanted:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return dict(zip(wanted, binding.copy_outputs_to_cpu(), strict=True))
