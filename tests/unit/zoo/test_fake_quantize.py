"""Rounding in PyTorch against ONNX's Q/DQ (onnx.reference) and against the integers that quantize writes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes  # noqa: F401  (onnx.reference needs it)
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from alexdeploy.errors import InputError
from alexdeploy.graph.qdq import quantize_weight
from alexdeploy.recipe import NetworkSettings
from alexdeploy.zoo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, untrained
from alexdeploy.zoo.convnet import ConvNet, layer_paths
from alexdeploy.zoo.fake_quantize import (
    QuantizedConv2d,
    QuantizedLinear,
    fake_quantize,
    fold_in_place,
    layer_ranges,
    quantize_layers,
    symmetric_scale,
    without_rounding,
)
from alexdeploy.zoo.registry import build_network
from tests.helpers.graphs import Array

RANGES = {"conv1": 1.5, "conv2": 2.0, "fc3": 3.0, "fc4": 2.5, "fc5": 2.0}


def _onnx_rounded(values: Array, amax: float) -> Array:
    scale = np.float32(np.float64(amax) / 127)
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(scale), "s"),
        onnx.numpy_helper.from_array(np.zeros((), np.int8), "z"),
    ]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    graph = onnx.helper.make_graph(nodes, "rounding", [x], [y], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    (found,) = ReferenceEvaluator(model).run(None, {"x": values})
    return np.asarray(found)


@pytest.mark.parametrize("amax", [0.7, 1.0, 2.6424, 1e-3, 127.0])
def test_values_are_on_the_grid_of_onnx_to_the_bit(amax: float) -> None:
    random = np.random.default_rng(0).normal(0, amax / 2, 4000)
    ties = (np.arange(-140, 140) + 0.5) * amax / 127  # halfway between two levels, and beyond the last ones
    values = np.concatenate([random, ties, [0, amax, -amax, 1e6 * amax, -1e6 * amax]]).astype(np.float32)
    scale = symmetric_scale(torch.tensor(amax, dtype=torch.float64))
    np.testing.assert_array_equal(fake_quantize(torch.from_numpy(values), scale).numpy(), _onnx_rounded(values, amax))


def test_the_gradient_passes_within_the_range_and_stops_where_it_is_clipped() -> None:
    values = torch.tensor([-3.0, -1.003, -1.0, 0.3, 0.9999, 1.02, 5.0], requires_grad=True)
    scale = symmetric_scale(torch.tensor(1.0))
    fake_quantize(values, scale).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0, 0]  # -1.003 is level -127.4, 1.02 would be 129.5


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 8, 3, groups=2), nn.Linear(20, 8)], ids=["conv", "linear"])
def test_weights_are_the_integers_that_quantize_writes(layer: nn.Conv2d | nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[3] = 0  # a dead channel
        layer.weight[4] *= 1e-6
    images = torch.rand(2, 6, 5, 5) if isinstance(layer, nn.Conv2d) else torch.rand(2, 20)
    levels, scales = quantize_weight(layer.weight.detach().numpy(), 0)
    shape = (-1, *[1] * (layer.weight.ndim - 1))
    rounded = torch.from_numpy(levels.astype(np.float32) * scales.reshape(shape))
    inputs = torch.from_numpy(_onnx_rounded(images.numpy(), 0.8))
    expected: Tensor
    if isinstance(layer, nn.Conv2d):
        expected = nn.functional.conv2d(inputs, rounded, layer.bias, groups=2)
    else:
        expected = nn.functional.linear(inputs, rounded, layer.bias)
    layer.__class__ = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
    layer.input_amax = 0.8  # type: ignore[assignment]
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=0)


@pytest.fixture
def lenet() -> ConvNet:
    torch.manual_seed(0)
    return build_network(NetworkSettings("lenet"), 10).eval()


def test_a_network_rounds_and_keeps_the_names_of_its_parameters(lenet: ConvNet) -> None:
    images = torch.rand(3, 1, 28, 28)
    names, before = list(lenet.state_dict()), lenet(images)
    quantize_layers(lenet, RANGES)
    assert (list(lenet.state_dict()), layer_ranges(lenet)) == (names, RANGES)
    after = lenet(images)
    error = float((after - before).detach().abs().max() / before.detach().abs().max())
    assert 1e-4 < error < 0.2
    plain = without_rounding(lenet)
    torch.testing.assert_close(plain(images), before, rtol=0, atol=0)
    torch.testing.assert_close(lenet(images), after, rtol=0, atol=0)
    assert layer_ranges(plain) == {}
    assert plain.features[0].weight is lenet.features[0].weight


def test_ranges_for_other_layers_are_refused(lenet: ConvNet) -> None:
    with pytest.raises(InputError, match="the ranges are for layers conv1; the network has conv1, conv2, fc3 and 2"):
        quantize_layers(lenet, {"conv1": 1.0})


def test_batch_normalisation_is_folded_and_stays_as_the_identity() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkSettings("mnist-cnn"), 10)
    images = torch.rand(50, 1, 28, 28)
    network(images)  # statistics that are not those of the start
    for norm in network.features:
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.uniform_(norm.bias, -1, 1)
    expected = network.eval()(images)
    names = list(network.state_dict())
    fold_in_place(network)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    assert list(network.state_dict()) == names
    values = torch.randn(4, 16, 5, 5)
    assert torch.equal(network.features[1](values), values)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    paths = layer_paths(network).values()
    assert learning == {f"{path}.{part}" for path in paths for part in ("weight", "bias")}


def test_a_tuned_checkpoint_survives_the_round_trip(tmp_path: Path, lenet: ConvNet) -> None:
    fresh = untrained("lenet", 10, seed=0)
    quantize_layers(lenet, RANGES)
    save_checkpoint(tmp_path / "tuned.safetensors", Checkpoint(lenet, fresh.recipe, fresh.contract, 10))
    found = load_checkpoint(tmp_path / "tuned.safetensors")
    assert (found.is_tuned, fresh.is_tuned) == (True, False)
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(found.model(images), lenet(images), rtol=0, atol=0)
