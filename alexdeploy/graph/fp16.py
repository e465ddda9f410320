"""FP16 written into the graph: half-precision weights and arithmetic, FP32 at the borders and on the islands.

TensorRT 11 and TensorRT-RTX have no FP16 flag, and a strongly typed network does what the graph says; so do ONNX
Runtime and OpenVINO. Inputs and outputs stay FP32. Islands are LRN (its sum of squares leaves FP16's range at
activations of about 114 over five channels), Q/DQ (whose scales stay FP32, the form that every runtime accepts), and
nodes whose constants do not fit FP16.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.errors import InputError

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# Cast keeps the type it names; Resize takes its scales as float32.
_ISLANDS = frozenset({"LRN", "QuantizeLinear", "DequantizeLinear", "Cast", "Resize"})


def to_fp16(model: ir.Model) -> ir.Model:
    """The same function with FP16 arithmetic outside the islands; input and output names and types unchanged.

    Raises:
        InputError: the graph already holds FP16 values.
    """
    model = model.clone()
    common.ShapeInferencePass()(model)
    graph = model.graph
    if any(value.dtype == _HALF for value in graph.initializers.values()):
        raise InputError("the graph already holds FP16 weights; use --fp16 on the float model")
    outputs = list(graph.outputs)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        wanted = _FLOAT if node.op_type in _ISLANDS or _overflows(node) else _HALF
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_FLOAT, _HALF) and value.dtype != wanted:
                node.replace_input_with(index, _as_type(graph, node, value, wanted, casts))
        for output in node.outputs:
            if output.dtype == _FLOAT and wanted == _HALF:
                output.type = ir.TensorType(_HALF)
    for index, output in enumerate(outputs):
        if output.dtype == _HALF:
            _restore_output(graph, index, output)
    common.RemoveUnusedNodesPass()(model)
    return model


def _overflows(node: ir.Node) -> bool:
    """Whether a constant of the node leaves FP16's range (±65504)."""
    limit = float(np.finfo(np.float16).max)
    for value in node.inputs:
        if value is not None and value.const_value is not None and value.dtype == _FLOAT:
            array = value.const_value.numpy()
            if array.size and float(np.max(np.abs(array))) > limit:
                return True
    return False


def _as_type(
    graph: ir.Graph,
    user: ir.Node,
    value: ir.Value,
    wanted: ir.DataType,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> ir.Value:
    """``value`` in the wanted type: a converted constant, or one Cast shared by all its users."""
    if (value, wanted) not in casts:
        suffix = "fp16" if wanted == _HALF else "fp32"
        name = f"{value.name}.{suffix}"
        if value.const_value is not None:
            converted = ir.val(name, const_value=ir.tensor(value.const_value.numpy().astype(np.float16), name=name))
            graph.register_initializer(converted)
        else:
            cast = ir.node("Cast", [value], {"to": int(wanted)}, name=f"{value.name}.to_{suffix}")
            converted = cast.outputs[0]
            converted.name, converted.type, converted.shape = name, ir.TensorType(wanted), value.shape
            graph.insert_before(user, [cast])
        casts[value, wanted] = converted
    return casts[value, wanted]


def _restore_output(graph: ir.Graph, index: int, output: ir.Value) -> None:
    """Cast a half-precision graph output back to FP32 under its own name."""
    name, last = output.name, output.producer()
    assert last is not None
    output.name = f"{name}.fp16"
    cast = ir.node("Cast", [output], {"to": int(_FLOAT)}, name=f"{name}.to_fp32")
    result = cast.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(_FLOAT), output.shape
    graph.insert_after(last, [cast])
    graph.outputs[index] = result
