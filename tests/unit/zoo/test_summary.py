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


def test_the_rows_are_the_leaf_modules_in_execution_order_under_their_onnx_types(alexnet: list[Layer]) -> None:
    features = "Conv Relu LRN MaxPool " * 2 + "Conv Relu " * 3 + "MaxPool "
    assert [layer.type for layer in alexnet] == (features + "Gemm Relu Dropout Gemm Relu Dropout Gemm").split()


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
