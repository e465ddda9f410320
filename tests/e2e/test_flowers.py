"""A trained half-width AlexNet on real photographs: the figures that the README states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.measure_rss import peak_rss_mib
from tests.helpers.shared_data import SHARED_DATA, needs_shared_data

pytestmark = needs_shared_data
CHECKPOINT = SHARED_DATA / "checkpoints" / "alexnet-half-lrn-flowers.safetensors"
FLOWERS = str(SHARED_DATA / "flowers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flowers")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    path = folder / "half.onnx"
    alexdeploy("export", str(CHECKPOINT), "--network", "alexnet-half", "-o", str(path))
    return path


@pytest.fixture(scope="module")
def ranges(model: Path, folder: Path) -> Path:
    path = folder / "ranges.json"
    alexdeploy("calibrate", str(model), "--data", FLOWERS, "--samples", "512", "-o", str(path))
    return path


def alexdeploy(*arguments: str) -> None:
    from alexdeploy.cli import main

    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0


def answer(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capfd.readouterr()
    alexdeploy(*arguments, "--json")
    result: dict[str, Any] = json.loads(capfd.readouterr().out)
    return result


def test_int8_agrees_with_fp32_on_photographs_not_used_to_calibrate(
    model: Path, ranges: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    int8 = folder / "int8.onnx"
    alexdeploy("quantize", str(model), "--ranges", str(ranges), "-o", str(int8))
    report = answer(capfd, "bench", str(model), str(int8), "--data", FLOWERS, "--batch", "8", "--seconds", "0.05")
    fp32_row, int8_row = report["rows"]
    assert report["images"] == 587
    assert int8_row["agreement"] >= 0.99
    assert int8_row["top1"] >= fp32_row["top1"] - 0.01


def test_all_eight_layers_are_int8_and_the_engine_is_small(
    model: Path, ranges: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    sizes = {}
    for name, options in (("fp32", []), ("int8", ["--int8", "--ranges", str(ranges), "--strict"])):
        path = folder / f"{name}.engine"
        sizes[name] = answer(capfd, "build-engine", str(model), *options, "-o", str(path))["size_bytes"]
    described = answer(capfd, "inspect", str(folder / "int8.engine"))
    assert described["precisions"] == {"INT8": 8, "HALF": 0, "FLOAT": 0}
    assert described["layer_precisions"].keys() == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}
    assert sizes["int8"] <= 0.3 * sizes["fp32"]


def test_calibration_memory_does_not_grow_with_the_images(model: Path, folder: Path) -> None:
    def peak(samples: int) -> float:
        arguments = ["calibrate", str(model), "--data", FLOWERS, "--samples", str(samples), "-o", "memory.json"]
        return peak_rss_mib(arguments, folder)

    assert peak(2048) <= peak(256) + 64
