"""bfloat16 for runtimes without its kernels, such as ONNX Runtime on a CPU: FP32 arithmetic, rounded to bfloat16.

A kernel of bfloat16 multiplies exactly, sums in FP32 and rounds its result once; so does this, but for the order of the
sums. FP8 needs no such form: ONNX Runtime has Q/DQ in FP8, and computes between them in FP32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_FLOAT, _BF16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16
# what they give is one of the values that they read, so it is rounded already
_EXACT = frozenset({"Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape"})
_EXACT |= {"Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def without_bf16(model: ir.Model) -> ir.Model:
    """The same function in FP32 with a rounding to bfloat16 wherever the graph has a bfloat16 result.

    The names of the tensors stay, and hold FP32 now. A model without bfloat16 is returned as it is.
    """
    found = {value.dtype for node in model.graph for value in node.outputs}
    if _BF16 not in found | {value.dtype for value in model.graph.initializers.values()}:
        return model
    model = model.clone()
    graph = model.graph
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
    return model


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
