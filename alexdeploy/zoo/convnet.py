"""The form that all networks share: ``features`` (convolutions), flatten, ``classifier`` (fully connected layers)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from alexdeploy.specs import layer_name


class ConvNet(nn.Module):
    """Feature extractor, flatten, classifier."""

    def __init__(self, features: Iterable[nn.Module], classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, classes) logits."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def classifier(*widths: int, dropout: float, dropout_first: bool = False) -> nn.Sequential:
    """Fully connected layers with ReLU between them: ``classifier(9216, 4096, 4096, classes, dropout=0.5)``.

    Dropout follows each ReLU or, with ``dropout_first``, stands before every layer but the last.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        dense = [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(dropout), *dense] if dropout_first else [*dense, nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def fold_batch_norm(model: ConvNet) -> ConvNet:
    """The network, in evaluation mode, with each batch normalisation inside its convolution, as export writes it."""
    features: list[nn.Module] = []
    for module in model.features:
        if isinstance(module, nn.BatchNorm2d) and features and isinstance(features[-1], nn.Conv2d):
            features[-1] = fuse_conv_bn_eval(features[-1], module)
        else:
            features.append(module)
    return ConvNet(features, model.classifier).eval()


def fully_convolutional(model: ConvNet) -> nn.Sequential:
    """The classifier as convolutions (Sermanet et al. 2013; Long et al. 2015), in evaluation mode.

    Takes (N, C, H, W) of at least the training size and returns a map of logits, (N, classes, h, w): one for each
    place where the network fits, h = w = 1 at the training size. The weights are shared with ``model``.
    """
    channels = [module.out_channels for module in model.features if isinstance(module, nn.Conv2d)][-1]
    layers = list(model.features)
    for module in model.classifier:
        if isinstance(module, nn.Linear):
            side = math.isqrt(module.in_features // channels)
            with torch.device("meta"):
                convolution = nn.Conv2d(channels, module.out_features, side)
            convolution.weight = nn.Parameter(module.weight.detach().view(convolution.weight.shape))
            convolution.bias = module.bias
            layers.append(convolution)
            channels = module.out_features
        else:
            layers.append(module)
    return nn.Sequential(*layers).eval()


def layer_paths(model: nn.Module) -> dict[str, str]:
    """Layer name as in Caffe and in exported ONNX files → path of its module: ``{"conv1": "features.0", …}``."""
    weighted = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return {
        layer_name("Gemm" if isinstance(module, nn.Linear) else "Conv", number): path
        for number, (path, module) in enumerate(weighted, start=1)
    }
