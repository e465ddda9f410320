"""Readable, unique names, as Caffe's AlexNet has them: conv1 relu1 lrn1 pool1 … fc6 relu6 fc7 fc8.

TensorRT, ONNX Runtime and our own reports name layers by these, so a person must recognise them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.specs import layer_name

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_PARAMETERS = {"Conv": ("weight", "bias"), "Gemm": ("weight", "bias"), "MatMul": ("weight",)}


def rename(model: ir.Model) -> ir.Model:
    """Name nodes by kind and by the number of the last weighted layer; outputs after their nodes.

    Weights become ``conv1.weight`` and ``conv1.bias``. Graph inputs and outputs keep their names. Traces of the
    exporter's source positions in the metadata are dropped.
    """
    model = model.clone()
    common.ClearMetadataAndDocStringPass()(model)
    own = {value for node in model.graph for value in node.outputs if not value.is_graph_output()}
    used = taken_names(model) - {str(value.name) for value in own} - {str(node.name) for node in model.graph}
    used |= {str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    weighted = 0
    for node in model.graph:
        weighted += node.op_type in _WEIGHTED
        node.name = unique(layer_name(node.op_type, weighted), used)
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = node.name if len(node.outputs) == 1 else unique(f"{node.name}.{output.index()}", used)
        for value, part in zip(node.inputs[1:], _PARAMETERS.get(node.op_type, ()), strict=False):
            if value is not None and value.const_value is not None and len(value.uses()) == 1:
                used.discard(str(value.name))
                name = unique(f"{node.name}.{part}", used)
                # the clone shares its tensors with the original, and renaming a value renames its tensor
                value.const_value = ir.Tensor(value.const_value.numpy(), name=name)
                value.name = name
    return model


def name_unnamed(model: ir.Model) -> ir.Model:
    """Give each node without a name one as ``rename`` would; a name that is there twice gets a suffix, others stay."""
    model = model.clone()
    used = {str(node.name) for node in model.graph if node.name}
    seen: set[str] = set()
    weighted = 0
    for node in model.graph:
        weighted += node.op_type in _WEIGHTED
        if not node.name:
            node.name = unique(layer_name(node.op_type, weighted), used)
        elif node.name in seen:
            node.name = unique(node.name, used)
        seen.add(node.name)
    return model


def taken_names(model: ir.Model) -> set[str]:
    """The names of all values and nodes, of subgraphs too, which nothing that is added to the graph may have."""
    taken = {str(value.name) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for node in model.graph.all_nodes():
        taken.add(str(node.name))
        taken.update(str(value.name) for value in (*node.inputs, *node.outputs) if value is not None)
    return taken


def new_constant(graph: ir.Graph, base: str, array: npt.NDArray[np.generic], taken: set[str]) -> ir.Value:
    """An initializer of the graph, named ``base`` or like it where that name is in ``taken``, which gets it."""
    name = unique(base, taken)
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def unique(base: str, used: set[str]) -> str:
    """``base``, with a number where that is in ``used``, which gets it.

    Doubles the number and halves the step back, for thousands of layers of one name.
    """
    name = base
    if base in used:
        taken, free = 1, 2
        while f"{base}_{free}" in used:
            taken, free = free, 2 * free
        while free - taken > 1:
            middle = (taken + free) // 2
            taken, free = (middle, free) if f"{base}_{middle}" in used else (taken, middle)
        name = f"{base}_{free}"
    used.add(name)
    return name
