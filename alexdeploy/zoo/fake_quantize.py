"""INT8 in PyTorch: a network whose layers round inputs and weights to the grid that Q/DQ in ONNX has, and still learn.

Straight-through estimator (Bengio et al. 2013; Jacob et al. 2018): rounding passes the gradient as if it were not
there, and stops it where a value is clipped.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from alexdeploy.errors import InputError, few
from alexdeploy.zoo.convnet import ConvNet, layer_paths

_LARGEST = 127
_UNUSED_SCALE = 1.0  # for zeros, where any positive scale is exact


def symmetric_scale(amax: Tensor) -> Tensor:
    """amax/127 as float32, so that ±amax map to ±127; zero amax gives scale 1. As ``alexdeploy.graph.qdq`` computes."""
    scale = amax.double() / _LARGEST
    return torch.where(scale < torch.finfo(torch.float32).tiny, _UNUSED_SCALE, scale).float()


def fake_quantize(values: Tensor, scale: Tensor, least: int = -_LARGEST - 1) -> Tensor:
    """QuantizeLinear and DequantizeLinear in one: ``values`` on the grid of ``scale``, from ``least`` to 127 levels.

    Args:
        values: float32.
        scale: float32, broadcast against ``values``.
        least: the lowest level: -128 for activations, -127 for weights.
    """
    result: Tensor = _FakeQuantize.apply(values, scale, least)
    return result


class _FakeQuantize(torch.autograd.Function):
    """``torch.fake_quantize`` multiplies by 1/scale, which rounds other ties than ONNX's division."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, least: int) -> Tensor:
        levels = torch.round(values / scale)
        ctx.save_for_backward((levels >= least) & (levels <= _LARGEST))
        return levels.clamp_(least, _LARGEST).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def _rounded(values: Tensor, amax: float) -> Tensor:
    return fake_quantize(values, symmetric_scale(torch.tensor(amax, dtype=torch.float64, device=values.device)))


def _rounded_weight(weight: Tensor) -> Tensor:
    """On the grid of each output channel's largest magnitude, which is a constant for the gradient."""
    scale = symmetric_scale(weight.detach().abs().flatten(1).amax(1))
    return fake_quantize(weight, scale.view(-1, *[1] * (weight.ndim - 1)), -_LARGEST)


class QuantizedConv2d(nn.Conv2d):
    """Rounds its input, clipped at ±``input_amax``, and its weight per output channel."""

    input_amax: float

    def forward(self, input: Tensor) -> Tensor:
        rounded: Tensor = self._conv_forward(_rounded(input, self.input_amax), _rounded_weight(self.weight), self.bias)
        return rounded


class QuantizedLinear(nn.Linear):
    """Rounds its input, clipped at ±``input_amax``, and its weight per output feature."""

    input_amax: float

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(_rounded(input, self.input_amax), _rounded_weight(self.weight), self.bias)


def quantize_layers(network: ConvNet, ranges: Mapping[str, float]) -> None:
    """Make every convolution and fully connected layer of ``network`` round; parameters keep their names.

    Args:
        network: changed in place; without batch normalisation that does something (``fold_in_place``).
        ranges: by name of the layer (``conv1``), the largest |x| of its input that is not clipped.

    Raises:
        InputError: the ranges are for other layers.
    """
    paths = layer_paths(network)
    if ranges.keys() != paths.keys():
        raise InputError(f"the ranges are for layers {few(ranges)}; the network has {few(paths)}")
    for name, path in paths.items():
        layer = network.get_submodule(path)
        # as torch.nn.utils.parametrize does: the parameters and their names stay
        layer.__class__ = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
        assert isinstance(layer, QuantizedConv2d | QuantizedLinear)
        layer.input_amax = ranges[name]


def layer_ranges(network: nn.Module) -> dict[str, float]:
    """The ranges that ``quantize_layers`` was given; empty for a network that does not round."""
    layers = {name: network.get_submodule(path) for name, path in layer_paths(network).items()}
    rounding = (QuantizedConv2d, QuantizedLinear)
    return {name: layer.input_amax for name, layer in layers.items() if isinstance(layer, rounding)}


def without_rounding(network: ConvNet) -> ConvNet:
    """The same network in float; it shares its parameters with ``network``, which is not changed."""
    plain = copy.deepcopy(network, {id(tensor): tensor for tensor in network.parameters()})
    for layer in plain.modules():
        if isinstance(layer, QuantizedConv2d | QuantizedLinear):
            layer.__class__ = type(layer).__base__  # type: ignore[assignment]
    return plain


@torch.no_grad()
def fold_in_place(network: ConvNet) -> None:
    """Move each batch normalisation into its convolution; what stays in its place is the identity and does not learn.

    So the weights that are rounded are those of the exported file, and the names of the parameters stay.
    """
    for convolution, norm in pairwise(network.features):
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert convolution.bias is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        convolution.weight.mul_(factor.view(-1, 1, 1, 1))
        convolution.bias.sub_(norm.running_mean).mul_(factor).add_(norm.bias)
        norm.weight.fill_(1)
        norm.bias.zero_()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.requires_grad_(False)
