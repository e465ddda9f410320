"""The chain as a stranger meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alexdeploy.files import read_sidecar


@pytest.fixture(scope="session")
def answer(home: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((home / "demo.stdout").read_text())
    return result


def row(answer: dict[str, Any], artifact: str) -> dict[str, Any]:
    return next(row for row in answer["rows"] if Path(row["artifact"]).name == artifact)


def test_every_step_ran_and_every_file_has_a_sidecar_that_matches(home: Path, answer: dict[str, Any]) -> None:
    assert [step["status"] for step in answer["steps"]] == ["ok"] * len(answer["steps"])
    names = {"checkpoint", "onnx", "onnx-fp16", "ranges", "onnx-int8", "engine-fp32", "engine-fp16", "engine-int8"}
    assert answer["artifacts"].keys() == names
    for path in answer["artifacts"].values():
        read_sidecar(home / path)


def test_int8_keeps_the_accuracy(answer: dict[str, Any]) -> None:
    reference = row(answer, "alexnet-mnist.safetensors")
    int8 = row(answer, "alexnet-mnist-int8.onnx")
    assert reference["agreement"] == 1.0
    assert reference["top1"] >= 0.97
    assert int8["top1"] >= reference["top1"] - 0.005
    assert row(answer, "alexnet-mnist.onnx")["top1"] == reference["top1"]


def test_engines_are_skipped_with_the_reason_where_there_is_no_gpu(answer: dict[str, Any]) -> None:
    if answer["environment"]["cuda"] == "available":
        pytest.skip("this machine has a CUDA device")
    engines = [row for row in answer["rows"] if row["runtime"] == "tensorrt-rtx"]
    assert len(engines) == 6
    for engine in engines:
        assert engine["status"] == "skipped"
        assert "no CUDA device" in engine["reason"]
        assert engine["latency_ms"] is engine["top1"] is engine["images_per_s"] is None


def test_a_second_run_keeps_what_is_good_and_makes_again_what_is_not(home: Path, answer: dict[str, Any]) -> None:
    ranges = home / answer["artifacts"]["ranges"]
    ranges.write_text(ranges.read_text().replace("minmax", "minmux"))
    command = [sys.executable, "-m", "alexdeploy", "demo", "--out", "demo", "--json"]
    second = json.loads(subprocess.run(command, cwd=home, capture_output=True, text=True, check=True).stdout)
    status = {step["name"]: step["status"] for step in second["steps"]}
    assert status["ranges"] == "ok"
    # calibration is deterministic: the same bytes come out, so what was made from them still stands
    assert {name for name, value in status.items() if value == "kept"} == status.keys() - {"ranges", "bench"}


def test_a_training_that_was_stopped_is_not_kept(home: Path, answer: dict[str, Any]) -> None:
    from alexdeploy.pipeline import _is_current, _steps

    training = _steps(home / "demo")[0]
    assert training.output == home / answer["artifacts"]["checkpoint"]
    assert _is_current(training)
    log = training.output.with_suffix(".jsonl")
    complete = log.read_text()
    log.write_text(complete.splitlines(keepends=True)[0])
    assert not _is_current(training)
    log.write_text(complete)
