from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from alexdeploy.errors import UsageError
from alexdeploy.recipe import NetworkSettings
from alexdeploy.zoo.registry import NETWORKS, build_network
from alexdeploy.zoo.summary import summarize

# (inputs, outputs, window, stride, padding, groups); a pooling has no outputs of its own
Step = tuple[str, int, int, int, int]
TRUNKS: dict[str, tuple[tuple[int, int, int], list[Step], list[int]]] = {
    "alexnet": (
        (3, 227, 227),
        [("conv", 96, 11, 4, 0), ("pool", 0, 3, 2, 0), ("conv", 256, 5, 1, 2), ("pool", 0, 3, 2, 0)]
        + [("conv", channels, 3, 1, 1) for channels in (384, 384, 256)]
        + [("pool", 0, 3, 2, 0)],
        [4096, 4096],
    ),
    "alexnet-half": (
        (3, 224, 224),
        [("conv", 48, 11, 4, 2), ("pool", 0, 3, 2, 0), ("conv", 128, 5, 1, 2), ("pool", 0, 3, 2, 0)]
        + [("conv", channels, 3, 1, 1) for channels in (192, 192, 128)]
        + [("pool", 0, 3, 2, 0)],
        [2048, 2048],
    ),
}


def _build(name: str, classes: int = 10, **settings: Any) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return build_network(NetworkSettings(name, **settings), classes)


def _shapes(name: str, input_shape: tuple[int, int, int], *types: str) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        return [layer.output_shape for layer in summarize(_build(name), input_shape) if layer.type in types]


@pytest.mark.parametrize("name", sorted(TRUNKS))
def test_every_map_has_the_size_of_the_formula(name: str) -> None:
    (channels, _, size), steps, _ = TRUNKS[name]
    expected = []
    for _, outputs, window, stride, padding in steps:
        size = (size - window + 2 * padding) // stride + 1
        channels = outputs or channels
        expected.append((channels, size, size))
    assert _shapes(name, TRUNKS[name][0], "Conv", "MaxPool") == expected
    assert size == 6


def test_the_maps_of_alexnet_are_those_of_the_paper() -> None:
    expected = [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    assert _shapes("alexnet", (3, 227, 227), "Conv") == expected
    assert _shapes("alexnet", (3, 227, 227), "MaxPool")[-1] == (256, 6, 6)


def test_the_maps_of_alexnet_mnist_are_pooled_as_tensorflow_pools_with_same() -> None:
    assert _shapes("alexnet-mnist", (1, 28, 28), "MaxPool") == [(64, 14, 14), (128, 7, 7), (128, 4, 4)]


WEIGHTS = {
    "alexnet": [(96, 3, 11), (256, 48, 5), (384, 256, 3), (384, 192, 3), (256, 192, 3), (4096, 9216), (4096, 4096)],
    "alexnet-half": [
        (48, 3, 11),
        (128, 48, 5),
        (192, 128, 3),
        (192, 192, 3),
        (128, 192, 3),
        (2048, 4608),
        (2048, 2048),
    ],
    "alexnet-mnist": [
        (64, 1, 3),
        (128, 64, 3),
        (256, 128, 3),
        (256, 256, 3),
        (128, 256, 3),
        (1024, 2048),
        (1024, 1024),
    ],
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_weights_have_the_shapes_of_the_network(name: str) -> None:
    weights = [tuple(w.shape) for key, w in _build(name, 7).state_dict().items() if key.endswith("weight")]
    expected = [(*shape, shape[2]) if len(shape) == 3 else shape for shape in WEIGHTS[name]]
    assert weights == [*expected, (7, WEIGHTS[name][-1][0])]


def test_alexnet_with_1000_classes_has_60965224_parameters() -> None:
    convolutions = [(11 * 11 * 3, 96), (5 * 5 * 48, 256), (3 * 3 * 256, 384), (3 * 3 * 192, 384), (3 * 3 * 192, 256)]
    matrices = [(256 * 6 * 6, 4096), (4096, 4096), (4096, 1000)]
    by_formula = sum((inputs + 1) * outputs for inputs, outputs in convolutions + matrices)
    assert sum(p.numel() for p in _build("alexnet", 1000).parameters()) == by_formula == 60_965_224


def test_the_layers_have_the_names_of_the_published_half_width_weights() -> None:
    names = {key.removesuffix(".weight") for key in _build("alexnet-half").state_dict() if key.endswith("weight")}
    assert names == {f"features.{i}" for i in (0, 4, 8, 10, 12)} | {f"classifier.{i}" for i in (1, 4, 6)}


def _normalizations(network: nn.Module) -> list[nn.LocalResponseNorm]:
    return [module for module in network.modules() if isinstance(module, nn.LocalResponseNorm)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", (5, 1e-4, 0.75, 2.0)),
        ("alexnet-half", (5, 1e-4, 0.75, 2.0)),
        ("alexnet-mnist", (9, 1e-3, 0.75, 1.0)),
    ],
)
def test_lrn_has_the_settings_of_the_network(name: str, expected: tuple[float, ...]) -> None:
    found = [(m.size, m.alpha, m.beta, m.k) for m in _normalizations(_build(name))]
    assert found == [expected, expected]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_lrn_stands_between_the_first_two_activations_and_their_poolings(name: str) -> None:
    start = "Conv2d ReLU LocalResponseNorm MaxPool2d " * 2 + "Conv2d ReLU " * 3 + "MaxPool2d"
    features = _build(name).get_submodule("features")
    assert [type(module).__name__ for module in features.children()] == start.split()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_without_lrn_only_lrn_is_missing(name: str) -> None:
    features = _build(name, lrn=False).get_submodule("features")
    expected = "Conv2d ReLU MaxPool2d " * 2 + "Conv2d ReLU " * 3 + "MaxPool2d"
    assert [type(module).__name__ for module in features.children()] == expected.split()


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
    assert rates == [0.125, 0.125]


def test_a_network_computes_logits_of_real_images() -> None:
    network = build_network(NetworkSettings("alexnet-mnist"), 10).eval()
    with torch.inference_mode():
        images = torch.rand(3, 1, 28, 28)
        logits = network(images)
        torch.testing.assert_close(network(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    assert logits.shape == (3, 10)


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown network 'alexnet-hlaf'; did you mean 'alexnet-half'"):
        _build("alexnet-hlaf")


@pytest.mark.parametrize("classes", [1, 0, -3])
def test_a_classifier_of_fewer_than_two_classes_is_refused(classes: int) -> None:
    with pytest.raises(UsageError, match=f"at least 2 classes, found {classes}"):
        _build("alexnet", classes)
