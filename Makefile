# `make demo` and `make test` do all set-up in .venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYCUDA := .venv/.pycuda
ONNXRUNTIME_GPU := .venv/.onnxruntime-gpu

.PHONY: demo test check docs gpu-check clean

demo: $(READY)
	$(BIN)/alexdeploy demo --out demo

test: $(READY) $(PYCUDA) $(ONNXRUNTIME_GPU) check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# writes `alexdeploy … --help` into docs/cli.md
docs: $(READY)
	$(BIN)/python -m tests.helpers.docs

# for a machine with an NVIDIA GPU, in a venv of its own: onnxruntime-gpu and onnxruntime exclude each other
gpu-check:
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check torch torchvision
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check --editable '.[train,gpu,report,dev]'
	.venv-gpu/bin/python -m tests.gpu.acceptance gpu-check

# torch first and alone: its wheel is large, and everything else resolves against it.
# tensorrt-stubs (types only) would pull tensorrt itself in, which needs a GPU machine; hence --no-deps.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,cpu,rtx,openvino,report,loadgen,opencv,dev]'
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

clean:
	rm -rf .venv .venv-gpu gpu-check demo dist .mypy_cache .ruff_cache .pytest_cache
