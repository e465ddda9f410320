"""Small files to publish: a graph, and engines of bytes that no TensorRT made, with sidecars as one writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import helper

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.engine.record import EngineRecord, write_engine
from alexdeploy.specs import Precision, Profile, TensorSpec
from tests.helpers.graphs import conv_lrn_gemm

CONTRACT = Contract(
    color="rgb", resize=9, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog")
)
RECORD = EngineRecord(
    builder="tensorrt",
    version="10.16.1.11",
    shapes={"pixels": Profile.parse("1:8:64").with_sizes((3, 8, 8))},
    input=TensorSpec("pixels", (-1, 3, 8, 8), "float16"),
    output=TensorSpec("scores", (-1, 4), "float16"),
    precision=Precision.FP16,
    classes=4,
)


def save(path: Path, proto: onnx.ModelProto | None = None, contract: Contract = CONTRACT) -> Path:
    proto = proto or conv_lrn_gemm()
    helper.set_model_props(proto, {METADATA_KEY: contract.to_json()})
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "net.onnx")


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Path]:
    """``engine(builder="tensorrt-rtx", …)`` → an engine whose sidecar says so."""

    def write(**changed: Any) -> Path:
        record = msgspec.structs.replace(RECORD, **changed)
        assert record.input is not None
        contract = msgspec.structs.replace(CONTRACT, input_type=record.input.dtype)
        record = msgspec.structs.replace(record, contract=contract, contract_sha256=contract.fingerprint)
        write_engine(tmp_path / "net.engine", b"a plan", record, parents=(), options={})
        return tmp_path / "net.engine"

    return write
