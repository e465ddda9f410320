"""The TensorRT runner and the device layer, every CUDA call executed on a simulated driver (tests/simulated_cuda)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.simulated_cuda.library import build, run, why_not_pycuda


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize("binding", ["pycuda", "cuda-python"])
def test_on_the_simulated_driver(driver: Path, binding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if binding == "pycuda" and (reason := why_not_pycuda()):
        pytest.skip(reason)
    monkeypatch.setitem(os.environ, "SIMULATED_BINDING", binding)
    # what does not depend on the binding is run once
    slow = ["-k", "not bench"] if binding == "pycuda" else []
    names = ["runner", "calibrator", "commands", "timing", "faults"]
    names += ["builder", "doctor"] if binding == "cuda-python" else []
    files = [f"tests/simulated_cuda/inside_{name}.py" for name in names]
    done = run(driver, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-x", *slow, *files)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
