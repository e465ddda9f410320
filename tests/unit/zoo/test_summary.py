from __future__ import annotations

from functools import reduce

import pytest
import torch
from torch import nn

from alexdeploy.recipe import NetworkSettings
from alexdeploy.specs import Field, Layer, Window
from alexdeploy.zoo.registry import build_network
from alexdeploy.zoo.summary import summarize


@pytest.fixture(scope="module")
def alexnet() -> list[Layer]:
    with torch.device("meta"):
        return summarize(build_network(NetworkSettings("alexnet"), 1000), (3, 227, 227))


def test_the_rows_are_the_leaf_modules_in_execution_order_under_their_onnx_types(alexnet: list[Layer]) -> None:
    features = "Conv Relu LRN MaxPool " * 2 + "Conv Relu " * 3 + "MaxPool "
    assert [layer.type for layer in alexnet] == (features + "Gemm Relu Dropout Gemm Relu Dropout Gemm").split()


def test_the_layers_have_the_names_of_the_exported_file(alexnet: list[Layer]) -> None:
    names = "conv1 relu1 lrn1 pool1 conv2 relu2 lrn2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
    assert [layer.name for layer in alexnet] == f"{names} fc6 relu6 dropout6 fc7 relu7 dropout7 fc8".split()


def test_the_receptive_fields_of_alexnet_are_the_published_ones(alexnet: list[Layer]) -> None:
    """Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks", table 1: 195 at pool5."""
    fields = {layer.name: layer.receptive_field for layer in alexnet}
    expected = {"conv1": 11, "pool1": 19, "conv2": 51, "pool2": 67, "conv3": 99, "conv4": 131, "conv5": 163}
    expected["pool5"], expected["fc6"] = 195, 195 + 5 * 32
    assert {name: fields[name] for name in expected} == {name: (size, size) for name, size in expected.items()}


def test_an_output_value_depends_on_its_receptive_field_and_on_nothing_else() -> None:
    """The gradient of one inner value reaches exactly that many pixels."""
    net = nn.Sequential(nn.Conv2d(1, 2, (5, 3), stride=2), nn.Conv2d(2, 2, 3, dilation=2), nn.AvgPool2d(1, 3))
    net.append(nn.Conv2d(2, 1, (1, 2)))
    image = torch.rand(1, 1, 60, 60, requires_grad=True)
    net(image)[0, 0, 2, 2].backward()
    assert image.grad is not None
    touched = image.grad[0, 0].nonzero()
    extent = tuple((touched.max(0).values - touched.min(0).values + 1).tolist())
    assert summarize(net, (1, 60, 60))[1].receptive_field == (5 + 4 * 2, 3 + 4 * 2)
    windows = [Window((5, 3), (2, 2)), Window((3, 3), dilation=(2, 2)), Window(stride=(3, 3)), Window((1, 2))]
    assert reduce(Field.through, windows, Field()).size == extent


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
