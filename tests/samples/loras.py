"""LoRA files for the transformer of a version folder, made of seeded noise."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ltx_runtime.folder.reading import open_engines
from ltx_runtime.weights.graph import weights_of


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every weight of the transformer in a version folder."""
    engines = open_engines(folder)
    graph = engines.folder / engines.component("transformer").graphs["fp32"]
    return {name: tensor.shape for name, tensor in weights_of(graph, engines.weights_folder("transformer")).items()}


def write_lora(path: Path, shapes: dict[str, tuple[int, ...]], seed: int = 0, rank: int = 3) -> Path:
    """Writes a LoRA of every linear layer, and whole differences of a norm's weight and of every bias."""
    random = np.random.default_rng(seed)

    def noise(*shape: int) -> np.ndarray:
        return (0.3 * random.standard_normal(shape)).astype(np.float32)

    tensors = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight").removesuffix(".bias")
        if name.endswith(".bias"):
            tensors[f"diffusion_model.{module}.diff_b"] = noise(*shape) / 10
        elif len(shape) == 1:
            tensors[f"diffusion_model.{module}.diff"] = noise(*shape) / 10
        elif name.endswith(".weight"):
            tensors[f"diffusion_model.{module}.lora_A.weight"] = noise(rank, shape[1])
            tensors[f"diffusion_model.{module}.lora_B.weight"] = noise(shape[0], rank) / shape[1] ** 0.5
            tensors[f"diffusion_model.{module}.alpha"] = np.array(2.0, np.float32)
    save_file(tensors, path)
    return path
