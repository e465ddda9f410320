"""The layer table of a PyTorch network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alexdeploy.specs import Layer

_NAMES = {"Linear": "Gemm", "Conv2d": "Conv", "MaxPool2d": "MaxPool", "LocalResponseNorm": "LRN", "ReLU": "Relu"}


def summarize(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Layer]:
    """Leaf modules in execution order with shapes and costs, found by one forward pass on a single zero image."""
    layers: list[Layer] = []

    def record(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            layers.append(_layer(name, module, tuple(output.shape[1:])))

        return hook

    handles = [
        module.register_forward_hook(record(name, module))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _layer(name: str, module: nn.Module, output_shape: tuple[int, ...]) -> Layer:
    kind = type(module).__name__
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    parameters = sum(p.numel() for p in module.parameters())
    positions = output_shape[1] * output_shape[2] if len(output_shape) == 3 else 1
    macs = weight.numel() * positions if isinstance(module, nn.Conv2d | nn.Linear) and weight is not None else 0
    return Layer(
        name=name,
        type=_NAMES.get(kind, kind),
        precision="FLOAT",
        output_shape=output_shape,
        parameters=parameters,
        connections=macs + (bias.numel() * positions if macs and bias is not None else 0),
        macs=macs,
        memory_bytes=4 * (parameters + torch.Size(output_shape).numel()),
    )
