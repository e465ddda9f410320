"""Nodes that compute with constants alone, replaced by their results.

Exporters put Identity and Transpose between weights and their layer, and Reshape before axes, where neither
quantization nor TensorRT's parser looks for them.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})  # they say in which type to compute
_MOST_VALUES = 1 << 18  # that a result may have more than the constants it replaces: 1 MiB of float32


def fold_constants(model: ir.Model) -> ir.Model:
    """A copy without the nodes whose inputs are all initializers and whose one output is not the graph's.

    Random nodes, nodes with subgraphs, and those that would grow the file by more than 1 MiB stay.
    """
    model = model.clone()
    optimizer.fold_constants(model, output_size_limit=_MOST_VALUES, should_fold=_foldable)
    common.RemoveUnusedNodesPass()(model)
    return model


def _foldable(node: ir.Node) -> bool:
    return (
        node.op_type not in _QUANTIZERS
        and len(node.outputs) == 1
        and not node.outputs[0].is_graph_output()
        and all(value is None or value.is_initializer() for value in node.inputs)
    )
