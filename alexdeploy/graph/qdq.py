"""Writing QuantizeLinear/DequantizeLinear (Q/DQ) into a float graph, in the dialect of the runtime that is to run it.

All dialects quantize the activation per tensor and the weight per output channel of each Conv, Gemm and MatMul, the
weight symmetric int8. They differ in what the runtime's integer kernels ask for besides:

``tensorrt``: symmetric int8 activations, explicit zero points, nothing on bias or output; LRN and the rest stay float
between DQ and the next Q.
``openvino``: the same places; activations that are never negative as uint8, which doubles their resolution.
``onnxruntime``: uint8 activations, the output quantized too and the bias int32, or its CPU kernels stay float.

FP8 (E4M3, largest value 448) is written in the places of ``tensorrt``, in opset 19 or later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.errors import InputError
from alexdeploy.graph.names import name_unnamed, new_constant, taken_names, unique
from alexdeploy.graph.opset import FP8_OPSET, raised
from alexdeploy.graph.weighted import WeightedNode, bias_per_channel, half_weights, weighted_nodes
from alexdeploy.specs import Dialect

INT8_MAX, UINT8_MAX, FP8_MAX = 127, 255, 448
_FIRST_OPSET = 13
_MONOTONE = frozenset({"MaxPool", "Flatten", "Reshape", "Identity", "Dropout"})  # commute with quantization
_UNUSED_SCALE = 1.0  # for a channel or tensor of zeros, where any positive scale is exact
_BIAS_MAX = 2.0**30  # of an int32 bias: the products are added to it in int32, and need room as well


def symmetric_scale(amax: npt.NDArray[np.floating] | float, levels: int = INT8_MAX) -> npt.NDArray[np.float32]:
    """amax/127 as float32, so that ±amax map to ±127 (TensorRT's symmetric int8). Zero amax gives scale 1.

    ``levels``: the largest level, where that is not 127.
    """
    scale = np.asarray(amax, dtype=np.float64) / levels
    # below the smallest normal float32 the division by the scale would overflow
    return np.where(scale < np.finfo(np.float32).tiny, _UNUSED_SCALE, scale).astype(np.float32)


def weight_scales(
    weight: npt.NDArray[np.floating], channel_axis: int, largest: int = INT8_MAX
) -> npt.NDArray[np.float32]:
    """The scale per index of ``channel_axis`` that maps the largest magnitude to the ``largest`` level."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    return symmetric_scale(np.maximum(weight.max(axis=others), -weight.min(axis=others)), largest)


def quantize_weight(
    weight: npt.NDArray[np.floating], channel_axis: int, *, fp8: bool = False
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:
    """Int8 weight in [-127, 127] or E4M3 in [-448, 448], each rounded to the nearest (half to even), and its scales."""
    largest = FP8_MAX if fp8 else INT8_MAX
    scale = weight_scales(weight, channel_axis, largest)
    shape = [1] * weight.ndim
    shape[channel_axis] = -1
    levels = np.clip(weight / scale.reshape(shape), -largest, largest)
    return levels.astype(ml_dtypes.float8_e4m3fn) if fp8 else np.rint(levels).astype(np.int8), scale


@dataclass(frozen=True)
class QuantizedWeight:
    """A layer's weight as levels, and its bias where the rounding shifted what the layer gives on average.

    Attributes:
        levels: int8 in [-127, 127] or E4M3, of the weight's shape.
        scales: float32, one per output channel.
        bias: float32, one per output channel, in place of the layer's own; None leaves that as it is.
    """

    levels: npt.NDArray[np.generic]
    scales: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class TensorRange:
    """The range of an activation: |x| up to ``amax``, and if x is ever negative."""

    amax: float
    nonnegative: bool = False


def calibration_tensors(model: ir.Model) -> list[str]:
    """Activations whose ranges the dialects need.

    They are the input of every weighted node, and those outputs that do not become such an input by pooling alone.
    """
    nodes = weighted_nodes(model)
    names = {str(node.activation.name) for node in nodes}
    outputs = [out for node in nodes if (out := _output_of(node)) is not None and _range_name(out, names) is None]
    return list(dict.fromkeys([str(node.activation.name) for node in nodes] + [str(out.name) for out in outputs]))


def insert_qdq(
    model: ir.Model,
    ranges: Mapping[str, TensorRange],
    *,
    dialect: Dialect = "tensorrt",
    keep_float: Collection[str] = (),
    weights: Mapping[str, QuantizedWeight] = MappingProxyType({}),
    fp8: bool = False,
) -> ir.Model:
    """Quantize every Conv, Gemm and MatMul that has constant weights.

    Args:
        model: a float graph; not changed.
        ranges: by tensor name, for at least ``calibration_tensors(model)``.
        dialect: see the module.
        keep_float: names of nodes to leave alone.
        weights: by name of the node, the integers to write; the others are rounded to the nearest.
        fp8: FP8 in place of INT8, in the dialect tensorrt; raises the opset to 19 where it is lower.

    Raises:
        InputError: the graph is quantized, FP16 or BF16, has nothing to quantize, or ``ranges`` lacks a tensor.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph):
        raise InputError("the graph already holds QuantizeLinear/DequantizeLinear; quantize the float model instead")
    held = half_weights(model)
    if held is not None:
        raise InputError(
            f"the graph holds {held} weights; quantize the FP32 model it was made from, with {held} around it if wanted"
        )
    opset = model.opset_imports.get("", 0)
    if opset < _FIRST_OPSET:
        raise InputError(
            f"the graph has opset {opset}; Q/DQ per channel needs {_FIRST_OPSET} or later; adopt the file "
            "(alexdeploy adopt), which raises it"
        )
    model = name_unnamed(raised(model, FP8_OPSET) if fp8 else model)  # what is written is named after the nodes
    nodes = weighted_nodes(model)
    if not nodes:
        raise InputError(
            "the graph has no Conv, Gemm or MatMul with constant weights (of a MatMul a matrix); nothing to quantize"
        )
    needed = {str(node.activation.name) for node in nodes}
    missing = sorted(needed - ranges.keys())
    if missing:
        raise InputError(f"the ranges lack tensor '{missing[0]}' ({len(missing)} missing); calibrate this model again")
    writer = _Writer(model, ranges, dialect, fp8=fp8)
    chosen = [node for node in nodes if node.name not in keep_float]
    with ThreadPoolExecutor() as pool:
        rounded = pool.map(lambda one: weights.get(one.name) or _nearest(one, fp8=fp8), chosen)
        for weighted, quantized in zip(chosen, rounded, strict=True):
            activation = writer.activation(weighted)
            weight = writer.weight(weighted, quantized)
            weighted.node.replace_input_with(0, activation)
            weighted.node.replace_input_with(1, weight)
            if quantized.bias is not None:
                writer.bias(weighted, quantized.bias)
    if dialect == "onnxruntime":
        for weighted in chosen:
            writer.integer_bias(weighted)
            writer.quantize_output(weighted, needed)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    return model


def _nearest(weighted: WeightedNode, *, fp8: bool) -> QuantizedWeight:
    return QuantizedWeight(*quantize_weight(weighted.weight_array(), weighted.channel_axis, fp8=fp8))


class _Writer:
    """Adds Q/DQ to one graph; each tensor is quantized once."""

    def __init__(self, model: ir.Model, ranges: Mapping[str, TensorRange], dialect: Dialect, *, fp8: bool) -> None:
        self._graph, self._ranges, self._dialect, self._fp8 = model.graph, ranges, dialect, fp8
        self._taken = taken_names(model)
        self._dequantized: dict[ir.Value, ir.Value] = {}
        self._scales: dict[str, tuple[float, npt.NDArray[np.float32]]] = {}

    def activation(self, weighted: WeightedNode) -> ir.Value:
        """The dequantized activation of ``weighted``; remembers its scale for the bias."""
        source = weighted.activation
        self._scales[weighted.name] = (self._scale_and_zero(str(source.name))[0], np.ones(1, np.float32))
        return self._dequantized.get(source) or self._quantize(source, str(source.name))

    def weight(self, weighted: WeightedNode, quantized: QuantizedWeight) -> ir.Value:
        levels, scales = quantized.levels, quantized.scales
        if self._dialect == "onnxruntime":
            levels, scales = self._with_room_for_bias(weighted, quantized)
        self._scales[weighted.name] = (self._scales[weighted.name][0], scales)
        base = f"{weighted.name}.weight"  # the weight's own name may be shared; the node's is unique
        value = self._initializer(f"{base}.q", levels)
        return self._dequantize(value, scales, np.zeros(scales.shape, levels.dtype), base, weighted.channel_axis)

    def _with_room_for_bias(
        self, weighted: WeightedNode, quantized: QuantizedWeight
    ) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:
        """Levels and scales with which the bias fits into int32.

        A channel of tiny weights and an ordinary bias gets a larger scale. What its weights lose by that is below
        2⁻³⁰ of the bias for each value that they multiply.
        """
        levels, scales = quantized.levels, quantized.scales
        bias = quantized.bias if quantized.bias is not None else bias_per_channel(weighted.node, scales.size)
        if bias is None:
            return levels, scales  # it stays float
        unit = self._scales[weighted.name][0]
        least = np.maximum(np.abs(bias.astype(np.float64)) / _BIAS_MAX, np.finfo(np.float32).tiny) / unit
        small = scales < least
        if not small.any():
            return levels, scales
        enlarged = np.where(small, least * (1 + 2.0**-20), scales).astype(np.float32)  # no less after rounding
        shape = [1] * levels.ndim
        shape[weighted.channel_axis] = -1
        factor = (scales.astype(np.float64) / enlarged).reshape(shape)
        return np.rint(levels.astype(np.float64) * factor).astype(levels.dtype), enlarged

    def bias(self, weighted: WeightedNode, bias: npt.NDArray[np.float32]) -> None:
        """Another bias for a Conv or Gemm, or one where it has none."""
        weighted.node.resize_inputs(3)
        weighted.node.replace_input_with(2, self._initializer(f"{weighted.name}.bias.corrected", bias))

    def integer_bias(self, weighted: WeightedNode) -> None:
        """Bias as int32 in units of activation scale × weight scale."""
        node = weighted.node
        scale, weight_scales = self._scales[weighted.name]
        values = bias_per_channel(node, weight_scales.size)
        if len(node.inputs) < 3 or node.inputs[2] is None or values is None:
            return  # none, or one per row of a Gemm: that stays float
        units = (np.float64(scale) * weight_scales).astype(np.float32)
        levels = np.rint(values / units.astype(np.float64)).astype(np.int32)
        base = f"{weighted.name}.bias"
        value = self._initializer(f"{base}.q", levels)
        node.replace_input_with(2, self._dequantize(value, units, np.zeros(units.shape, np.int32), base, 0))

    def quantize_output(self, weighted: WeightedNode, activations: set[str]) -> None:
        """Q/DQ behind the node, or behind its ReLU, for every user; with the range of the input that it becomes."""
        output = _output_of(weighted)
        if output is None or output in self._dequantized:
            return
        name = _range_name(output, activations) or str(output.name)
        if name not in self._ranges:
            return
        users = list(output.uses())
        dequantized = self._quantize(output, name)
        for user, index in users:
            user.replace_input_with(index, dequantized)

    def _scale_and_zero(self, name: str) -> tuple[float, npt.NDArray[np.generic]]:
        """Scale and zero point of an activation: uint8 from 0 or around 128, int8, or E4M3."""
        seen = self._ranges[name]
        if self._fp8:
            return float(symmetric_scale(seen.amax, FP8_MAX)), np.zeros((), ml_dtypes.float8_e4m3fn)
        if self._dialect != "tensorrt" and seen.nonnegative:
            return float(symmetric_scale(seen.amax, UINT8_MAX)), np.zeros((), np.uint8)
        if self._dialect == "onnxruntime":
            return float(symmetric_scale(seen.amax)), np.full((), 128, np.uint8)
        return float(symmetric_scale(seen.amax)), np.zeros((), np.int8)

    def _quantize(self, source: ir.Value, range_name: str) -> ir.Value:
        """Q → DQ behind ``source``; the nodes go to the end of the graph, which is sorted when all are written."""
        scale, zero = self._scale_and_zero(range_name)
        name = str(source.name)
        scale_value = self._initializer(f"{name}.scale", np.asarray(scale, np.float32))
        zero_value = self._initializer(f"{name}.zero_point", zero)
        node = ir.node("QuantizeLinear", [source, scale_value, zero_value], name=self._new(f"{name}.quantize"))
        node.outputs[0].name = self._new(f"{name}.q")
        node.outputs[0].type = ir.TensorType(zero_value.dtype or ir.DataType.INT8)
        self._graph.append(node)
        self._dequantized[source] = self._append_dequantize(node.outputs[0], scale_value, zero_value, name, None)
        return self._dequantized[source]

    def _dequantize(
        self,
        value: ir.Value,
        scales: npt.NDArray[np.float32],
        zeros: npt.NDArray[np.generic],
        base: str,
        axis: int,
    ) -> ir.Value:
        scale_value, zero_value = (
            self._initializer(f"{base}.scale", scales),
            self._initializer(f"{base}.zero_point", zeros),
        )
        return self._append_dequantize(value, scale_value, zero_value, base, axis)

    def _append_dequantize(
        self, value: ir.Value, scale: ir.Value, zero: ir.Value, base: str, axis: int | None
    ) -> ir.Value:
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node("DequantizeLinear", [value, scale, zero], attributes, name=self._new(f"{base}.dequantize"))
        node.outputs[0].name = self._new(f"{base}.dq")
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self._graph.append(node)
        return node.outputs[0]

    def _new(self, name: str) -> str:
        """The name, or one like it where a foreign graph has it already."""
        return unique(name, self._taken)

    def _initializer(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        return new_constant(self._graph, name, array, self._taken)


def _output_of(weighted: WeightedNode) -> ir.Value | None:
    """The value to quantize as the node's output: that of its ReLU if nothing else reads it; None at a graph output."""
    output = weighted.node.outputs[0]
    users = output.consumers()
    if len(users) == 1 and users[0].op_type == "Relu" and not output.is_graph_output():
        output = users[0].outputs[0]
    return None if output.is_graph_output() else output


def _range_name(output: ir.Value, activations: Collection[str]) -> str | None:
    """The quantized input that ``output`` becomes through pooling and reshaping alone.

    Its range serves both, since clipping and rounding commute with taking a maximum.
    """
    value = output
    while str(value.name) not in activations:
        users = value.consumers()
        if len(users) != 1 or users[0].op_type not in _MONOTONE or value.is_graph_output():
            return None
        value = users[0].outputs[0]
    return str(value.name)
