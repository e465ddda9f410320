"""Weights that quantization harms least: equalized channels, rounding by error, and biases that keep the mean.

All of it is done from what calibration stored, without images. The graph keeps its operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy.graph.equalize import equalize, scale_factors
from alexdeploy.graph.names import name_unnamed
from alexdeploy.graph.qdq import QuantizedWeight, TensorRange, weight_scales
from alexdeploy.graph.weighted import WeightedNode, weighted_nodes
from alexdeploy.machine import cores
from alexdeploy.quantize.columns import from_rows, weight_rows
from alexdeploy.quantize.moments import LayerMoments, Moments
from alexdeploy.quantize.rounding import round_by_error


@dataclass(frozen=True)
class Refined:
    """A float model with equalized channels, and its weights as integers.

    ``nearest`` names the layers without moments, whose weights are rounded to the nearest as they are written.
    """

    model: ir.Model
    weights: dict[str, QuantizedWeight]
    nearest: tuple[str, ...]


def refine(model: ir.Model, ranges: Mapping[str, TensorRange], moments: Moments) -> Refined:
    """Choose integers for all weights of a float model, which is not changed.

    Args:
        model: a float graph.
        ranges: by tensor name, those that the activations will be quantized with.
        moments: of that model.
    """
    model, largest = name_unnamed(model), moments.channels
    equalized = equalize(model, largest, {name: seen.amax for name, seen in ranges.items()})
    factors = scale_factors(equalized)

    def quantized(weighted: WeightedNode) -> QuantizedWeight | None:
        found = moments.layer(weighted.name)
        return _quantize(weighted, found, factors.get(str(weighted.activation.name))) if found is not None else None

    layers = weighted_nodes(equalized)
    with ThreadPoolExecutor(cores()) as pool:
        weights = dict(zip([layer.name for layer in layers], pool.map(quantized, layers), strict=True))
    nearest = tuple(name for name, weight in weights.items() if weight is None)
    return Refined(equalized, {name: weight for name, weight in weights.items() if weight is not None}, nearest)


def _quantize(
    weighted: WeightedNode, moments: LayerMoments, factor: npt.NDArray[np.floating] | None
) -> QuantizedWeight:
    """The layer's integers; ``factor`` is by how much its input was enlarged since the moments were measured."""
    rows = weight_rows(weighted)
    groups, outputs, inputs = rows.shape
    enlarged = np.ones((groups, inputs)) if factor is None else np.repeat(factor, inputs * groups // len(factor))
    enlarged = enlarged.reshape(groups, inputs)
    scales = weight_scales(weighted.weight_array(), weighted.channel_axis)
    steps = scales.reshape(groups, outputs)
    levels = np.empty_like(rows)
    for group in range(groups):
        start = 0
        for block in moments.blocks:
            part = slice(start, start := start + block.shape[-1])
            size = enlarged[group, part]
            covariance = block[group] * size[:, None] * size
            levels[group, :, part] = round_by_error(rows[group, :, part], steps[group], covariance)
    shift = np.einsum("gok,gk->go", rows - levels * steps[:, :, None], moments.mean * enlarged)
    return QuantizedWeight(from_rows(weighted, levels).astype(np.int8), scales, _corrected(weighted, shift.reshape(-1)))


def _corrected(weighted: WeightedNode, shift: npt.NDArray[np.float64]) -> npt.NDArray[np.float32] | None:
    """The bias that takes up what rounding shifts the mean by (M. Nagel et al., ICCV 2019, section 4.2).

    None for a MatMul, which has no bias, and where the bias or the product is scaled, computed or not one per channel.
    """
    node = weighted.node
    scaled = any(name in node.attributes and node.attributes[name].as_float() != 1 for name in ("alpha", "beta"))
    if node.op_type == "MatMul" or scaled:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return shift.astype(np.float32)
    if bias.const_value is None or bias.const_value.size != shift.size:
        return None
    return (bias.const_value.numpy().reshape(-1) + shift).astype(np.float32)
