"""PyTorch's exporter writes ``flatten`` as Reshape to [-1, 9216]; this pass writes it as Flatten again."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.graph.weighted import depends_on_input


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
        batch, rest = target.numpy().reshape(-1).tolist()
        if batch != -1 or len(fixed) != len(inner) or rest != math.prod(fixed):
            continue
        flatten = ir.node("Flatten", [source], {"axis": 1}, name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [flatten], node.outputs, flatten.outputs)
    common.RemoveUnusedNodesPass()(model)
    return model


def fixing_reshape(model: ir.Model, batch: int) -> ir.Node | None:
    """The first Reshape of the image to a constant shape that begins with another number than ``batch``."""
    for node in model.graph:
        wanted = (
            node.inputs[1].const_value
            if node.op_type == "Reshape" and len(node.inputs) > 1 and node.inputs[1]
            else None
        )
        if wanted is None or not wanted.size or not depends_on_input(node.inputs[0]):
            continue
        if int(wanted.numpy().reshape(-1)[0]) not in (0, -1, batch):
            return node
    return None
