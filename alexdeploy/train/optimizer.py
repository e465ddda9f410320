"""Initialisation, fine-tuning, optimizer and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from alexdeploy.errors import UsageError, few
from alexdeploy.recipe import TrainSettings
from alexdeploy.zoo.convnet import ConvNet, layer_paths

_PAPER_ONES = frozenset({"conv2", "conv4", "conv5"})


def initialise(model: ConvNet, kind: str) -> None:
    """Fresh weights for every convolution and fully connected layer; see ``TrainSettings.initialisation``."""
    if kind == "pytorch":
        return
    paths = layer_paths(model)
    for name, path in paths.items():
        layer = model.get_submodule(path)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert layer.bias is not None
        is_last = name == list(paths)[-1]
        if kind == "he" and not is_last:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, std=0.01)
        hidden = isinstance(layer, nn.Linear) and not is_last
        nn.init.constant_(layer.bias, float(kind == "paper" and (hidden or name in _PAPER_ONES)))


def freeze(model: ConvNet, train_layers: tuple[str, ...]) -> None:
    """Leave only the named layers learning: ``fc7`` is one, ``fc`` and ``conv`` are all of their kind.

    Raises:
        UsageError: the network has no such layer.
    """
    paths = layer_paths(model)
    model.requires_grad_(not train_layers)
    for entry in train_layers:
        wanted = [path for name, path in paths.items() if entry in (name, name.rstrip("0123456789"))]
        if not wanted:
            raise UsageError(f"no layer '{entry}' to train; this network has {few(paths, most=20)}")
        for path in wanted:
            model.get_submodule(path).requires_grad_(True)


def set_training(model: nn.Module) -> None:
    """Training mode, except that frozen batch normalisation keeps its statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def make_optimizer(model: ConvNet, settings: TrainSettings) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, or SGD with momentum, over what learns; each group knows its ``peak`` rate."""
    head = list(layer_paths(model).values())[-1]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_head = name.rpartition(".")[0] == head and settings.head_learning_rate is not None
            rate = settings.head_learning_rate if in_head else settings.learning_rate
            assert rate is not None
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    options = [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(options, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(options, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: str, step: int, steps: int) -> float:
    """Set the rate of step ``step`` (from 0) of ``steps``; returns that of the first group."""
    factor = one_cycle(step, steps) if schedule == "one-cycle" else 0.1 ** (4 * step // steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return float(optimizer.param_groups[0]["lr"])


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak: cosine from 1/25 up to 1 over 30 % of the steps, then down to 4e-6 (Smith, Topin 2018).

    The numbers are the defaults of ``torch.optim.lr_scheduler.OneCycleLR``.
    """
    top = 0.3 * steps - 1
    if top > 0 and step <= top:
        return _cosine(1 / 25, 1.0, step / top)
    return _cosine(1.0, 1 / 25e4, (step - top) / max(steps - 1 - top, 1e-9))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))
