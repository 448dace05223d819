import numpy as np, pytest
from pathlib import Path
from ltx_runtime.versions import VERSIONS
from ltx_runtime.tensors import write_tensors
DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]
PROMPT = ("--prompt", "a cat", "--seed", "3")
SMALL = (*PROMPT, "--height", "64", "--width", "96", "--num-frames", "9")
CASES = {
 "odd": (*PROMPT, "--height", 71, "--width", 91, "--num-frames", 9, "--pad", "--output", "a.mp4"),
 "oddwebm": (*PROMPT, "--height", 71, "--width", 91, "--num-frames", 9, "--pad", "--output", "a.webm"),
 "oddgif": (*PROMPT, "--height", 71, "--width", 91, "--num-frames", 9, "--pad", "--output", "a.gif"),
 "tiny": (*PROMPT, "--height", 1, "--width", 1, "--num-frames", 1, "--pad", "--single-pass", "--output", "a.mp4"),
 "tinypng": (*PROMPT, "--height", 1, "--width", 1, "--num-frames", 1, "--pad", "--single-pass", "--output", "a.png"),
 "surrogate prompt": (*SMALL, "--prompt", "a \udcff cat", "--output", "a.mp4"),
 "nul prompt": (*SMALL, "--prompt", "a \0 cat", "--output", "a.mp4"),
 "surrogate output": (*SMALL, "--output", "a\udcff.mp4"),
 "surrogate missing": (*SMALL, "--image", "a\udcff.png", "--output", "a.mp4"),
 "newline missing": (*SMALL, "--image", "a\nb.png", "--output", "a.mp4"),
 "nul output": (*SMALL, "--output", "a\0.mp4"),
 "nul image": (*SMALL, "--image", "a\0.png"),
 "nul noise": (*SMALL, "--noise-file", "a\0.safetensors"),
 "nul engines": (*SMALL, "--engines", "a\0"),
 "engines is file": (*SMALL, "--engines", "some.txt"),
 "gif60": (*SMALL, "--temporal-upscale", "--fps", 30, "--output", "a.gif"),
 "hugefps": (*SMALL, "--fps", 1e300, "--output", "a.mp4"),
 "hugefps png": (*SMALL, "--fps", 1e300, "--output", "a.png"),
 "tinyfps": (*SMALL, "--fps", 1e-300, "--output", "a.png"),
 "tinyfps2": (*SMALL, "--fps", 1e-38, "--output", "a.png"),
 "huge guidance": (*SMALL, "--guidance-scale", 1e38, "--output", "a.mp4"),
 "huge guidance2": (*SMALL, "--guidance-scale", 1e300, "--output", "a.mp4"),
 "huge stg": (*SMALL, "--stg-scale", 1e300, "--single-pass", "--output", "a.mp4"),
 "huge width": (*PROMPT, "--height", 64, "--width", 32*10**7, "--num-frames", 9, "--output", "a.mp4"),
 "huge width2": (*PROMPT, "--height", 64, "--width", 32*10**18, "--num-frames", 9, "--output", "a.mp4"),
 "huge width plan": (*PROMPT, "--height", 64, "--width", 32*10**7, "--num-frames", 9, "--plan"),
 "huge frames": (*PROMPT, "--height", 64, "--width", 64, "--num-frames", 8*10**18+1, "--output", "a.mp4"),
 "skip -1": (*SMALL, "--skip-final-steps", -1),
 "skip blocks -1": (*SMALL, "--skip-blocks", "-1"),
 "skip blocks empty": (*SMALL, "--skip-blocks", ""),
 "skip blocks huge": (*SMALL, "--skip-blocks", "9"*5000),
 "timesteps huge": (*SMALL, "--timesteps", "9"*5000),
 "timesteps many": (*SMALL, "--timesteps", ",".join(str(1-i/2000) for i in range(1999)), "--plan"),
 "neg crop": (*SMALL, "--output", ""),
 "output dot": (*SMALL, "--output", "."),
 "output slash": (*SMALL, "--output", "/"),
 "output is png of engines": (*SMALL, "--output", "engines.png"),
 "save into engines": (*SMALL, "--save-noise", ""),
 "embeddings ''": (*SMALL, "--embeddings-file", ""),
 "latents ''": (*SMALL, "--latents", ""),
 "video dir": (*SMALL, "--video", "."),
 "cond dir": (*SMALL, "--condition", ".@0"),
 "image name empty": (*SMALL, "--image", ""),
 "version empty": (*SMALL, "--version", ""),
 "clip strength 0": (*SMALL, "--video", "clip.safetensors", "--strength", 0, "--single-pass", "--output", "a.mp4"),
 "clip initial 0": (*SMALL, "--video", "clip.safetensors", "--skip-initial-steps", 0, "--single-pass", "--output", "a.mp4"),
 "clip initial 7": (*SMALL, "--video", "clip.safetensors", "--skip-initial-steps", 7, "--single-pass", "--output", "a.mp4"),
 "clip initial 8": (*SMALL, "--video", "clip.safetensors", "--skip-initial-steps", 8, "--single-pass", "--output", "a.mp4"),
 "clip initial -1": (*SMALL, "--video", "clip.safetensors", "--skip-initial-steps", -1, "--single-pass", "--output", "a.mp4"),
}
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("version", ["demo", "0.9.5"])
def test_try(run, engines, name, version, tmp_path):
    engines(VERSIONS[version])
    Path("some.txt").write_text("x")
    write_tensors(Path("clip.safetensors"), {"media": np.zeros((1, 3, 9, 64, 96), np.float32)})
    import signal
    try:
        code, out, err = run(*CASES[name])
    except BaseException as e:
        print(f"@@ {version} {name}: TRACEBACK {type(e).__name__}: {str(e)[:200]}", flush=True); raise
    last = (err.splitlines() or [""])[-1]
    left = [p.name for p in tmp_path.iterdir() if p.name not in ("engines", "some.txt", "clip.safetensors")]
    print(f"@@ {version} {name}: {code} {last[:230]!r} {out[:60]!r} left {left}", flush=True)
