"""The AlexNet family. Parameter names are torchvision's, so that published state dicts load without renaming."""

from __future__ import annotations

from torch import nn

from alexdeploy.zoo.convnet import ConvNet, classifier
from alexdeploy.zoo.lrn import LocalResponseNorm


def alexnet(classes: int, *, lrn: bool = False, dropout: float, groups: int = 2, k: float = 2.0) -> ConvNet:
    """The paper's network on one device, 227×227: both towers as groups of 2 (Krizhevsky et al. 2012, §3.5).

    LRN uses the paper's n=5, alpha=1e-4, beta=0.75, k=2. PyTorch and ONNX divide alpha by n, as Caffe does; the
    paper's formula does not.
    """
    features = [
        nn.Conv2d(3, 96, 11, stride=4),
        *_relu_lrn(lrn, k=k),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=groups),
        *_relu_lrn(lrn, k=k),
        nn.MaxPool2d(3, 2),
        *_last_convolutions(256, 384, 384, 256, groups=groups),
        nn.MaxPool2d(3, 2),
    ]
    return ConvNet(features, classifier(256 * 6 * 6, 4096, 4096, classes, dropout=dropout))


def alexnet_caffe(classes: int, *, lrn: bool, dropout: float) -> ConvNet:
    """Caffe's ``bvlc_alexnet``: the paper's network with k=1 in its LRN."""
    return alexnet(classes, lrn=lrn, dropout=dropout, k=1.0)


def alexnet_ungrouped(classes: int, *, dropout: float) -> ConvNet:
    """The paper's network as one tower: every convolution sees all channels, and there is no LRN."""
    return alexnet(classes, dropout=dropout, groups=1)


def alexnet_one_tower(classes: int, *, dropout: float, padding: int) -> ConvNet:
    """64-192-384-256-256 without LRN, 224×224 (Krizhevsky 2014, "One weird trick").

    With conv1 padded by 2 it is torchvision's ``alexnet`` (6×6 maps before the classifier), unpadded ``owt5`` (5×5).
    torchvision's adaptive pooling to 6×6 is left out: at 224×224 it changes nothing.
    """
    features = [
        nn.Conv2d(3, 64, 11, stride=4, padding=padding),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        *_last_convolutions(192, 384, 256, 256),
        nn.MaxPool2d(3, 2),
    ]
    side = 6 if padding == 2 else 5
    return ConvNet(features, classifier(256 * side * side, 4096, 4096, classes, dropout=dropout, dropout_first=True))


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
    return ConvNet(features, classifier(128 * 6 * 6, 2048, 2048, classes, dropout=dropout, dropout_first=True))


def alexnet_half_plain(classes: int, *, dropout: float) -> ConvNet:
    """``alexnet_half``'s convolutions without LRN: 2×2 pooling after conv2 and conv3, a fourth layer of 1000 units."""
    conv3, relu3, *conv4_conv5 = _last_convolutions(128, 192, 192, 128)
    features = [
        nn.Conv2d(3, 48, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(48, 128, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        conv3,
        relu3,
        nn.MaxPool2d(2),
        *conv4_conv5,
        nn.MaxPool2d(3, 2),
    ]
    return ConvNet(features, classifier(128 * 6 * 6, 2048, 2048, 1000, classes, dropout=dropout))


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
    return ConvNet(features, classifier(128 * 4 * 4, 1024, 1024, classes, dropout=dropout))


def _relu_lrn(lrn: bool, size: int = 5, alpha: float = 1e-4, k: float = 2.0) -> list[nn.Module]:
    """ReLU, and LRN after it when the network has it; the defaults are the paper's."""
    return [nn.ReLU(inplace=True), *([LocalResponseNorm(size, alpha, 0.75, k)] if lrn else [])]


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
