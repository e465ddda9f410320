"""PyTorch's exporter writes ``flatten`` as Reshape to [-1, 9216]; this pass writes it as Flatten again."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common


def restore_flatten(model: ir.Model) -> ir.Model:
    """Replace each Reshape to [-1, K], where K is everything but the batch, by Flatten(axis=1).

    Flatten states no size, so the graph stays right for every batch and readable.
    """
    model = model.clone()
    for node in list(model.graph):
        if node.op_type != "Reshape":
            continue
        source, shape = node.inputs[:2]
        target = shape.const_value if shape is not None else None
        if source is None or source.shape is None or target is None or target.size != 2:
            continue
        inner = source.shape[1:]
        fixed = [dim for dim in inner if isinstance(dim, int)]
        batch, rest = target.numpy().tolist()
        if batch != -1 or len(fixed) != len(inner) or rest != math.prod(fixed):
            continue
        flatten = ir.node("Flatten", [source], {"axis": 1}, name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [flatten], node.outputs, flatten.outputs)
    common.RemoveUnusedNodesPass()(model)
    return model
