"""Nodes that compute with constants alone, replaced by what they compute.

Exporters leave weights behind Identity and Transpose, and axes behind Reshape, where neither quantization nor
TensorRT's parser looks for them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})  # they say in which type to compute
_MAX_GROWTH = 1 << 20  # bytes


def fold_constants(model: ir.Model) -> ir.Model:
    """A copy without the nodes whose inputs are all initializers, computed with ONNX's reference implementation.

    Nodes that make graph outputs, hold subgraphs, or would grow the file by more than 1 MiB stay.
    """
    model = model.clone()
    opset = helper.make_opsetid("", model.opset_imports[""])
    for node in list(model.graph):
        if not _foldable(node):
            continue
        outputs = _computed(node, opset)
        if outputs is None:
            continue
        values = []
        for old, array in zip(node.outputs, outputs, strict=True):
            value = ir.val(f"{old.name}.folded", const_value=ir.tensor(array, name=f"{old.name}.folded"))
            model.graph.register_initializer(value)
            values.append(value)
        ir.convenience.replace_all_uses_with(node.outputs, values)
        model.graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)
    return model


def _foldable(node: ir.Node) -> bool:
    constant = all(value is None or (value.is_initializer() and not value.is_graph_input()) for value in node.inputs)
    return (
        constant
        and bool(node.inputs)
        and node.domain in ("", "ai.onnx")
        and node.op_type not in _RANDOM | _QUANTIZERS
        and not any(output.is_graph_output() for output in node.outputs)
        and not any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
    )


def _computed(node: ir.Node, opset: onnx.OperatorSetIdProto) -> list[npt.NDArray[np.generic]] | None:
    """Outputs of the node, or None where it is left alone."""
    tensors = {str(value.name): value.const_value for value in node.inputs if value is not None}
    feeds = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
    if len(feeds) < len(tensors):
        return None
    try:
        names = [str(output.name) for output in node.outputs]
        function = helper.make_function("fold", "fold", list(feeds), names, [ir.to_proto(node)], [opset])
        outputs = ReferenceEvaluator(function).run(None, feeds, attributes={})
    except Exception:  # an operator or type that the reference implementation lacks; its exceptions have no base
        return None
    arrays = [np.asarray(output) for output in outputs]
    grown = sum(array.nbytes for array in arrays) - sum(array.nbytes for array in feeds.values())
    return arrays if grown <= _MAX_GROWTH else None
