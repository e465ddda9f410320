"""For the ``inside_*`` files, which run in a process of their own on the simulated driver (see ``library.run``)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.engine import record
from alexdeploy.engine.record import EngineRecord
from alexdeploy.engine.versions import this_platform
from alexdeploy.machine import current_gpu
from alexdeploy.specs import BuilderName, Precision, Profile
from tests.helpers.graphs import Array, conv_lrn_gemm
from tests.simulated_cuda import builder_double, engine_double

BINDING = os.environ.get("SIMULATED_BINDING", "")  # "pycuda" or "cuda-python"
for name in {"cuda-python": ("pycuda",)}.get(BINDING, ()):
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed

MODEL = conv_lrn_gemm().SerializeToString()
PROFILE = (1, 2, 4)
CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog"))
VERSIONS: dict[BuilderName, str] = {"tensorrt": "10.16.1.11", "tensorrt-rtx": "1.7.1.116"}


@pytest.fixture(autouse=True)
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
    for name, version in VERSIONS.items():
        engine_double.install(name.replace("-", "_"), version)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def builder(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def engine(tmp_path: Path, builder: BuilderName) -> Path:
    return write_engine(tmp_path / "model.engine", builder)


@pytest.fixture
def tensorrt_builder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The double of TensorRT builds, too."""
    builder_double.install(sys.modules["tensorrt"])
    yield
    for kind in builder_double.CLASSES:
        monkeypatch.delattr(sys.modules["tensorrt"], kind.__name__)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A float model and ten pictures, with the working directory there."""
    from PIL import Image

    model = conv_lrn_gemm()
    helper.set_model_props(model, {METADATA_KEY: CONTRACT.to_json()})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for index in range(10):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        target = tmp_path / "pictures" / CONTRACT.labels[index % 4] / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_engine(
    path: Path,
    builder: BuilderName = "tensorrt",
    profile: tuple[int, int, int] = PROFILE,
    plan: bytes | None = None,
    ordinal: int = 0,
) -> Path:
    """An engine of the double with its sidecar, as if built on a device of this machine."""
    details = EngineRecord(
        builder=builder,
        version=VERSIONS[builder],
        platform=this_platform(),
        gpu=current_gpu(ordinal),
        shapes={"input": Profile.parse(":".join(map(str, profile))).with_sizes((3, 8, 8))},
        precision=Precision.FP32,
        classes=4,
        contract=CONTRACT,
        contract_sha256=CONTRACT.fingerprint,
    )
    plan = engine_double.make_plan(MODEL, profile) if plan is None else plan
    record.write_engine(path, plan, details, parents=(), options={})
    return path


def expected(batch: Array, most: int = PROFILE[2]) -> Array:
    """What ONNX Runtime gives for the same pieces."""
    session = engine_double.open_session(MODEL)
    pieces = [session.run(None, {"input": batch[i : i + most]})[0] for i in range(0, len(batch), most)]
    return np.concatenate(pieces)
