"""Small networks for 28×28 grey-scale images: LeNet and a CNN with batch normalisation."""

from __future__ import annotations

from torch import nn

from alexdeploy.zoo.convnet import ConvNet, classifier


def lenet(classes: int, *, dropout: float) -> ConvNet:
    """LeNet-5's widths (LeCun et al. 1998) with a padded 3×3 first convolution, ReLU and max pooling."""
    features = [
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ]
    return ConvNet(features, classifier(16 * 5 * 5, 120, 84, classes, dropout=dropout))


def mnist_cnn(classes: int, *, dropout: float) -> ConvNet:
    """Four unpadded 3×3 convolutions with batch normalisation, pooling after the second and the fourth."""
    features: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate([(1, 16), (16, 32), (32, 64), (64, 128)], start=1):
        features += [nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        if number % 2 == 0:
            features.append(nn.MaxPool2d(2))
    return ConvNet(features, classifier(128 * 4 * 4, 1024, 128, classes, dropout=dropout))
