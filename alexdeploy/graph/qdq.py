"""Writing QuantizeLinear/DequantizeLinear (Q/DQ) into a float graph, in TensorRT's dialect.

TensorRT fuses a Conv or Gemm into an INT8 kernel when both its inputs come through Q/DQ, per-tensor for the
activation, per output channel for the weight, symmetric, with explicit int8 zero points, and nothing on its bias or
output. LRN and the rest stay float between DQ and the next Q.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.errors import InputError
from alexdeploy.graph.weighted import WeightedNode, weighted_nodes

INT8_MAX = 127
_UNUSED_SCALE = 1.0  # for a channel or tensor of zeros, where any positive scale is exact


def symmetric_scale(amax: npt.NDArray[np.floating] | float) -> npt.NDArray[np.float32]:
    """amax/127 as float32, so that ±amax map to ±127 (TensorRT's symmetric int8). Zero amax gives scale 1."""
    scale = np.asarray(amax, dtype=np.float64) / INT8_MAX
    # below the smallest normal float32 the division by the scale would overflow
    return np.where(scale < np.finfo(np.float32).tiny, _UNUSED_SCALE, scale).astype(np.float32)


def quantize_weight(
    weight: npt.NDArray[np.floating], channel_axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Int8 weight in [-127, 127] (half to even) and one scale per index of ``channel_axis``."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    scale = symmetric_scale(np.max(np.abs(weight), axis=others))
    shape = [1] * weight.ndim
    shape[channel_axis] = -1
    levels = np.rint(weight / scale.reshape(shape))
    return np.clip(levels, -INT8_MAX, INT8_MAX).astype(np.int8), scale


def insert_qdq(model: ir.Model, amax: Mapping[str, float]) -> ir.Model:
    """Quantize every Conv, Gemm and MatMul that has constant weights.

    Args:
        model: a float graph; not changed.
        amax: largest |activation| to represent, by tensor name, for the input of each of those nodes.

    Raises:
        InputError: the graph is quantized already, has nothing to quantize, or ``amax`` lacks a tensor.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph):
        raise InputError("the graph already holds QuantizeLinear/DequantizeLinear; quantize the float model instead")
    model = model.clone()
    nodes = weighted_nodes(model)
    if not nodes:
        raise InputError("the graph has no Conv, Gemm or MatMul with constant weights; nothing to quantize")
    missing = sorted({str(w.activation.name) for w in nodes} - amax.keys())
    if missing:
        raise InputError(f"the ranges lack tensor '{missing[0]}' ({len(missing)} missing); calibrate this model again")
    dequantized: dict[ir.Value, ir.Value] = {}
    for weighted in nodes:
        activation = weighted.activation
        if activation not in dequantized:
            dequantized[activation] = _quantize_activation(weighted, float(amax[str(activation.name)]))
        weighted.node.replace_input_with(0, dequantized[activation])
        weighted.node.replace_input_with(1, _dequantized_weight(model.graph, weighted))
    common.RemoveUnusedNodesPass()(model)
    return model


def _quantize_activation(weighted: WeightedNode, amax: float) -> ir.Value:
    """Q → DQ in front of ``weighted``; returns the dequantized activation."""
    graph, source = weighted.node.graph, weighted.activation
    assert isinstance(graph, ir.Graph)
    scale = _initializer(graph, f"{source.name}.scale", symmetric_scale(amax))
    zero = _initializer(graph, f"{source.name}.zero_point", np.zeros((), np.int8))
    quantize = ir.node("QuantizeLinear", [source, scale, zero], name=f"{source.name}.quantize")
    quantize.outputs[0].name = f"{source.name}.q"
    quantize.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    dequantize = _dequantize(quantize.outputs[0], scale, zero, str(source.name), axis=None)
    graph.insert_before(weighted.node, [quantize, dequantize])
    return dequantize.outputs[0]


def _dequantized_weight(graph: ir.Graph, weighted: WeightedNode) -> ir.Value:
    levels, scales = quantize_weight(weighted.weight_array(), weighted.channel_axis)
    # the weight may be shared by name with another node; the node's name is unique
    base = f"{weighted.name}.weight"
    quantized = _initializer(graph, f"{base}.q", levels)
    scale = _initializer(graph, f"{base}.scale", scales)
    zero = _initializer(graph, f"{base}.zero_point", np.zeros(scales.shape, np.int8))
    dequantize = _dequantize(quantized, scale, zero, base, axis=weighted.channel_axis)
    graph.insert_before(weighted.node, [dequantize])
    return dequantize.outputs[0]


def _dequantize(value: ir.Value, scale: ir.Value, zero: ir.Value, base: str, axis: int | None) -> ir.Node:
    attributes = {} if axis is None else {"axis": axis}
    node = ir.node("DequantizeLinear", [value, scale, zero], attributes, name=f"{base}.dequantize")
    node.outputs[0].name = f"{base}.dq"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _initializer(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
