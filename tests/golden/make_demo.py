"""Records small pictures of what the demo makes, so that a change that ruins its videos is seen.

    PYTHONPATH=. python tests/golden/make_demo.py engines/demo

Source: this project's own runs, with the weights in `ltx_export/demo_weights` and the fp32 graphs on ONNX Runtime's CPU
backend. They prove nothing about numbers, which other golden files do; whoever changes the weights records them again,
and looks at the pictures. Tensors are called by the seed: (prompts, frames, rows, columns, 3) uint8.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from samples.demo_pictures import GOLDEN, PROMPTS, SEEDS, pictures_of  # noqa: E402

from ltx_runtime import Pipeline  # noqa: E402

if __name__ == "__main__":
    with Pipeline(sys.argv[1], backend="cpu", keep_loaded=True) as pipe:
        made = {str(seed): np.stack([pictures_of(pipe, prompt, seed) for prompt in PROMPTS]) for seed in SEEDS}
    save_file(made, GOLDEN)
