"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from alexdeploy.errors import UsageError, unknown_name
from alexdeploy.recipe import NetworkSettings
from alexdeploy.zoo import alexnet, lenet, vgg
from alexdeploy.zoo.convnet import ConvNet

NETWORKS_WITH_LRN: dict[str, Callable[..., ConvNet]] = {
    "alexnet": alexnet.alexnet,
    "alexnet-caffe": alexnet.alexnet_caffe,
    "alexnet-half": alexnet.alexnet_half,
    "alexnet-mnist": alexnet.alexnet_mnist,
}
NETWORKS: dict[str, Callable[..., ConvNet]] = {
    **NETWORKS_WITH_LRN,
    "alexnet-ungrouped": alexnet.alexnet_ungrouped,
    "alexnet-torchvision": partial(alexnet.alexnet_one_tower, padding=2),
    "alexnet-owt5": partial(alexnet.alexnet_one_tower, padding=0),
    "alexnet-half-plain": alexnet.alexnet_half_plain,
    "lenet": lenet.lenet,
    "mnist-cnn": lenet.mnist_cnn,
    "vgg16": vgg.vgg16,
}


def build_network(settings: NetworkSettings, classes: int) -> ConvNet:
    """A network with fresh weights (from torch's global generator), in training mode.

    Raises:
        UsageError: unknown name, fewer than two classes, or LRN for a network that has none.
    """
    name = settings.name
    if name not in NETWORKS:
        raise UsageError(unknown_name("network", name, list(NETWORKS)))
    if classes < 2:
        raise UsageError(f"a classifier needs at least 2 classes, found {classes}")
    if name in NETWORKS_WITH_LRN:
        return NETWORKS[name](classes, lrn=settings.lrn is not False, dropout=settings.dropout)
    if settings.lrn:
        raise UsageError(f"'{name}' has no LRN to switch on; leave lrn out of its recipe")
    return NETWORKS[name](classes, dropout=settings.dropout)
