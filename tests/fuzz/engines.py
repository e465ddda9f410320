"""Engines and their sidecars, damaged or forged: what is decided of them before a TensorRT runtime sees the plan.

No plan is deserialised: an engine is executable code, so one whose sidecar was forged is as good as trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.engine.kernels import Kernel
from alexdeploy.engine.plan import precision_verdict
from alexdeploy.engine.record import EngineRecord, check_runs_here, read_engine, write_engine
from alexdeploy.engine.versions import takes_platform
from alexdeploy.errors import UnavailableError
from alexdeploy.inspect import inspect_artifact
from alexdeploy.machine import Gpu
from alexdeploy.runners.artifact import artifact_of
from alexdeploy.specs import Precision, Profile, TensorSpec
from tests.fuzz.mutate import json_value
from tests.fuzz.target import Target

_FILE = "model.engine"
_PLAN = b"vtrt" + bytes(range(256)) * 4
_GPU = Gpu("NVIDIA L4", "8.9", "13.0")
_CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("a", "b"))
_RECORD = EngineRecord(
    builder="tensorrt-rtx",
    version="1.7.1.116",
    size_bytes=len(_PLAN),
    rebuild="alexdeploy build-engine model.onnx -o model.engine",
    platform="Linux x86_64",
    gpu=_GPU,
    shapes={"image": Profile((1, 3, 8, 8), (8, 3, 8, 8), (64, 3, 8, 8))},
    input=TensorSpec("image", ("batch", 3, 8, 8), "float32"),
    output=TensorSpec("scores", ("batch", 2), "float32"),
    precision=Precision.INT8,
    classes=2,
    contract=_CONTRACT,
    contract_sha256=_CONTRACT.fingerprint,
    precisions={"INT8": 1},
    layer_precisions={"conv1": "INT8"},
    quantized={"conv1": "INT8", "fc": "INT8"},
    float_layers=("fc",),
    kernels=(Kernel("conv1 + relu1", "conv", "INT8", ("conv1", "relu1"), weighted=True),),
)


def _plans() -> Sequence[bytes]:
    return [_PLAN, b"ftrt" + _PLAN[4:]]


@cache
def _sidecars() -> Sequence[bytes]:
    found = []
    with TemporaryDirectory() as folder:
        for builder, version in (("tensorrt-rtx", "1.7.1.116"), ("tensorrt", "10.16.1.11")):
            compatible = msgspec.structs.replace(_RECORD.compatibility, newer_versions=builder == "tensorrt")
            record = msgspec.structs.replace(_RECORD, builder=builder, version=version, compatibility=compatible)
            path = Path(folder, _FILE)
            write_engine(path, _PLAN, record, parents=(), options={})
            found.append(files.sidecar_path(path).read_bytes())
    return found


def _forged(path: Path) -> None:
    """A plan that was changed, with a sidecar of its hash."""
    side = files.sidecar_path(path)
    sidecar = json.loads(_sidecars()[0])
    side.write_text(json.dumps(sidecar | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    try:
        _decided(path)
    finally:
        side.unlink()
    read_engine(path, trust=True)
    read_engine(path.read_bytes(), trust=True)


def _described(path: Path) -> None:
    """A sidecar that was changed, beside the plan that it was written for."""
    _decided(path.with_name(_FILE))


def _decided(engine: Path) -> None:
    artifact = artifact_of(engine)
    inspect_artifact(engine)
    file = read_engine(engine)
    record, compatible = file.record, file.record.compatibility
    for installed in ("1.7.1.116", "10.16.1.11", "11.0"):
        compatible.takes_version(record.builder, record.version, installed)
    compatible.takes_gpu(record.builder, record.gpu, _GPU)
    compatible.describe_gpus(record.builder, record.gpu)
    takes_platform(record.builder, record.platform)
    precision_verdict(record)
    for read in (lambda: artifact.contract, lambda: artifact.precision, lambda: artifact.runtimes):
        read()
    with suppress(UnavailableError):  # the machine has no GPU
        check_runs_here(file)


def _plan_beside(folder: Path) -> None:
    (folder / _FILE).write_bytes(_PLAN)


TARGETS = (
    Target("engine", _plans, _forged, _FILE),
    Target("engine-record", _sidecars, _described, f"{_FILE}.json", (json_value,), beside=_plan_beside),
)
