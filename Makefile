# One target = one command you could have typed. VERSION names a release or demo.
VERSION ?= demo
# A file or folder of weights, a T5 (a file, a folder, or what to download: bf16, Q8_0, Q5_K_M, ...), and a spatial
# upscaler that is not beside the weights. BUILDER is tensorrt, tensorrt_rtx, none, or auto: what this machine can do.
WEIGHTS ?=
T5 ?=
UPSCALER ?=
BUILDER ?= auto
VENV ?= .venv
# Which versions of packages `make setup` installs: those in this file, or the newest with LOCKED= (nothing).
LOCKED ?= dependencies/locked.txt
# On Windows, GNU make needs a POSIX shell, such as that of Git for Windows.
ifeq ($(OS),Windows_NT)
PYTHON ?= python
PROGRAMS := Scripts
else
PYTHON ?= python3
PROGRAMS := bin
endif
BIN := $(VENV)/$(PROGRAMS)

EXTRAS := cpu openvino export tensorrt-rtx serve
EMPTY :=
COMMA := ,
INSTALL := -m pip install --quiet --no-compile

.PHONY: setup engines demo demo-engines train-demo gallery follows check fix test test-slow runtime test-runtime test-bundle test-page test-ray test-cuda launches lock audit bench \
	bench-whole crash fuzz fuzz-api soak clean

setup: $(VENV)/.ready

# What the file locks is checked by its checksums. It has all but PyTorch, which comes second.
$(VENV)/.ready: pyproject.toml $(LOCKED)
	@$(PYTHON) -c "import sys; sys.version_info < (3, 11) and sys.exit('development needs Python 3.11, as diffusers does')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) $(if $(LOCKED),--requirement $(LOCKED),--upgrade "pip>=25.1" "hatchling>=1.25" editables)
	$(BIN)/python $(INSTALL) --no-build-isolation --editable ".[$(subst $(EMPTY) $(EMPTY),$(COMMA),$(EXTRAS))]" --group dev
	touch $@

# Checkpoint -> engines/VERSION. What weights/VERSION/ lacks is downloaded; the demo's weights are in ltx_export.
# Then engines: for TensorRT where it is installed and there is a GPU, else for TensorRT-RTX, which needs none to build.
T5_PATH := $(if $(findstring /,$(T5))$(findstring .,$(T5))$(wildcard $(T5)),$(T5))
engines: setup
ifeq ($(WEIGHTS)$(filter demo,$(VERSION)),)
	$(BIN)/ltx-export download $(VERSION) --missing $(if $(T5_PATH),--t5 none,$(if $(T5),--t5 $(T5)))
endif
	$(BIN)/ltx-export onnx $(VERSION) $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(T5_PATH)$(and $(WEIGHTS),$(T5)),--t5 "$(T5)") \
		$(if $(UPSCALER),--upscaler "$(UPSCALER)")
	$(if $(filter none,$(BUILDER)),,$(BIN)/ltx-export engine $(VERSION) --builder $(BUILDER) --if-possible)

demo:
	$(MAKE) engines VERSION=demo
	$(BIN)/ltx-run --version demo --prompt "A red fox runs through deep snow at dawn" --seed 7 --output demo.mp4 \
		--overwrite

# Every engine of the demo for all sizes: in both half precisions, with the weights inside and outside. Needs no GPU.
demo-engines: setup
	$(BIN)/ltx-export onnx demo --engines build --precision bf16 --precision fp16
	for precision in bf16 fp16; do for weights in embedded inputs; do \
		$(BIN)/ltx-export engine demo --engines build --builder tensorrt_rtx \
			--precision $$precision --weights $$weights || exit; \
	done; done

# The demo's weights again, in build/demo: hours on two cores. A stage whose result is there is not done again. SHARE is
# how much of all steps and clips is done.
SHARE ?= 1
train-demo: setup
	$(BIN)/python -m training --share $(SHARE)

# A sheet of what the demo does with text, images, clips and seeds, and how often it shows what prompts say.
gallery: demo
	$(BIN)/python -m benchmarks.demo.gallery

follows: demo
	$(BIN)/python -m benchmarks.demo.follows

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.13

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every file of tests on one worker, which exports what they share once. Workers share the cores, and wait at times.
WORKERS ?= 3
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Further sizes, releases and encodings of what `make test` shows in short: engines for all sizes of a network among them.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow and not index and not ray"

# The page of ltx-serve in Chromium, which the system must have: apt install chromium, or CHROMIUM=<its path>.
test-page: demo
	$(BIN)/python -m pip install --quiet --group page
	$(BIN)/python -m pytest tests/page

# The runtime as it is on a machine without PyTorch, with the oldest packages that it may have, and the oldest Python
# where this machine has that, be it one of pyenv's.
OLDEST_PYTHON ?= $(shell for one in python3.10 "$$(pyenv prefix 3.10 2>/dev/null)/bin/python" $(PYTHON); do \
	"$$one" -c "" 2>/dev/null && echo "$$one" && break; done)
runtime: $(VENV)-runtime/.ready

$(VENV)-runtime/.ready: pyproject.toml dependencies/oldest.txt $(wildcard ltx_*/*.py ltx_*/*/*.py ltx_*/*/*/*.py)
	$(OLDEST_PYTHON) -m venv $(VENV)-runtime
	$(VENV)-runtime/$(PROGRAMS)/python $(INSTALL) --constraint dependencies/oldest.txt --force-reinstall \
		".[cpu]" pytest pytest-xdist hypothesis filelock
	! $(VENV)-runtime/$(PROGRAMS)/python -c "import torch" 2>/dev/null
	touch $@

engines/demo/manifest.json:
	$(MAKE) demo

# In an environment and a place of its own. What is killed at many moments is not killed again: `make test` does that.
test-runtime: engines/demo/manifest.json runtime
	OMP_NUM_THREADS=1 $(VENV)-runtime/$(PROGRAMS)/python -m pytest -n $(WORKERS) --dist loadfile \
		-m "not kills and not index and not ray and not slow" tests/runtime tests/test_walls.py
	rm -rf $(VENV)-runtime/moved && cp -r engines/demo $(VENV)-runtime/moved
	cd $(VENV)-runtime && $(PROGRAMS)/ltx-run --engines moved --prompt "A red fox" --output fox.png && rm -r fox

# Writes the lock file anew, with the newest versions. PyTorch is not in it, nor its libraries for GPUs: which of its
# builds is installed depends on the machine, and each has checksums of its own.
lock:
	$(PYTHON) -m venv $(VENV)-tools
	$(VENV)-tools/$(PROGRAMS)/python -m pip install --quiet uv
	$(VENV)-tools/$(PROGRAMS)/uv pip compile --quiet --upgrade --no-python-downloads --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --no-emit-package torch --excludes dependencies/not_locked.txt \
		$(addprefix --extra ,$(EXTRAS)) --group dev --group installing pyproject.toml --output-file dependencies/locked.txt

# Asks the package index for known vulnerabilities of what is locked.
audit:
	$(PYTHON) -m venv $(VENV)-tools
	$(VENV)-tools/$(PROGRAMS)/python -m pip install --quiet pip-audit
	$(VENV)-tools/$(PROGRAMS)/python dependencies/audit.py dependencies/locked.txt

# Bundles with wheels from the package index, one of which is installed in an empty network namespace.
test-bundle: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m index

# A cluster of three nodes on this machine, some of which are killed.
test-ray: demo
	$(BIN)/python -m pip install --quiet --editable ".[ray,serve]" openai
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests/cluster

# ONNX Runtime's CUDA provider on stand-ins for CUDA's libraries: x86-64 Linux with g++, and 260 MB of packages; no GPU.
CUDA_PACKAGES = build/cuda/packages
$(CUDA_PACKAGES)/.ready: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --no-deps --target $(CUDA_PACKAGES) \
		onnxruntime-gpu nvidia-cuda-runtime nvidia-cuda-crt
	touch $@

ON_STAND_INS = LD_LIBRARY_PATH=$(CURDIR)/build/cuda/libraries PYTHONPATH=$(CUDA_PACKAGES) OMP_NUM_THREADS=1 $(BIN)/python
build/cuda/libraries/.ready: $(CUDA_PACKAGES)/.ready $(wildcard tests/stand_ins/cuda_libraries/*)
	$(BIN)/python tests/stand_ins/cuda_libraries/build.py $(CUDA_PACKAGES) build/cuda/libraries
	touch $@

test-cuda: setup build/cuda/libraries/.ready
	$(ON_STAND_INS) -m pytest tests/cuda_provider

launches: setup build/cuda/libraries/.ready
	$(ON_STAND_INS) -m benchmarks.launches

# A step and a decode on this CPU against diffusers, with random weights made here: 12 GB of disk, and 15 minutes on two
# cores. bench-whole does the same with whole programs, T5-XXL included: 28 GB, and half an hour.
bench: setup
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python benchmarks/cpu.py --plot build/bench/cpu.png

bench-whole: setup
	$(BIN)/python benchmarks/cpu_whole.py

# Every reader of files that strangers may have made, guided by coverage: nine hours for all 55. READERS names some, and
# SECONDS is the time of each.
SECONDS ?= 600
READERS ?=
fuzz: setup
	$(BIN)/python -m pip install --quiet --group fuzz
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS) $(READERS)

# Both programs, killed at every one of their dealings with files: about 1,400 times, which takes more than an hour on two cores.
crash: setup
	$(BIN)/python tests/crash.py

# schemathesis against ltx-serve on the demo, for ten minutes.
fuzz-api: demo
	$(BIN)/python -m pip install --quiet --group fuzz
	$(BIN)/python benchmarks/fuzz_api.py

# Equal bytes on every backend, 500 videos, 2,000 cancels, runs on a folder that is replaced, and a server with 300 jobs.
# Takes an hour or two on two cores that have nothing else to do. Linux only.
soak: demo
	$(BIN)/ltx-export onnx demo --engines build/soak
	$(BIN)/ltx-export calibrate demo --engines build/soak
	$(BIN)/python tests/soak/equal_bytes.py build/soak/demo
	$(BIN)/python tests/soak/thread_counts.py
	$(BIN)/python tests/soak/many_videos.py engines/demo
	$(BIN)/python tests/soak/cancels.py engines/demo
	$(BIN)/python tests/soak/replaced.py
	$(BIN)/python tests/soak/server.py engines/demo

clean:
	rm -rf $(VENV) $(VENV)-runtime $(VENV)-tools build dist engines/demo
