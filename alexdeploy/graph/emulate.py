"""bfloat16 and FP8 for ONNX Runtime on a CPU, which has no kernels of them: FP32 arithmetic on rounded values.

A kernel of bfloat16 multiplies exactly, sums in FP32 and rounds its result once; so does this, but for the order of the
sums. FP8 is computed so by ONNX Runtime itself, from its Q/DQ; but its optimizers (1.32) take a Relu before an FP8
QuantizeLinear for superfluous, so that negative values pass, and fail at a Clip there.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_FLOAT, _BF16, _FP8 = ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN
# what they give is one of the values that they read, so it is rounded already
_EXACT = frozenset(
    {"Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape"}
)
_EXACT |= {"Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def for_cpu(model: ir.Model) -> ir.Model:
    """The same function in FP32 with a rounding to bfloat16 wherever the graph has a bfloat16 result.

    Names stay; bfloat16 tensors hold FP32 now. A model without bfloat16 and FP8 is returned as it is.
    """
    found = {value.dtype for node in model.graph for value in node.outputs}
    found |= {value.dtype for value in model.graph.initializers.values()}
    if found.isdisjoint((_BF16, _FP8)):
        return model
    model = model.clone()
    _without_fp8_quantize(model.graph)
    _without_bf16(model.graph)
    return model


def _without_fp8_quantize(graph: ir.Graph) -> None:
    """QuantizeLinear to FP8 as a division by the scale and a Cast, which saturates and rounds in the same way.

    One with a scale per channel, which only weights have, stays.
    """
    for node in list(graph):
        levels = node.outputs[0]
        source, scale = node.inputs[:2] if node.op_type == "QuantizeLinear" else (None, None)
        if source is None or scale is None or levels.dtype != _FP8:
            continue
        if scale.shape is None or len(scale.shape):
            continue
        divide = ir.node("Div", [source, scale], name=f"{node.name}.divide")
        divide.outputs[0].name, divide.outputs[0].type = f"{levels.name}.exact", ir.TensorType(_FLOAT)
        divide.outputs[0].shape = source.shape
        cast = ir.node("Cast", divide.outputs, {"to": int(_FP8)}, name=node.name)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [divide, cast], [levels], cast.outputs)


def _without_bf16(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        if value.dtype == _BF16 and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(_FLOAT)
    for node in list(graph):
        for output in node.outputs:
            if output.dtype == _BF16:
                output.type = ir.TensorType(_FLOAT)
                if node.op_type not in _EXACT:
                    _round(graph, node, output)


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """FP32 → bfloat16 → FP32 behind ``output``, whose name and users the result takes."""
    name, users = output.name, list(output.uses())
    output.name = f"{name}.exact"
    if node.op_type == "Cast":  # it rounds by itself
        output.type, rounded = ir.TensorType(_BF16), node
    else:
        rounded = ir.node("Cast", [output], {"to": int(_BF16)}, name=f"{name}.round")
        rounded.outputs[0].name, rounded.outputs[0].type = f"{name}.rounded", ir.TensorType(_BF16)
        graph.insert_after(node, [rounded])
    back = ir.node("Cast", rounded.outputs, {"to": int(_FLOAT)}, name=f"{name}.widen")
    graph.insert_after(rounded, [back])
    result = back.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(_FLOAT), output.shape
    for user, index in users:
        user.replace_input_with(index, result)
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = result
