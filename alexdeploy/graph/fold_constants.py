"""Nodes that compute with constants alone, replaced by their results.

Exporters put Identity and Transpose between the weights and their layer, and Reshape before axes; neither quantization
nor TensorRT's parser looks through them.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from alexdeploy.graph.infer import contained_logs

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})  # their types are the ones to compute in
_ENLARGE = frozenset({"ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"})
_MOST_VALUES = 1 << 18  # that a result may add to the file: 1 MiB of float32


def fold_constants(model: ir.Model) -> ir.Model:
    """A copy without the nodes whose inputs are all constants.

    Nodes with several outputs, with an output of the graph, with random results, and those that would add more than
    1 MiB to the file stay.
    """
    model = model.clone()
    with contained_logs():
        optimizer.fold_constants(model, output_size_limit=_MOST_VALUES, should_fold=_foldable)
    common.RemoveUnusedNodesPass()(model)
    return model


def _foldable(node: ir.Node) -> bool:
    if node.op_type in _QUANTIZERS or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return False
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return node.op_type not in _ENLARGE
    read = sum(value.const_value.size for value in node.inputs if value is not None and value.const_value is not None)
    return math.prod(shape.numpy()) <= max(_MOST_VALUES, read)  # the optimizer computes it before it looks at the size
