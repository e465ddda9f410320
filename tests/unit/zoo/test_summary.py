from __future__ import annotations

import pytest
import torch
from torch import nn

from alexdeploy.recipe import NetworkSettings
from alexdeploy.specs import Layer
from alexdeploy.zoo.registry import build_network
from alexdeploy.zoo.summary import summarize


@pytest.fixture(scope="module")
def alexnet() -> list[Layer]:
    with torch.device("meta"):
        return summarize(build_network(NetworkSettings("alexnet"), 1000), (3, 227, 227))


# positions of the output, inputs of one output value, output channels
COSTS = {
    "features.0": (55 * 55, 11 * 11 * 3, 96),
    "features.4": (27 * 27, 5 * 5 * 48, 256),
    "features.8": (13 * 13, 3 * 3 * 256, 384),
    "features.10": (13 * 13, 3 * 3 * 192, 384),
    "features.12": (13 * 13, 3 * 3 * 192, 256),
    "classifier.0": (1, 9216, 4096),
    "classifier.3": (1, 4096, 4096),
    "classifier.6": (1, 4096, 1000),
}


def test_the_costs_of_alexnet_are_those_of_the_formulas(alexnet: list[Layer]) -> None:
    rows = {layer.name: (layer.macs, layer.connections, layer.parameters) for layer in alexnet if layer.macs}
    assert rows == {
        name: (positions * inputs * outputs, positions * (inputs + 1) * outputs, (inputs + 1) * outputs)
        for name, (positions, inputs, outputs) in COSTS.items()
    }


def test_alexnet_has_724_million_macs(alexnet: list[Layer]) -> None:
    assert sum(layer.macs for layer in alexnet) == 724_406_816


def test_the_rows_are_the_leaf_modules_in_execution_order_under_their_onnx_types(alexnet: list[Layer]) -> None:
    features = "Conv Relu LRN MaxPool " * 2 + "Conv Relu " * 3 + "MaxPool "
    assert [layer.type for layer in alexnet] == (features + "Gemm Relu Dropout Gemm Relu Dropout Gemm").split()


def test_memory_is_four_bytes_for_every_weight_and_output_value(alexnet: list[Layer]) -> None:
    by_name = {layer.name: layer.memory_bytes for layer in alexnet}
    assert by_name["features.0"] == 4 * (96 * (11 * 11 * 3 + 1) + 96 * 55 * 55)
    assert by_name["features.2"] == 4 * 96 * 55 * 55


def test_a_layer_without_bias_has_as_many_connections_as_macs() -> None:
    (layer,) = summarize(nn.Sequential(nn.Conv2d(2, 3, 3, bias=False)), (2, 5, 5))
    assert layer.macs == layer.connections == 3 * 3 * (3 * 3 * 2) * 3


@pytest.mark.parametrize("fits", [True, False])
def test_the_model_is_left_without_hooks(fits: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    if fits:
        summarize(model, (2, 5, 5))
    else:
        with pytest.raises(RuntimeError):
            summarize(model, (1, 5, 5))
    assert not any(module._forward_hooks for module in model.modules())
