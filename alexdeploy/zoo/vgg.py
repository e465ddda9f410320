"""VGG (Simonyan and Zisserman 2014), with torchvision's parameter names."""

from __future__ import annotations

from torch import nn

from alexdeploy.zoo.convnet import ConvNet, classifier

_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(classes: int, *, dropout: float) -> ConvNet:
    """Configuration D, 224×224: thirteen padded 3×3 convolutions in five blocks, 2×2 pooling after each block."""
    features: list[nn.Module] = []
    inputs = 3
    for block in _BLOCKS:
        for outputs in block:
            features += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = outputs
        features.append(nn.MaxPool2d(2))
    return ConvNet(features, classifier(512 * 7 * 7, 4096, 4096, classes, dropout=dropout))
