"""TensorRT 10's own calibration; run by tests/unit/runners/test_tensorrt.py."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from alexdeploy.cli import main
from alexdeploy.data.sources import load_dataset
from alexdeploy.engine import plan
from alexdeploy.engine.record import read_engine
from alexdeploy.runners.tensorrt import TensorRTRunner
from alexdeploy.specs import Precision
from tests.helpers.graphs import images
from tests.simulated_cuda import builder_double
from tests.simulated_cuda.conftest import CONTRACT, expected

pytestmark = pytest.mark.usefixtures("tensorrt_builder")


def run(*arguments: str) -> int:
    try:
        main(["build-engine", "model.onnx", "--builder", "tensorrt", "--implicit", "-o", "model.engine", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_every_image_is_seen_and_the_cache_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--int8", "--fp16", "--data", "pictures", "--batch", "1:2:4", "--json") == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["builder"] == "tensorrt"
    assert {"INT8", "FP16"} <= builder_double.flags_set
    train = load_dataset("pictures", "train")
    (everything, _) = next(iter(train.batches(CONTRACT, len(train))))
    cache = (folder / "model.engine.cache").read_bytes()
    header, _, line = cache.partition(b"\n")
    assert header == b"TRT-101601-EntropyCalibration2"
    (scale,) = struct.unpack("!f", bytes.fromhex(line.split(b": ")[1].decode()))
    assert scale == pytest.approx(np.abs(everything).max() / 127)
    assert read_engine(folder / "model.engine").record.precision == Precision.INT8_FP16
    with TensorRTRunner(folder / "model.engine") as runner:
        np.testing.assert_array_equal(runner.infer(images(3)), expected(images(3)))


def test_it_builds_on_the_device_that_was_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--int8", "--data", "pictures", "--device", "cuda:1", "--timing-cache", "timing") == 2
    assert "timing/tensorrt-10.16.1.11-Simulated-GPU-B-8.6-cuda13.0.timing" in capsys.readouterr().err
    builder_double.devices.clear()
    assert run("--int8", "--data", "pictures", "--device", "cuda:1") == 0, capsys.readouterr().err
    assert builder_double.devices == [1, 1]
    gpu = read_engine(folder / "model.engine").record.gpu
    assert gpu is not None
    assert gpu.name == "Simulated GPU B"
    assert run("--int8", "--data", "pictures", "--device", "cuda:2") == 4
    assert "no CUDA device 2" in capsys.readouterr().err


def test_a_cache_takes_the_place_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "old.cache").write_bytes(builder_double.CACHE_HEADER + b"input: 3c010a14\n")
    assert run("--int8", "--ranges", "old.cache") == 0, capsys.readouterr().err
    assert builder_double.flags_set == {"INT8"}
    assert not (folder / "model.engine.cache").exists()


def test_what_goes_wrong_in_the_middle_is_raised_after_the_build(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = folder / "pictures" / load_dataset("pictures", "train").samples[-1]
    damaged.write_text("no picture")
    assert run("--int8", "--data", "pictures") == 3
    assert damaged.name in capsys.readouterr().err
    assert not (folder / "model.engine").exists()


def test_a_calibration_that_ends_early_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def first_batch(calibrator: object, shape: tuple[int, ...]) -> float:
        calibrator.get_batch(["input"])  # type: ignore[attr-defined]
        return float(shape[0])

    monkeypatch.setattr(builder_double, "_calibrate", first_batch)
    monkeypatch.setattr(plan, "_CALIBRATION_BATCH", 1)
    assert run("--int8", "--data", "pictures") == 5
    count = len(load_dataset("pictures", "train"))
    assert f"calibrated on 1 of {count} images" in capsys.readouterr().err
    assert not (folder / "model.engine").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--fp16", "--data", "pictures"], 2, "--implicit needs --int8"),
        (["--int8", "--data", "pictures", "--builder", "tensorrt-rtx"], 2, "--builder tensorrt"),
        (["--int8", "--data", "pictures", "--method", "entropy"], 2, "--method does not go with --implicit"),
        (["--int8", "--ranges", "model.onnx"], 2, "calibration cache"),
    ],
)
def test_what_does_not_go_with_it(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert folder.exists()
    assert run(*arguments) == code
    assert words in capsys.readouterr().err


def test_tensorrt_11_says_why_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.exists()
    with monkeypatch.context() as patch:
        patch.delattr(sys.modules["tensorrt"], "IInt8EntropyCalibrator2")
        patch.setattr(sys.modules["tensorrt"], "__version__", "11.4.0.106")
        assert run("--int8", "--data", "pictures") == 4
    assert "only TensorRT 10" in capsys.readouterr().err


def test_a_cache_that_tensorrt_does_not_take_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "old.cache").write_bytes(b"TRT-8601-MinMaxCalibration\ninput: 3c010a14\n")
    assert run("--int8", "--ranges", "old.cache") == 5
    assert "did not take the calibration cache" in capsys.readouterr().err
    assert not (folder / "model.engine").exists()
