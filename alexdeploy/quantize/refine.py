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
from alexdeploy.graph.weighted import WeightedNode, bias_per_channel, weighted_nodes
from alexdeploy.machine import cores
from alexdeploy.quantize.columns import from_rows, weight_rows
from alexdeploy.quantize.moments import LayerMoments, Moments
from alexdeploy.quantize.rounding import round_by_error

_ROWS = 512  # of a weight at once
# alexnet-half, channels evened out: 30.4 -> 22.4 dB by 16 images, 31.2 -> 29.4 by 32, 36.5 -> 38.0 by 64; by half the
# factors, or by a tenth of them, it loses as well
_FEWEST_IMAGES = 64


@dataclass(frozen=True)
class Refined:
    """A float model with equalized channels, and its weights as integers.

    ``nearest`` names the layers without moments, or with infinite ones, whose weights are rounded to the nearest as
    they are written.
    """

    model: ir.Model
    weights: dict[str, QuantizedWeight]
    nearest: tuple[str, ...]


def refine(model: ir.Model, ranges: Mapping[str, TensorRange], moments: Moments, images: int) -> Refined:
    """Choose integers for all weights of a float model, which is not changed.

    Args:
        model: a float graph.
        ranges: by tensor name, those that the activations will be quantized with.
        moments: of that model.
        images: that the moments are of; of fewer than 64 the largest values of channels are no guide to others.
    """
    largest = moments.channels if images >= _FEWEST_IMAGES else {}
    equalized = equalize(name_unnamed(model), largest, {name: seen.amax for name, seen in ranges.items()})
    factors = scale_factors(equalized)

    def quantized(weighted: WeightedNode) -> QuantizedWeight | None:
        found = moments.layer(weighted.name)
        if found is None or not all(np.isfinite(array).all() for array in (found.mean, *found.blocks)):
            return None
        return _quantize(weighted, found, factors.get(str(weighted.activation.name)))

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
    mean, bias = moments.mean * enlarged, _bias_to_correct(weighted.node, groups * outputs)
    scales = weight_scales(rows.reshape(groups * outputs, inputs), 0)
    steps = scales.reshape(groups, outputs)
    levels = np.empty(rows.shape, np.int8)
    for group in range(groups):
        start = 0
        for block in moments.blocks:
            part = slice(start, start := start + block.shape[-1])
            size = enlarged[group, part]
            second = block[group] * size[:, None] * size
            if bias is None:  # a shift of the mean counts as any other error
                second += np.outer(mean[group, part], mean[group, part])
            levels[group, :, part] = round_by_error(rows[group, :, part], steps[group], second)
    corrected = None if bias is None else (bias + _shift(rows, levels, steps, mean)).astype(np.float32)
    return QuantizedWeight(from_rows(weighted, levels), scales, corrected)


def _shift(
    rows: npt.NDArray[np.floating],
    levels: npt.NDArray[np.int8],
    steps: npt.NDArray[np.float32],
    mean: npt.NDArray[np.floating],
) -> npt.NDArray[np.float64]:
    """By how much each output falls on average: (groups · outputs,). A few rows at a time, which float64 enlarges."""
    shift = np.empty(rows.shape[:2])
    for start in range(0, rows.shape[1], _ROWS):
        part = slice(start, start + _ROWS)
        lost = rows[:, part].astype(np.float64) - levels[:, part] * steps[:, part, None].astype(np.float64)
        shift[:, part] = np.einsum("gok,gk->go", lost, mean)
    return shift.reshape(-1)


def _bias_to_correct(node: ir.Node, channels: int) -> npt.NDArray[np.floating] | None:
    """The bias, which takes up what rounding shifts the mean by (M. Nagel et al., ICCV 2019, section 4.2).

    None for a MatMul, which has no bias, and where the bias or the product is scaled, computed or not one per channel.
    """
    scaled = any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta"))
    return None if node.op_type == "MatMul" or scaled else bias_per_channel(node, channels)
