"""Builds with TensorRT and its verdict on the layers; run by tests/unit/runners/test_tensorrt.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.cli import main
from alexdeploy.contract import METADATA_KEY
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from tests.helpers.graphs import conv_lrn_gemm, make_model
from tests.simulated_cuda.conftest import CONTRACT
from tests.simulated_cuda.engine_double import EngineInspector, ICudaEngine, Runtime
from tests.unit.engine.test_kernels import read

pytestmark = pytest.mark.usefixtures("tensorrt_builder")
VERSIONS = {"tensorrt-10": "10.16.1.11", "tensorrt-11": "11.4.0.106"}
AMAX = {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)}


@pytest.fixture(params=VERSIONS)
def report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sample of that version, which the next engines tell: conv1 and fc2 are INT8."""
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", VERSIONS[request.param])
    monkeypatch.setattr(EngineInspector, "_report", read(request.param))
    return read(request.param)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """INT8 by Q/DQ."""
    return write(insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX), tmp_path)


def write(model: ir.Model, folder: Path) -> Path:
    model.metadata_props[METADATA_KEY] = CONTRACT.to_json()
    (folder / "model.onnx").write_bytes(model_bytes(model))
    return folder / "model.onnx"


def build(model: Path, *options: str) -> int:
    line = ["build-engine", str(model), "--builder", "tensorrt", "-o", str(model.with_suffix(".engine")), *options]
    try:
        main(line)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_verdict_is_in_the_sidecar_and_inspect_shows_it(
    model: Path, report: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(model, "--strict", "--json") == 0, capsys.readouterr().err
    built = json.loads(capsys.readouterr().out)
    assert built["layer_precisions"] == {"conv1": "INT8", "fc2": "INT8"}
    assert built["float_layers"] == []
    with pytest.raises(SystemExit):
        main(["inspect", str(model.with_suffix(".engine")), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in shown["layers"]] == [layer["Name"] for layer in json.loads(report)["Layers"]]
    assert shown["precisions"] == {"INT8": 2, "HALF": 0, "FLOAT": 0}
    assert any("i8i32" in layer["tactic"] for layer in shown["layers"])


def test_int8_that_became_float_is_told_and_fails_when_strict(
    model: Path, report: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EngineInspector, "_report", without_int8(report, "conv1"))
    assert build(model, "--strict") == 5
    assert "1 of 2 layers in INT8; quantized in the graph but built in float: conv1" in capsys.readouterr().err
    assert not model.with_suffix(".engine").exists()
    assert build(model) == 0
    assert "built in float: conv1" in capsys.readouterr().err


@pytest.mark.usefixtures("report")
def test_fp16_that_became_float_is_told_and_fails_when_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(to_fp16(ir.from_proto(conv_lrn_gemm())), tmp_path)
    layers = [layer(node, kind) for node, kind in (("conv1", "Half"), ("fc2", "Float"))]
    monkeypatch.setattr(EngineInspector, "_report", json.dumps({"Layers": layers}))
    assert build(model, "--strict") == 5
    assert "of 16 bits in the graph but built in another type: fc2" in capsys.readouterr().err
    monkeypatch.setattr(EngineInspector, "_report", json.dumps({"Layers": [layers[0], layer("fc2", "Half")]}))
    assert build(model, "--strict", "--json") == 0
    assert json.loads(capsys.readouterr().out)["precisions"] == {"INT8": 0, "HALF": 2, "FLOAT": 0}


@pytest.mark.parametrize(
    ("owner", "name", "value", "words"),
    [
        (EngineInspector, "_report", "no JSON", "tells nothing of its kernels (JSONDecodeError: "),
        *[
            (EngineInspector, "_report", f'{{"Layers": [{form}]}}', "tells nothing of its kernels (")
            for form in ('{"Inputs": ["x"]}', '{"Weights": [{}]}', '{"Constants": ["k"]}')
        ],
        (ICudaEngine, "create_engine_inspector", lambda engine: None, "the engine cannot be inspected"),
        (Runtime, "deserialize_cuda_engine", lambda runtime, plan: None, "the engine cannot be loaded"),
    ],
)
@pytest.mark.usefixtures("report")
def test_what_cannot_be_known_is_said_and_fails_when_strict(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: type,
    name: str,
    value: object,
    words: str,
) -> None:
    monkeypatch.setattr(owner, name, value)
    assert build(model, "--strict") == 5
    assert words in capsys.readouterr().err
    assert build(model, "--json") == 0
    said = capsys.readouterr()
    assert words in said.err
    assert words in json.loads(said.out)["kernels_unknown"]
    with pytest.raises(SystemExit):
        main(["inspect", str(model.with_suffix(".engine"))])
    assert f"its kernels are not known: {json.loads(said.out)['kernels_unknown']}" in capsys.readouterr().err


def test_strict_is_not_for_types_that_tensorrt_chooses(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(model, "--strict", "--implicit", "--int8", "--data", "digits") == 2
    assert "--strict does not go with --implicit" in capsys.readouterr().err


def layer(node: str, kind: str) -> dict[str, Any]:
    return {"Name": node, "LayerType": "CaskConvolution", "Inputs": [], "Weights": {"Type": kind, "Count": 9}}


def without_int8(report: str, node: str) -> str:
    """The report of an engine whose layer multiplies in float."""
    told = json.loads(report)
    told["Layers"] = [
        layer(node, "Float") if f"[ONNX Layer: {node}]" in entry["Metadata"] else entry for entry in told["Layers"]
    ]
    return json.dumps(told)


def test_int8_convolutions_with_groups_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = helper.make_node("Conv", ["input", "w"], ["logits"], "conv2", group=2)
    model = ir.from_proto(make_model([node], {"w": np.ones((4, 2, 1, 1), np.float32)}, shape=("batch", 4, 8, 8)))
    assert build(write(model, tmp_path)) == 0
    assert "groups" not in capsys.readouterr().err
    assert build(write(insert_qdq(model, {"input": TensorRange(4.0)}), tmp_path), "--json") == 0
    said = capsys.readouterr()
    assert "measure also with --keep-float conv2" in said.err
    assert json.loads(said.out)["grouped"] == ["conv2"]
