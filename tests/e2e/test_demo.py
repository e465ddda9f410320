"""The chain as a stranger meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alexdeploy.files import read_sidecar

FILES = {
    "checkpoint": "alexnet-mnist.safetensors",
    "onnx": "alexnet-mnist.onnx",
    "onnx-fp16": "alexnet-mnist-fp16.onnx",
    "ranges": "ranges.json",
    "onnx-int8": "alexnet-mnist-int8.onnx",
    "onnx-int8-onnxruntime": "alexnet-mnist-int8-onnxruntime.onnx",
    "onnx-int8-openvino": "alexnet-mnist-int8-openvino.onnx",
    "engine-fp32": "alexnet-mnist-fp32.engine",
    "engine-fp16": "alexnet-mnist-fp16.engine",
    "engine-int8": "alexnet-mnist-int8.engine",
}


@pytest.fixture(scope="session")
def answer(home: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((home / "demo.stdout").read_text())
    return result


def row(answer: dict[str, Any], artifact: str) -> dict[str, Any]:
    return next(row for row in answer["rows"] if Path(row["artifact"]).name == artifact)


def test_every_step_ran_and_every_file_has_a_sidecar_that_matches(home: Path, answer: dict[str, Any]) -> None:
    assert [step["status"] for step in answer["steps"]] == ["ok"] * len(answer["steps"])
    assert [step["reason"] for step in answer["steps"]] == [None] * len(answer["steps"]), "no INT8 layer is in float"
    assert answer["artifacts"] == {name: f"demo/{file}" for name, file in FILES.items()}
    for path in answer["artifacts"].values():
        read_sidecar(home / path)


def test_int8_keeps_the_accuracy(answer: dict[str, Any]) -> None:
    reference = row(answer, "alexnet-mnist.safetensors")
    assert reference["agreement"] == 1.0
    assert reference["top1"] >= 0.97
    for name in ("onnx-int8", "onnx-int8-onnxruntime", "onnx-int8-openvino"):
        int8 = row(answer, FILES[name])
        assert int8["top1"] >= reference["top1"] - 0.005
        assert int8["agreement"] >= 0.995
    assert row(answer, "alexnet-mnist.onnx")["top1"] == reference["top1"]


def test_int8_can_be_compared_with_fp32_of_the_same_runtime(answer: dict[str, Any]) -> None:
    timed = {(row["runtime"], row["precision"], row["batch"]) for row in answer["rows"] if row["status"] == "ok"}
    for runtime in ("onnxruntime-cpu", "openvino"):
        assert {(runtime, precision, batch) for precision in ("fp32", "int8") for batch in (1, 8)} <= timed


def test_engines_are_skipped_with_the_reason_where_there_is_no_gpu(answer: dict[str, Any]) -> None:
    if answer["environment"]["cuda"] == "available":
        pytest.skip("this machine has a CUDA device")
    engines = [row for row in answer["rows"] if row["runtime"] == "tensorrt-rtx"]
    assert len(engines) == 6
    for engine in engines:
        assert engine["status"] == "skipped"
        assert "no CUDA device" in engine["reason"]
        assert engine["latency_ms"] is engine["top1"] is engine["images_per_s"] is None
