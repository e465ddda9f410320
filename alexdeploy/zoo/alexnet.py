"""The AlexNet family as ``features`` (convolutions) and ``classifier`` (fully connected layers).

Every network takes float32 NCHW and returns (N, classes) logits. Parameter names are those of torchvision's AlexNet
(``features.0.weight`` …), so that published state dicts load without renaming.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Feature extractor, flatten, classifier."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, classes) logits."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def alexnet(classes: int, *, lrn: bool, dropout: float) -> ConvNet:
    """The paper's network on one device, 227×227: both towers as groups of 2 (Krizhevsky et al. 2012, §3.5).

    LRN uses the paper's n=5, alpha=1e-4, beta=0.75, k=2. PyTorch and ONNX divide alpha by n, as Caffe does; the
    paper's formula does not.
    """
    features = [
        nn.Conv2d(3, 96, 11, stride=4),
        *_relu_lrn(lrn),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        *_relu_lrn(lrn),
        nn.MaxPool2d(3, 2),
        *_last_convolutions(256, 384, 384, 256, groups=2),
        nn.MaxPool2d(3, 2),
    ]
    classifier = nn.Sequential(
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, classes),
    )
    return ConvNet(nn.Sequential(*features), classifier)


def alexnet_half(classes: int, *, lrn: bool, dropout: float) -> ConvNet:
    """Half the channels of one-tower AlexNet, 224×224, conv1 padded by 2, LRN and overlapping pooling kept."""
    features = [
        nn.Conv2d(3, 48, 11, stride=4, padding=2),
        *_relu_lrn(lrn),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(48, 128, 5, padding=2),
        *_relu_lrn(lrn),
        nn.MaxPool2d(3, 2),
        *_last_convolutions(128, 192, 192, 128),
        nn.MaxPool2d(3, 2),
    ]
    classifier = nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(128 * 6 * 6, 2048),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(2048, 2048),
        nn.ReLU(inplace=True),
        nn.Linear(2048, classes),
    )
    return ConvNet(nn.Sequential(*features), classifier)


def alexnet_mnist(classes: int, *, lrn: bool, dropout: float) -> ConvNet:
    """AlexNet's shape at 28×28×1: 3×3 convolutions, three 2×2 SAME poolings (28 → 14 → 7 → 4).

    LRN is TensorFlow's (radius 4, alpha 0.001/9) in ONNX terms: size 9, alpha 1e-3, beta 0.75, k 1.
    """
    features = [
        nn.Conv2d(1, 64, 3, padding=1),
        *_relu_lrn(lrn, size=9, alpha=1e-3, k=1.0),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.Conv2d(64, 128, 3, padding=1),
        *_relu_lrn(lrn, size=9, alpha=1e-3, k=1.0),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        *_last_convolutions(128, 256, 256, 128),
        nn.MaxPool2d(2, 2, ceil_mode=True),
    ]
    classifier = nn.Sequential(
        nn.Linear(128 * 4 * 4, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(1024, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(1024, classes),
    )
    return ConvNet(nn.Sequential(*features), classifier)


def _relu_lrn(lrn: bool, size: int = 5, alpha: float = 1e-4, k: float = 2.0) -> list[nn.Module]:
    """ReLU, and LRN after it when the network has it; the defaults are the paper's."""
    return [nn.ReLU(inplace=True), *([nn.LocalResponseNorm(size, alpha, 0.75, k)] if lrn else [])]


def _last_convolutions(inputs: int, conv3: int, conv4: int, conv5: int, groups: int = 1) -> list[nn.Module]:
    """conv3, conv4, conv5 with their ReLUs, all 3×3; ``groups`` applies to conv4 and conv5."""
    return [
        nn.Conv2d(inputs, conv3, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(conv3, conv4, 3, padding=1, groups=groups),
        nn.ReLU(inplace=True),
        nn.Conv2d(conv4, conv5, 3, padding=1, groups=groups),
        nn.ReLU(inplace=True),
    ]
