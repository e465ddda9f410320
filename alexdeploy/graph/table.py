"""The layer table of an ONNX model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from alexdeploy.contract import METADATA_KEY
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.model import contract_of
from alexdeploy.graph.weighted import TENSORRT_NAMES, dequantize_of, is_weighted, quantized_type
from alexdeploy.specs import Field, Layer, Window


def layer_table(model: ir.Model) -> list[Layer]:
    """One row per node except Q/DQ and Cast, with shapes inferred by ONNX; costs are for one image.

    Of a model that takes images of any size the costs are at the size of its contract.
    """
    model = model.clone()
    if METADATA_KEY in model.metadata_props:
        for value in model.graph.inputs:
            value.shape = ir.Shape(["batch", *contract_of(model, "the model").input_shape])
    infer_shapes(model)
    hidden = ("QuantizeLinear", "DequantizeLinear", "Cast")
    fields: dict[ir.Value, Field] = dict.fromkeys(model.graph.inputs, Field())
    layers = []
    for node in model.graph:
        window = _window(node)
        seen = [fields[value] for value in node.inputs if value in fields]
        field = max(seen, key=lambda f: f.size, default=None)
        if field is not None:
            field = field.through(window or _whole_map(node))
            fields.update(dict.fromkeys(node.outputs, field))
        if node.op_type not in hidden:
            layers.append(_layer(node, window, field))
    return layers


def _window(node: ir.Node) -> Window | None:
    if node.op_type not in ("Conv", "MaxPool", "AveragePool"):
        return None
    weight = _constant(node.inputs[1]) if node.op_type == "Conv" else None
    default = list(weight.numpy().shape[2:]) if weight is not None else []
    kernel = node.attributes.get_ints("kernel_shape", default)
    if len(kernel) != 2:
        return None
    stride, dilation = (node.attributes.get_ints(name, [1, 1]) for name in ("strides", "dilations"))
    top, left, bottom, right = node.attributes.get_ints("pads", _automatic_pads(node, kernel, stride, dilation))
    return Window(
        kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]),
        padding=(top, left, bottom, right),
        groups=node.attributes.get_int("group", 1),
        dilation=(dilation[0], dilation[1]),
    )


def _automatic_pads(
    node: ir.Node, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """(t, l, b, r) of SAME_UPPER and SAME_LOWER (ONNX operator Conv), which the odd pixel tells apart; else 0."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    before, after = (value.shape if value is not None else None for value in (node.inputs[0], node.outputs[0]))
    if not mode.startswith("SAME") or before is None or after is None:
        return (0, 0, 0, 0)
    small: list[int] = []
    large: list[int] = []
    for axis, (size, count) in enumerate(zip(before[2:], after[2:], strict=True)):
        total = 0
        if isinstance(size, int) and isinstance(count, int):
            reach = dilation[axis] * (kernel[axis] - 1) + 1
            total = max((count - 1) * stride[axis] + reach - size, 0)
        small.append(total // 2)
        large.append(total - total // 2)
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


def _whole_map(node: ir.Node) -> Window:
    """A layer that flattens or averages a map sees all of it at once."""
    before, after = (value.shape if value is not None else None for value in (node.inputs[0], node.outputs[0]))
    if (
        before is None
        or len(before) != 4
        or (node.op_type != "GlobalAveragePool" and (after is None or len(after) != 2))
    ):
        return Window()
    height, width = (dim if isinstance(dim, int) else 1 for dim in before[2:])
    return Window(kernel=(height, width))


def _layer(node: ir.Node, window: Window | None, field: Field | None) -> Layer:
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
        memory_bytes=sum(constant.nbytes for constant in constants if constant.dtype != ir.DataType.STRING)
        + math.ceil(math.prod(shape) * _itemsize(output)),
        window=window,
        receptive_field=field.size if field is not None else None,
    )


def _itemsize(value: ir.Value) -> float:
    """Bytes of an element; 4 where it is not known, or text."""
    return 4 if value.dtype in (None, ir.DataType.UNDEFINED, ir.DataType.STRING) else value.dtype.itemsize


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
    """The type that Q/DQ requests; without it, the type of the first output."""
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    return quantized_type(node) or TENSORRT_NAMES.get(dtype, dtype.name)
