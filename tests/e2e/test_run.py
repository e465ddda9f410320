"""``alexdeploy run``: any recipe to files that are compared, and what a second run keeps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alexdeploy.files import read_sidecar, sidecar_path
from alexdeploy.machine import saturates_int8

ENGINES = ("engine-fp32", "engine-fp16", "engine-int8")
STEPS = (
    *("checkpoint", "onnx", "onnx-fp16", "ranges", "onnx-int8", "onnx-int8-onnxruntime", "onnx-int8-openvino"),
    *(*ENGINES, "bench"),
)
SHORT = """
import alexdeploy.pipeline
from alexdeploy.cli import main
alexdeploy.pipeline.BENCH_SECONDS, alexdeploy.pipeline.BATCHES = 0.1, (8,)
main()
"""
BARE = "import sys; sys.modules['tensorrt_rtx'] = sys.modules['openvino'] = None; " + SHORT


def run(folder: Path, *arguments: str, code: str = SHORT) -> str:
    """What ``alexdeploy run ARGUMENTS`` prints on stdout."""
    command = [sys.executable, "-c", code, "run", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [line.removesuffix(" …") for line in result.stderr.splitlines() if line.endswith(" …")] == list(STEPS)
    return result.stdout


def status(answer: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["status"] for step in answer["steps"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(folder, "lenet", "--data", "digits", "--epochs", "2", "--json"))
    return answer


def test_a_recipe_becomes_files_that_are_compared(folder: Path, first: dict[str, Any]) -> None:
    assert status(first) == dict.fromkeys(STEPS, "ok")
    assert [*first["artifacts"]] == list(STEPS[:-1])
    for path in first["artifacts"].values():
        assert Path(path).parent == Path("lenet")
        read_sidecar(folder / path)
    measured = {(Path(row["artifact"]).name, row["runtime"]): row for row in first["rows"] if row["status"] == "ok"}
    assert measured.keys() >= {
        ("lenet.safetensors", "pytorch"),
        ("lenet.onnx", "onnxruntime-cpu"),
        ("lenet.onnx", "openvino"),
        ("lenet-fp16.onnx", "onnxruntime-cpu"),
        ("lenet-int8.onnx", "onnxruntime-cpu"),
        ("lenet-int8-onnxruntime.onnx", "onnxruntime-cpu"),
        ("lenet-int8-openvino.onnx", "openvino"),
    }
    exact = [row for (name, _), row in measured.items() if not (saturates_int8() and "int8-openvino" in name)]
    assert all(row["agreement"] >= 0.99 for row in exact)


def test_a_second_run_makes_only_what_is_missing_or_damaged(folder: Path, first: dict[str, Any]) -> None:
    damaged, missing = (folder / first["artifacts"][name] for name in ("onnx-int8-onnxruntime", "onnx-fp16"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    sidecar_path(missing).unlink()
    ranges = folder / first["artifacts"]["ranges"]  # calibrated again to the same bytes: what was made of them stands
    ranges.write_text(ranges.read_text().replace("minmax", "minmux"))
    shown = run(folder, "lenet", "--data", "digits", "--epochs", "2")
    line = next(line for line in shown.splitlines() if line.startswith("steps: "))
    found = {text.split()[0]: text.endswith("(kept)") for text in line.removeprefix("steps: ").split(" · ")}
    assert [name for name, kept in found.items() if not kept] == [
        "onnx-fp16",
        "ranges",
        "onnx-int8-onnxruntime",
        "bench",
    ]
    for path in (damaged, missing, ranges):
        read_sidecar(path)
    graph, *gains = shown.splitlines()[-3:]
    assert re.match(r"lenet-int8\.onnx, TensorRT's graph: same answers on (9\d\.?\d*|100) % of 359 images", graph)
    for gain in gains:
        assert re.match(r"INT8 on (onnxruntime-cpu|openvino): \d+\.\d × FP32 at batch 8", gain)
    table = shown[: shown.index("steps: ")]
    assert "lenet-int8-onnxruntime.onnx" in table
    assert "lenet-int8.onnx" not in table


def test_a_killed_run_goes_on_and_steps_without_their_library_are_skipped(tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "models" / "lenet" / "recipe.toml"
    (tmp_path / "mine.toml").write_text(recipe.read_text().replace("epochs = 10", "epochs = 12"))
    arguments = ("mine.toml", "--data", "digits", "--out", "here", "--samples", "64", "--json")
    log = tmp_path / "here" / "lenet.jsonl"
    with subprocess.Popen([sys.executable, "-c", BARE, "run", *arguments], cwd=tmp_path) as process:
        while not log.exists() or len(log.read_text().splitlines()) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    before = log.read_text().splitlines()
    assert 3 <= len(before) < 12
    answer = json.loads(run(tmp_path, *arguments, code=BARE))
    after = log.read_text().splitlines()
    assert len(after) == 12
    # the time that an epoch took is in its line; the last one may have ended before its state was written
    assert after[: len(before) - 1] == before[:-1]
    skipped = {"onnx-int8-openvino": "pip install openvino", **dict.fromkeys(ENGINES, "pip install tensorrt-rtx")}
    reasons = {step["name"]: step["reason"] for step in answer["steps"] if step["status"] == "skipped"}
    assert reasons.keys() == skipped.keys()
    assert all(extra in reasons[name] for name, extra in skipped.items())
    assert answer["artifacts"].keys() == set(STEPS) - skipped.keys() - {"bench"}
    assert json.loads(Path(tmp_path / "here" / "ranges.json").read_text())["samples"] == 64
