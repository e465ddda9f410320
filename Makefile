# `make demo` and `make test` do all set-up in .venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYCUDA := .venv/.pycuda
ONNXRUNTIME_GPU := .venv/.onnxruntime-gpu
SERVING := .venv/.serving

.PHONY: demo test check docs fuzz gpu-check clean

demo: $(READY)
	$(BIN)/alexdeploy demo --out demo

test: $(READY) $(PYCUDA) $(ONNXRUNTIME_GPU) $(SERVING) check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# writes `alexdeploy … --help` into docs/cli.md
docs: $(READY)
	$(BIN)/python -m tests.helpers.docs

# ten minutes of mutated inputs for everything that is read; FUZZ="jpeg --seconds 600 --seed 7" for one of it
FUZZ ?=

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ)

# For a machine with an NVIDIA GPU: a venv for each extra, since ONNX Runtime's TensorRT provider takes TensorRT 10 and
# the engines are to run on 11 too. PyCUDA is compiled (needs nvcc); the lean runtime is what
# --version-compatible puts into an engine. What is skipped is not accepted unless it is allowed.
#   driver older than CUDA 13: make gpu-check GPU_EXTRAS=gpu-cu12 GPU_CUPY=cupy-cuda12x GPU_MORE=train,report,loadgen,dev
#                              GPU_PIP='--extra-index-url https://download.pytorch.org/whl/cu126'
#   JetPack: make gpu-check GPU_EXTRAS=jetson GPU_VENV_FLAGS=--system-site-packages GPU_CUPY=cupy-cuda12x \
#            GPU_MORE=cpu,report,loadgen,dev
GPU_EXTRAS ?= gpu gpu-trt10
GPU_VENV_FLAGS ?=
GPU_PIP ?=
GPU_MORE ?= train,rtx,report,loadgen,dev
GPU_CUPY ?= cupy-cuda13x
GPU_ALLOW ?=

gpu-check:
	$(MAKE) --keep-going --no-print-directory $(addprefix gpu-check-,$(GPU_EXTRAS))

gpu-check-%:
	$(PYTHON) -m venv $(GPU_VENV_FLAGS) .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check $(GPU_PIP) torch torchvision
	.venv-$*/bin/pip install --quiet --disable-pip-version-check $(GPU_PIP) --editable '.[$*,$(GPU_MORE)]' $(GPU_CUPY)
	-.venv-$*/bin/pip install --quiet --disable-pip-version-check pycuda
	.venv-$*/bin/pip freeze | sed -n 's/^tensorrt[-_]\(cu1[0-9]\)==/tensorrt-lean-\1==/p' | \
		xargs -r .venv-$*/bin/pip install --quiet --disable-pip-version-check
	.venv-$*/bin/python -m tests.gpu.acceptance $* gpu-check/$* $(GPU_ALLOW)

# torch first and alone: its wheel is large, and everything else resolves against it.
# tensorrt-stubs (types only) would pull tensorrt itself in, which needs a GPU machine; hence --no-deps.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,cpu,rtx,openvino,report,loadgen,opencv,triton,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps tensorrt-stubs
	touch $(READY)

# compiled (about two minutes) where that is possible; without it the tests on PyCUDA are skipped
$(PYCUDA): $(READY)
	-$(BIN)/python -m tests.simulated_cuda.install_pycuda
	touch $(PYCUDA)

# 250 MB, in a folder of its own; without it the test on the real wheel is skipped
$(ONNXRUNTIME_GPU): $(READY)
	-$(BIN)/python -m tests.simulated_cuda.install_onnxruntime_gpu
	touch $(ONNXRUNTIME_GPU)

# Triton's server and Ray (1.1 GB), in an environment of its own; without it the tests on them are skipped
$(SERVING): $(READY)
	-$(BIN)/python -m tests.serving.install
	touch $(SERVING)

clean:
	rm -rf .venv .venv-*/ gpu-check demo dist .mypy_cache .ruff_cache .pytest_cache
