"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from alexdeploy.errors import UsageError, unknown_name
from alexdeploy.recipe import NetworkSettings
from alexdeploy.zoo import alexnet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": alexnet.alexnet,
    "alexnet-half": alexnet.alexnet_half,
    "alexnet-mnist": alexnet.alexnet_mnist,
}


def build_network(settings: NetworkSettings, classes: int) -> nn.Module:
    """A network with fresh weights (from torch's global generator), in training mode.

    Raises:
        UsageError: unknown name, or fewer than two classes.
    """
    if settings.name not in NETWORKS:
        raise UsageError(unknown_name("network", settings.name, list(NETWORKS)))
    if classes < 2:
        raise UsageError(f"a classifier needs at least 2 classes, found {classes}")
    return NETWORKS[settings.name](classes, lrn=settings.lrn, dropout=settings.dropout)
