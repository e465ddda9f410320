"""The range file committed under ``calibration/`` is what this version writes, to the last bit and on any machine.

Its model computes with whole numbers below 2^24 only, so no order of summation changes a sum; the ranges are then
found again here from integer arithmetic. Where a method searches, its best threshold is the best by a clear margin.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.cli import cli
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.sources import load_dataset
from alexdeploy.quantize import methods
from alexdeploy.quantize.observer import ActivationObserver

EXAMPLES = Path(__file__).resolve().parents[2] / "calibration"
SAMPLES = 256
CONTRACT = Contract(color="gray", crop=8, mean=(0.0,), std=(1.0,), labels=tuple("0123456789"))
COMMAND = f"alexdeploy calibrate example.onnx --data digits --samples {SAMPLES} --ranges-only -o example.ranges.json"

Integers = npt.NDArray[np.int64]

EDGES: Integers = np.array(
    [
        [[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]],
        [[[-1, -2, -1], [0, 0, 0], [1, 2, 1]]],
        [[[0, -1, 0], [-1, 4, -1], [0, -1, 0]]],
        [[[0, 0, 0], [0, 1, 0], [0, 0, 0]]],
    ]
)
MIXED: Integers = np.arange(4 * 4 * 3 * 3).reshape(4, 4, 3, 3) * 7 % 5 - 2
CLASSES: Integers = np.arange(10 * 64).reshape(10, 64) * 11 % 7 - 3


def example_model() -> onnx.ModelProto:
    """How ``calibration/example.onnx`` was made: pixels as -128…127, two convolutions, a matrix product."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["input", "white"], ["scale1"], "scale1"),
            helper.make_node("Sub", ["scale1", "gray"], ["shift1"], "shift1"),
            helper.make_node("Round", ["shift1"], ["pixels1"], "pixels1"),
            helper.make_node("Conv", ["pixels1", "edges"], ["conv1"], "conv1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv1"], ["relu1"], "relu1"),
            helper.make_node("MaxPool", ["relu1"], ["pool1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Conv", ["pool1", "mixed"], ["conv2"], "conv2", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv2"], ["relu2"], "relu2"),
            helper.make_node("Flatten", ["relu2"], ["flatten2"], "flatten2"),
            helper.make_node("Gemm", ["flatten2", "classes"], ["logits"], "fc3", transB=1),
        ],
        "example",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(np.asarray(values, np.float32), name)
            for name, values in (
                ("white", 255),
                ("gray", 128),
                ("edges", EDGES),
                ("mixed", MIXED),
                ("classes", CLASSES),
            )
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="example"
    )
    helper.set_model_props(model, {METADATA_KEY: CONTRACT.to_json()})
    return model


def activations() -> dict[str, Integers]:
    """The tensors that are observed, from the digits in integer arithmetic."""
    digits = load_dataset("digits", "train").subset(SAMPLES)
    pixels = np.stack([np.asarray(image, np.int64) for _, image in digits.images()])[:, None] - 128
    pool1 = np.maximum(convolution(pixels, EDGES), 0).reshape(-1, 4, 4, 2, 4, 2).max(axis=(3, 5))
    flatten2 = np.maximum(convolution(pool1, MIXED), 0).reshape(-1, 64)
    return {"pixels1": pixels, "pool1": pool1, "flatten2": flatten2}


def convolution(images: Integers, weights: Integers) -> Integers:
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    summed: Integers = np.einsum("nchwij,ocij->nohw", windows, weights)
    return summed


def observed(values: Integers) -> ActivationObserver:
    observer = ActivationObserver("example")
    observer.update(values.astype(np.float32))
    return observer


def test_the_example_reproduces_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLES / "example.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    cli.main(COMMAND.split()[1:], standalone_mode=False)
    name = "example.ranges.json"
    again = f"if the version or a method changed on purpose: cd calibration && {COMMAND}"
    assert (tmp_path / name).read_bytes() == (EXAMPLES / name).read_bytes(), again
    ours, stored = (json.loads((folder / f"{name}.json").read_text()) for folder in (tmp_path, EXAMPLES))
    assert ours.pop("libraries").keys() == stored.pop("libraries").keys()  # what is installed may be newer
    assert ours == stored, again


def test_the_readme_beside_it_shows_the_command() -> None:
    assert f"$ {COMMAND}\n" in (EXAMPLES / "README.md").read_text()


def test_the_model_is_the_one_written_here() -> None:
    assert onnx.load(EXAMPLES / "example.onnx") == example_model()


def test_the_ranges_are_those_of_integer_arithmetic() -> None:
    stored = json.loads((EXAMPLES / "example.ranges.json").read_text())["tensors"]
    for name, values in activations().items():
        expected = {**methods.ranges(observed(values)), "min": min(0.0, float(values.min())), "samples": SAMPLES}
        assert expected == stored.pop(name), name
        assert expected["minmax"] == np.abs(values).max()
    assert stored == {}


@pytest.mark.parametrize("seed", range(3))
def test_no_choice_of_a_threshold_is_a_close_one(seed: int) -> None:
    """Counts off by a part in a million move no threshold; what processors differ by is far less."""
    random = np.random.default_rng(seed)
    for name, values in activations().items():
        observer = observed(values)
        found = methods.ranges(observer)
        observer.counts = (observer.counts << 20) + random.integers(-1, 2, observer.counts.size) * (observer.counts > 0)
        shaken = methods.ranges(observer)
        assert (shaken["entropy"], shaken["mse"]) == (found["entropy"], found["mse"]), name
