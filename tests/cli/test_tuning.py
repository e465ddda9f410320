"""``train --qat`` and what becomes of its checkpoint: LeNet on scikit-learn's digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import GateError, UsageError
from alexdeploy.export.from_torch import export_onnx
from alexdeploy.recipe import for_tuning, load_recipe, with_train_options
from alexdeploy.runners.artifact import load, open_artifact
from alexdeploy.specs import Precision
from alexdeploy.train import train_network
from alexdeploy.zoo.checkpoint import load_checkpoint
from alexdeploy.zoo.convnet import ConvNet, layer_paths
from alexdeploy.zoo.fake_quantize import layer_ranges, without_rounding
from tests.cli.conftest import Run, exit_code

DATA = ("--data", "digits")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its ONNX file, its ranges, and the checkpoint tuned with them."""
    folder = tmp_path_factory.mktemp("tuning")
    for arguments in (
        ("train", "lenet", *DATA, "--epochs", 2, "--out", folder),
        ("export", folder / "lenet.safetensors", "-o", folder / "lenet.onnx"),
        ("calibrate", folder / "lenet.onnx", *DATA, "--samples", 64, "--ranges-only", "-o", folder / "ranges.json"),
        ("train", folder / "lenet.safetensors", *DATA, "--qat", folder / "ranges.json", "--out", folder),
        ("export", folder / "lenet-int8.safetensors", "-o", folder / "tuned.onnx"),
    ):
        assert exit_code(arguments) == 0
    return folder


def test_a_tuned_checkpoint_becomes_the_graph_that_quantize_writes_of_its_weights(made: Path, run: Run) -> None:
    model = onnx.load(made / "tuned.onnx")
    ops = [node.op_type for node in model.graph.node]
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear")) == (5, 10)
    scales = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    ranges = json.loads((made / "ranges.json").read_text())["tensors"]
    for tensor in ("input", "pool1", "relu3"):
        assert scales[f"{tensor}.scale"] == np.float32(ranges[tensor]["mse"] / 127)
    assert run("quantize", made / "lenet.onnx", "--ranges", made / "ranges.json", "-o", "ptq.onnx").code == 0
    written = onnx.load("ptq.onnx")
    assert [node.name for node in written.graph.node] == [node.name for node in model.graph.node]
    plain = load_checkpoint(made / "lenet.safetensors").model.state_dict()
    tuned = load_checkpoint(made / "lenet-int8.safetensors").model.state_dict()
    assert not torch.equal(plain["features.0.weight"], tuned["features.0.weight"])


def test_the_graph_answers_as_the_checkpoint(made: Path) -> None:
    images = load_dataset("digits", "val").subset(100)
    contract = load_checkpoint(made / "lenet-int8.safetensors").contract
    batch = np.stack([image for _, image in images.inputs(contract)])
    with load(made / "lenet-int8.safetensors") as network, load(made / "tuned.onnx") as graph:
        expected, found = network.infer(batch), graph.infer(batch)
    assert (expected.argmax(1) == found.argmax(1)).mean() >= 0.99
    # not a rounding error alone: a value halfway between two levels may get either
    assert np.abs(expected - found).max() < 0.05 * np.abs(expected).max()


def test_the_report_names_both_and_the_checkpoint_is_int8(made: Path, run: Run) -> None:
    done = run("inspect", made / "lenet-int8.safetensors", "--json")
    assert json.loads(done.out)["layers"][0]["type"] == "Conv"
    assert open_artifact(made / "lenet-int8.safetensors").precision == Precision.INT8
    again = run("train", made / "lenet.safetensors", *DATA, "--qat", made / "ranges.json", "--out", ".", "--json")
    found = json.loads(again.out)
    assert (found["precision"], len(found["epochs"])) == ("fp32", 1)  # a tenth of the recipe's ten
    assert 0.5 < found["before"] <= 1
    assert json.loads((made / "lenet-int8.jsonl").read_text().splitlines()[0])["learning_rate"] < 2e-5


@pytest.mark.parametrize("fault", ["range", "weight", "pooling"])
def test_a_graph_that_is_not_the_network_fails_the_gate(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    tuned = load_checkpoint(made / "lenet-int8.safetensors")

    def spoiled(network: ConvNet) -> ConvNet:
        """What is exported in place of the network without rounding."""
        plain = without_rounding(network)
        if fault == "weight":
            plain.get_submodule(layer_paths(plain)["fc4"]).weight = nn.Parameter(torch.zeros(84, 120))
        elif fault == "pooling":
            plain.features[2] = nn.AvgPool2d(2)
        return plain

    monkeypatch.setattr("alexdeploy.export.from_torch.without_rounding", spoiled)
    if fault == "range":
        wrong = {**layer_ranges(tuned.model), "fc4": 1.0}
        monkeypatch.setattr("alexdeploy.export.tuned.layer_ranges", lambda network: wrong)
    batch = np.random.default_rng(0).random((5, 1, 28, 28), np.float32)
    with pytest.raises(GateError, match=r"between two quantized layers by .* at most 1e-04"):
        export_onnx(tuned.model, tuned.contract, tmp_path / "model.onnx", real_images=batch)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_tuned_is_refused_in_a_line(made: Path, run: Run) -> None:
    ranges, checkpoint = made / "ranges.json", made / "lenet.safetensors"
    done = run("train", "lenet", *DATA, "--qat", ranges, "--out", ".")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "name a CHECKPOINT, or a network and its --weights" in done.err
    done = run("train", checkpoint, *DATA, "--weights", checkpoint, "--qat", ranges, "--out", ".")
    assert (done.code, "leave --weights out" in done.err) == (2, True)
    done = run("train", made / "lenet-int8.safetensors", *DATA, "--qat", ranges, "--out", ".")
    assert (done.code, "name the checkpoint that it was made from" in done.err) == (2, True)
    done = run("train", "lenet", "--weights", made / "lenet-int8.safetensors", *DATA, "--qat", ranges, "--out", ".")
    assert (done.code, "not calibrated on what export writes of" in done.err) == (5, True)
    done = run("export", made / "lenet-int8.safetensors", "--uint8-input", "-o", "pixels.onnx")
    assert (done.code, "leave it out" in done.err) == (2, True)
    done = run("export", made / "lenet-int8.safetensors", "--fully-convolutional", "-o", "map.onnx")
    assert (done.code, "tuned for INT8" in done.err) == (2, True)
    assert not list(Path().iterdir())
    safetensors.torch.save_file(load_checkpoint(checkpoint).model.state_dict(), "bare.safetensors")
    done = run("train", "bare.safetensors", *DATA, "--qat", ranges, "--out", ".")
    assert (done.code, "a bare state dict has no recipe" in done.err) == (2, True)


def test_a_run_is_resumed_with_its_own_ranges_only(made: Path, tmp_path: Path) -> None:
    recipe = with_train_options(for_tuning(load_recipe("lenet")), epochs=1)
    learn, judge = load_dataset("digits", "train").subset(64), load_dataset("digits", "val").subset(32)
    ranges = {"conv1": 1.5, "conv2": 2.0, "fc3": 3.0, "fc4": 2.5, "fc5": 2.0}
    path, weights = tmp_path / "tuned.safetensors", made / "lenet.safetensors"
    first = train_network(recipe, learn, judge, path, weights=weights, ranges=ranges)
    assert first.before is not None
    assert train_network(recipe, learn, judge, path, weights=weights, ranges=ranges, resume=True).top1 == first.top1
    with pytest.raises(UsageError, match="ranges was"):
        train_network(recipe, learn, judge, path, weights=weights, ranges={**ranges, "fc5": 1.0}, resume=True)
    with pytest.raises(UsageError, match="`ranges` tune trained weights"):
        train_network(recipe, learn, judge, path, ranges=ranges)
