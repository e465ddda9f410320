"""For the ``inside_*`` files, which run in a process of their own on the simulated driver (see ``library.run``)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from alexdeploy import artifacts
from tests.helpers.graphs import conv_lrn_gemm
from tests.simulated_cuda import engine_double

BINDING = os.environ.get("SIMULATED_BINDING", "")  # "pycuda", "pycuda alone" or "cuda-python"
for name in {"pycuda": (), "pycuda alone": ("cuda",), "cuda-python": ("pycuda",)}.get(BINDING, ()):
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed

MODEL = conv_lrn_gemm().SerializeToString()
PROFILE = (1, 2, 4)


@pytest.fixture
def sim() -> Iterator[ctypes.CDLL]:
    """The simulator, which afterwards holds nothing and has seen no misuse."""
    library = engine_double.simulator_library()
    violations, depth = library.sim_violations(), library.sim_depth()
    yield library
    library.sim_fail_at(-1)
    assert library.sim_live() == 0
    assert library.sim_violations() == violations
    assert library.sim_depth() == depth
    assert engine_double.problems() == []


@pytest.fixture(scope="session", autouse=True)
def _tensorrt() -> None:
    engine_double.install("tensorrt", "10.16.1.11")
    engine_double.install("tensorrt_rtx", "1.7.1.116")


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def builder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(tmp_path: Path, builder: str) -> Path:
    return write_engine(tmp_path / "model.engine", builder)


def write_engine(path: Path, builder: str = "tensorrt", profile: tuple[int, int, int] = PROFILE) -> Path:
    """An engine of the double with its sidecar."""
    artifacts.write_bytes(path, engine_double.make_plan(MODEL, profile))
    artifacts.write_sidecar(path, "engine", details={"builder": builder})
    return path


def expected(batch: np.ndarray, most: int = PROFILE[2]) -> np.ndarray:
    """What ONNX Runtime gives for the same pieces."""
    session = engine_double.open_session(MODEL)
    pieces = [session.run(None, {"input": batch[i : i + most]})[0] for i in range(0, len(batch), most)]
    return np.concatenate(pieces)
