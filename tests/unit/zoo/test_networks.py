"""The networks against the literal formulas of the literature."""

from __future__ import annotations

import copy
import math
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from alexdeploy.errors import UsageError
from alexdeploy.recipe import NetworkSettings, load_recipe
from alexdeploy.specs import Layer
from alexdeploy.zoo.convnet import ConvNet, fully_convolutional
from alexdeploy.zoo.registry import NETWORKS, NETWORKS_WITH_LRN, build_network, check_images_fit
from alexdeploy.zoo.summary import summarize
from tests.helpers.slim import slim


def conv(outputs: int, window: int, stride: int = 1, padding: int = 0, groups: int = 1) -> tuple[Any, ...]:
    return ("Conv", outputs, window, stride, padding, groups)


def pool(window: int, stride: int) -> tuple[Any, ...]:
    return ("MaxPool", None, window, stride, 0, 1)


def fc(*widths: int) -> list[tuple[Any, ...]]:
    return [("Gemm", width, 1, 1, 0, 1) for width in widths]


OVERLAPPING, SAME = pool(3, 2), ("MaxPool", "same", 2, 2, 0, 1)


def alexnet(*trunk: tuple[Any, ...], groups: int = 1) -> list[tuple[Any, ...]]:
    """conv1 and conv2 with their poolings, then the channels of conv3, conv4 and conv5."""
    first, second, channels = trunk
    last = [conv(n, 3, 1, 1, g) for n, g in zip(channels, (1, groups, groups), strict=True)]
    return [first, OVERLAPPING, second, OVERLAPPING, *last, OVERLAPPING]


PAPER = alexnet(conv(96, 11, 4), conv(256, 5, 1, 2, 2), (384, 384, 256), groups=2)
PAPER += fc(4096, 4096, 1000)
# input shape, then (type, outputs, window, stride, padding, groups) of every layer with a shape of its own
TABLE: dict[str, tuple[tuple[int, int, int], list[tuple[Any, ...]]]] = {
    "alexnet": ((3, 227, 227), PAPER),
    "alexnet-caffe": ((3, 227, 227), PAPER),
    "alexnet-ungrouped": (
        (3, 227, 227),
        alexnet(conv(96, 11, 4), conv(256, 5, 1, 2), (384, 384, 256)) + fc(4096, 4096, 1000),
    ),
    "alexnet-torchvision": (
        (3, 224, 224),
        alexnet(conv(64, 11, 4, 2), conv(192, 5, 1, 2), (384, 256, 256)) + fc(4096, 4096, 1000),
    ),
    "alexnet-owt5": (
        (3, 224, 224),
        alexnet(conv(64, 11, 4), conv(192, 5, 1, 2), (384, 256, 256)) + fc(4096, 4096, 1000),
    ),
    "alexnet-half": (
        (3, 224, 224),
        alexnet(conv(48, 11, 4, 2), conv(128, 5, 1, 2), (192, 192, 128)) + fc(2048, 2048, 1000),
    ),
    "alexnet-half-plain": (
        (3, 224, 224),
        [
            *(conv(48, 11, 4, 2), conv(128, 5, 1, 2), pool(2, 2), conv(192, 3, 1, 1), pool(2, 2)),
            *(conv(192, 3, 1, 1), conv(128, 3, 1, 1), OVERLAPPING, *fc(2048, 2048, 1000, 1000)),
        ],
    ),
    "alexnet-mnist": (
        (1, 28, 28),
        [
            *(conv(64, 3, 1, 1), SAME, conv(128, 3, 1, 1), SAME),
            *(conv(256, 3, 1, 1), conv(256, 3, 1, 1), conv(128, 3, 1, 1), SAME, *fc(1024, 1024, 1000)),
        ],
    ),
    "lenet": ((1, 28, 28), [conv(6, 3, 1, 1), pool(2, 2), conv(16, 5), pool(2, 2), *fc(120, 84, 1000)]),
    "mnist-cnn": (
        (1, 28, 28),
        [conv(16, 3), conv(32, 3), pool(2, 2), conv(64, 3), conv(128, 3), pool(2, 2), *fc(1024, 128, 1000)],
    ),
    "vgg16": (
        (3, 224, 224),
        [
            layer
            for width, depth in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
            for layer in [conv(width, 3, 1, 1)] * depth + [pool(2, 2)]
        ]
        + fc(4096, 4096, 1000),
    ),
}
# parameters with 1000 classes; bvlc_alexnet's, torchvision's two and VGG's are published
PARAMETERS = {
    "alexnet": 60_965_224,
    "alexnet-caffe": 60_965_224,
    "alexnet-ungrouped": 62_378_344,
    "alexnet-torchvision": 61_100_840,
    "alexnet-owt5": 49_566_504,
    "alexnet-half": 16_630_440,
    "alexnet-half-plain": 17_631_440,
    "alexnet-mnist": 5_427_560,
    "lenet": 145_760,
    "mnist-cnn": 2_456_008,
    "vgg16": 138_357_544,
}
MACS = {"alexnet": 724_406_816, "alexnet-torchvision": 714_188_480, "vgg16": 15_470_264_320}


def _build(name: str, classes: int = 10, **settings: Any) -> ConvNet:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return build_network(NetworkSettings(name, **settings), classes)


def _rows(name: str) -> list[Layer]:
    with torch.device("meta"):
        return summarize(_build(name, 1000), TABLE[name][0])


def _expected(name: str) -> list[tuple[Any, ...]]:
    """(type, output shape, parameters, connections, MACs, bytes), by the formulas of the literature."""
    (channels, _, size), layers = TABLE[name]
    rows: list[tuple[Any, ...]] = []
    for kind, outputs, window, stride, padding, groups in layers:
        if kind == "MaxPool":
            size = math.ceil(size / stride) if outputs == "same" else (size - window + 2 * padding) // stride + 1
            rows.append((kind, (channels, size, size), 0, 0, 0, 4 * channels * size**2))
            continue
        if kind == "Gemm":
            inputs, size = channels * size**2, 1
        else:
            inputs, size = channels // groups * window**2, (size - window + 2 * padding) // stride + 1
        channels = outputs
        shape = (outputs,) if kind == "Gemm" else (outputs, size, size)
        parameters, uses = (inputs + 1) * outputs, size**2
        memory = 4 * (parameters + uses * outputs)
        rows.append((kind, shape, parameters, uses * parameters, uses * inputs * outputs, memory))
    return rows


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_layer_has_the_shape_and_the_costs_of_the_formulas(name: str) -> None:
    found = [
        (row.type, row.output_shape, row.parameters, row.connections, row.macs, row.memory_bytes)
        for row in _rows(name)
        if row.type in ("Conv", "MaxPool", "Gemm")
    ]
    assert found == _expected(name)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_parameters_and_macs_are_the_published_ones(name: str) -> None:
    assert sum(p.numel() for p in _build(name, 1000).parameters()) == PARAMETERS[name]
    by_formula = sum(row[2] for row in _expected(name))
    normalization = 2 * (16 + 32 + 64 + 128) if name == "mnist-cnn" else 0
    assert PARAMETERS[name] == by_formula + normalization
    if name in MACS:
        assert sum(row.macs for row in _rows(name)) == MACS[name]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_recipe_feeds_images_of_the_size_in_the_table(name: str) -> None:
    assert load_recipe(name).preprocess.input_shape == TABLE[name][0]


def test_the_maps_of_alexnet_are_those_of_the_paper() -> None:
    shapes = [row.output_shape for row in _rows("alexnet") if row.type == "Conv"]
    assert shapes == [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]


@pytest.mark.parametrize(
    ("name", "theirs"), [("alexnet-torchvision", "alexnet"), ("vgg16", "vgg16"), ("alexnet-owt5", "alexnet")]
)
def test_parameters_have_the_names_of_torchvision(name: str, theirs: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        published = (
            models.get_model(theirs, weights=None, init_weights=False) if theirs == "vgg16" else models.alexnet()
        )
    shapes = {key: w.shape for key, w in published.state_dict().items()}
    ours = {key: w.shape for key, w in _build(name, 1000).state_dict().items()}
    assert list(ours) == list(shapes)
    assert {key for key in ours if ours[key] != shapes[key]} == (
        {"classifier.1.weight"} if name == "alexnet-owt5" else set()
    )


def test_the_layers_have_the_names_of_the_published_half_width_weights() -> None:
    names = {key.removesuffix(".weight") for key in _build("alexnet-half").state_dict() if key.endswith("weight")}
    assert names == {f"features.{i}" for i in (0, 4, 8, 10, 12)} | {f"classifier.{i}" for i in (1, 4, 6)}


def _normalizations(network: nn.Module) -> list[nn.LocalResponseNorm]:
    return [module for module in network.modules() if isinstance(module, nn.LocalResponseNorm)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", (5, 1e-4, 0.75, 2.0)),
        ("alexnet-caffe", (5, 1e-4, 0.75, 1.0)),
        ("alexnet-half", (5, 1e-4, 0.75, 2.0)),
        ("alexnet-mnist", (9, 1e-3, 0.75, 1.0)),
    ],
)
def test_lrn_has_the_settings_of_the_network(name: str, expected: tuple[float, ...]) -> None:
    found = [(m.size, m.alpha, m.beta, m.k) for m in _normalizations(_build(name))]
    assert found == [expected, expected]


@pytest.mark.parametrize("name", sorted(NETWORKS_WITH_LRN))
def test_lrn_stands_between_the_first_two_activations_and_their_poolings(name: str) -> None:
    start = "Conv2d ReLU LocalResponseNorm MaxPool2d " * 2 + "Conv2d ReLU " * 3 + "MaxPool2d"
    features = _build(name).get_submodule("features")
    assert [type(module).__name__ for module in features.children()] == start.split()


@pytest.mark.parametrize("name", sorted(NETWORKS_WITH_LRN))
def test_without_lrn_only_lrn_is_missing(name: str) -> None:
    features = _build(name, lrn=False).get_submodule("features")
    expected = "Conv2d ReLU MaxPool2d " * 2 + "Conv2d ReLU " * 3 + "MaxPool2d"
    assert [type(module).__name__ for module in features.children()] == expected.split()


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(NETWORKS_WITH_LRN)))
def test_a_network_without_lrn_has_none_and_cannot_be_given_one(name: str) -> None:
    assert _normalizations(_build(name)) == _normalizations(_build(name, lrn=False)) == []
    with pytest.raises(UsageError, match=f"'{name}' has no LRN"):
        _build(name, lrn=True)


@pytest.mark.parametrize("name", ["alexnet", "alexnet-mnist"])
def test_lrn_is_its_literal_formula(name: str) -> None:
    """x_c / (k + alpha/n · sum of x² over the n channels around c)^beta."""
    module = _normalizations(_build(name))[0]
    generator = torch.Generator().manual_seed(0)
    x = 50 * torch.randn(1, 12, 1, 1, generator=generator, dtype=torch.float64)
    column = x.flatten().tolist()
    reach = module.size // 2
    expected = [
        value
        / (module.k + module.alpha / module.size * sum(v * v for v in column[max(0, c - reach) : c + reach + 1]))
        ** module.beta
        for c, value in enumerate(column)
    ]
    torch.testing.assert_close(module(x).flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_dropout_has_the_rate_that_was_asked_for(name: str) -> None:
    rates = [m.p for m in _build(name, dropout=0.125).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.125] * (3 if name == "alexnet-half-plain" else 2)


@pytest.mark.parametrize("name", ["alexnet-mnist", "lenet", "mnist-cnn"])
def test_a_network_computes_logits_image_by_image(name: str) -> None:
    network = build_network(NetworkSettings(name), 10).eval()
    with torch.inference_mode():
        images = torch.rand(3, 1, 28, 28)
        logits = network(images)
        torch.testing.assert_close(network(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    assert logits.shape == (3, 10)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_as_convolutions_it_is_the_same_network_at_every_place_where_it_fits(name: str) -> None:
    network = slim(name, 5, 1 if name in ("lenet", "mnist-cnn") else 8)
    converted = fully_convolutional(network)
    channels, size, _ = TABLE[name][0]
    step = math.prod(stride for _, _, _, stride, _, _ in TABLE[name][1])
    images = torch.rand(2, channels, size + step, size + 2 * step)
    with torch.inference_mode():
        torch.testing.assert_close(converted(images[..., :size, :size])[..., 0, 0], network(images[..., :size, :size]))
        assert converted(images).shape == (2, 5, 2, 3)
        if name == "mnist-cnn":  # no padding, so that a window of a larger image is a smaller image
            for row, column in [(0, 0), (1, 2)]:
                top, left = row * step, column * step
                window = images[..., top : top + size, left : left + size]
                torch.testing.assert_close(converted(images)[..., row, column], network(window))


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown network 'alexnet-hlaf'; did you mean 'alexnet-half'"):
        _build("alexnet-hlaf")


@pytest.mark.parametrize("classes", [1, 0, -3])
def test_a_classifier_of_fewer_than_two_classes_is_refused(classes: int) -> None:
    with pytest.raises(UsageError, match=f"at least 2 classes, found {classes}"):
        _build("alexnet", classes)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        (
            "lenet",
            {"color": "rgb", "mean": (0.5,) * 3, "std": (0.5,) * 3},
            r"1 channel\(s\), and the preprocessing gives",
        ),
        ("mnist-cnn", {"resize": 64, "crop": 64}, r"another size, and the preprocessing gives \(1, 64, 64\)"),
        ("lenet", {}, None),
    ],
)
def test_images_that_a_network_does_not_take_are_refused_in_a_line(
    name: str, change: dict[str, Any], complaint: str | None
) -> None:
    recipe = load_recipe(name)
    model, contract = build_network(recipe.network, 10), msgspec.structs.replace(recipe.preprocess, **change)
    before = copy.deepcopy(model.state_dict())
    if complaint is None:
        check_images_fit(model, contract, name)
    else:
        with pytest.raises(UsageError, match=f"^'{name}' takes images of {complaint}"):
            check_images_fit(model, contract, name)
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
