"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from alexdeploy.contract import Contract
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


def check_images_fit(model: ConvNet, contract: Contract, name: str) -> None:
    """The network must take images as the contract gives them: one is passed through.

    Raises:
        UsageError: they have another number of channels, or another size.
    """
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(first.weight.new_zeros(1, *contract.input_shape))
    except RuntimeError:
        other = "another size" if first.in_channels == contract.channels else f"{first.in_channels} channel(s)"
        raise UsageError(
            f"'{name}' takes images of {other}, and the preprocessing gives {contract.input_shape}; change color, "
            "resize or crop to those of its own recipe"
        ) from None
    finally:
        model.train(was_training)
