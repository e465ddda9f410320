"""The layer table of a PyTorch network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alexdeploy.specs import Field, Layer, Window, layer_name

_NAMES = {
    "Linear": "Gemm",
    "Conv2d": "Conv",
    "MaxPool2d": "MaxPool",
    "LocalResponseNorm": "LRN",
    "ReLU": "Relu",
    "BatchNorm2d": "BatchNormalization",
}
_ROUNDING = "Quantized"  # of ``zoo.fake_quantize``


def summarize(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Layer]:
    """Leaf modules in execution order, one after the other, with shapes and costs, found by one forward pass.

    They are named as in exported ONNX files. The image is zero and lies on torch's default device; on ``meta`` the
    pass costs nothing.
    """
    layers: list[Layer] = []
    field = Field()
    weighted = 0

    def record(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal field, weighted
        weighted += isinstance(module, nn.Conv2d | nn.Linear)
        before = tuple(layers[-1].output_shape) if layers else input_shape
        if isinstance(module, nn.Linear) and len(before) == 3:
            field = field.through(Window(kernel=before[1:]))
        window = _window(module)
        field = field.through(window) if window is not None else field
        layers.append(_layer(module, weighted, tuple(output.shape[1:]), window, field))

    handles = [module.register_forward_hook(record) for module in model.modules() if not list(module.children())]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _layer(module: nn.Module, number: int, output_shape: tuple[int, ...], window: Window | None, field: Field) -> Layer:
    kind = type(module).__name__.removeprefix(_ROUNDING)
    kind = _NAMES.get(kind, kind)
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    parameters = sum(p.numel() for p in module.parameters())
    positions = output_shape[1] * output_shape[2] if len(output_shape) == 3 else 1
    macs = weight.numel() * positions if isinstance(module, nn.Conv2d | nn.Linear) and weight is not None else 0
    return Layer(
        name=layer_name(kind, number),
        type=kind,
        precision="FLOAT",
        output_shape=output_shape,
        parameters=parameters,
        connections=macs + (bias.numel() * positions if macs and bias is not None else 0),
        macs=macs,
        memory_bytes=4 * (parameters + torch.Size(output_shape).numel()),
        window=window,
        receptive_field=field.size,
    )


def _window(module: nn.Module) -> Window | None:
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d):
        return None
    top, left = _pair(module.padding)
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    sizes = (_pair(module.kernel_size), _pair(module.stride))
    return Window(*sizes, (top, left, top, left), groups, _pair(module.dilation))


def _pair(value: Any) -> tuple[int, int]:
    height, width = value if isinstance(value, tuple) else (value, value)
    return int(height), int(width)
