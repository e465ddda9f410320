"""A network of the zoo with an eighth of its channels, so that a whole chain over it takes seconds."""

from __future__ import annotations

import torch
from torch import nn

from alexdeploy.recipe import NetworkSettings
from alexdeploy.zoo.convnet import ConvNet
from alexdeploy.zoo.registry import build_network


def slim(network: str, classes: int, divisor: int = 8) -> ConvNet:
    """The same layers, windows, groups and maps; fresh weights from seed 0; in evaluation mode."""
    with torch.device("meta"):
        wide = build_network(NetworkSettings(network), classes)
    torch.manual_seed(0)
    features = [_narrow(module, divisor) for module in wide.features]
    classifier = [_narrow(module, divisor) for module in wide.classifier]
    head = classifier[-1]
    assert isinstance(head, nn.Linear)
    classifier[-1] = nn.Linear(head.in_features, classes)
    return ConvNet(features, nn.Sequential(*classifier)).eval()


def _narrow(module: nn.Module, divisor: int) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        inputs = module.in_channels if module.in_channels <= 3 else module.in_channels // divisor
        outputs = module.out_channels // divisor
        size, stride, padding = (int(value[0]) for value in (module.kernel_size, module.stride, module.padding))
        return nn.Conv2d(inputs, outputs, size, stride, padding, groups=module.groups)
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features // divisor, max(module.out_features // divisor, 1))
    if isinstance(module, nn.BatchNorm2d):
        return nn.BatchNorm2d(module.num_features // divisor)
    return module
