"""The layer table of an ONNX model."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.graph.weighted import dequantize_of, is_weighted
from alexdeploy.specs import Layer

_TRT_NAMES = {ir.DataType.FLOAT: "FLOAT", ir.DataType.FLOAT16: "HALF", ir.DataType.INT8: "INT8"}


def layer_table(model: ir.Model) -> list[Layer]:
    """One row per node except Q/DQ and Cast, with shapes inferred by ONNX; costs are for one image."""
    model = model.clone()
    common.ShapeInferencePass()(model)
    hidden = ("QuantizeLinear", "DequantizeLinear", "Cast")
    return [_layer(node) for node in model.graph if node.op_type not in hidden]


def _layer(node: ir.Node) -> Layer:
    output = node.outputs[0]
    shape = tuple(dim for dim in (output.shape or ())[1:] if isinstance(dim, int))
    constants = [constant for value in node.inputs if (constant := _constant(value)) is not None]
    parameters = sum(constant.size for constant in constants) if is_weighted(node) or _normalises(node) else 0
    macs = _macs(node, shape, constants)
    bias = math.prod(shape) if macs and len(constants) > 1 else 0
    return Layer(
        name=str(node.name),
        type=node.op_type,
        precision=_precision(node),
        output_shape=shape,
        parameters=parameters,
        connections=macs + bias,
        macs=macs,
        memory_bytes=sum(constant.nbytes for constant in constants)
        + math.ceil(math.prod(shape) * (output.dtype.itemsize if output.dtype else 4)),
    )


def _normalises(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization"


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant behind ``value``, seen through Q/DQ and Cast."""
    dequantize = dequantize_of(value)
    if dequantize is not None:
        value = dequantize.inputs[0]
    return value.const_value if value is not None else None


def _macs(node: ir.Node, output_shape: tuple[int, ...], constants: list[ir.TensorProtocol]) -> int:
    if not is_weighted(node) or not constants:
        return 0
    weight = constants[0].size
    if node.op_type == "Conv":
        return weight * math.prod(output_shape[1:])
    return weight * math.prod(output_shape[:-1])


def _precision(node: ir.Node) -> str:
    """INT8 when both inputs of a weighted node are dequantized; otherwise the type of its first output."""
    if is_weighted(node) and all(dequantize_of(value) is not None for value in node.inputs[:2]):
        return "INT8"
    dtype = node.outputs[0].dtype
    return _TRT_NAMES.get(dtype, dtype.name) if dtype is not None else "FLOAT"
