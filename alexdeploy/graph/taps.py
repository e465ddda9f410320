"""Making inner tensors visible: the same graph with chosen activations, or their largest magnitudes, as its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.errors import InputError
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.names import taken_names, unique

_CLIPPING = frozenset({"Clip", "Relu"})
_ELEMENTWISE = frozenset({"BatchNormalization", "Cast", "DequantizeLinear", "QuantizeLinear"})  # seen through


def with_outputs(model: ir.Model, names: Sequence[str], *, magnitudes: Sequence[str] = ()) -> ir.Model:
    """A copy whose outputs are the named tensors; what does not lead to them is removed.

    Args:
        model: not changed.
        names: tensors to show whole.
        magnitudes: tensors of which only the largest |x| per run is shown, as a scalar: the last outputs, in this
            order.

    Raises:
        InputError: a name that the graph does not have.
    """
    model = model.clone()
    infer_shapes(model)
    values = {str(output.name): output for node in model.graph for output in node.outputs}
    missing = [name for name in (*names, *magnitudes) if name not in values]
    if missing:
        raise InputError(f"the graph has no tensor '{missing[0]}'")
    taken = taken_names(model)
    largest = [_largest(model.graph, values[name], taken) for name in magnitudes]
    model.graph.outputs[:] = [*(values[name] for name in names), *largest]
    common.RemoveUnusedNodesPass()(model)
    return model


def clipped_by(node: ir.Node) -> ir.Node | None:
    """The last Relu or Clip that removes part of what ``node`` gives before anything else reads it; None without one.

    Batch normalisation, Q/DQ and Cast may stand between them.
    """
    found = None
    while len(node.outputs) == 1 and not node.outputs[0].is_graph_output():
        uses = tuple(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].idx != 0 or uses[0].node.op_type not in _CLIPPING | _ELEMENTWISE:
            break
        node = uses[0].node
        found = node if node.op_type in _CLIPPING else found
    return found


def _largest(graph: ir.Graph, value: ir.Value, taken: set[str]) -> ir.Value:
    """max(max x, -min x): twice as fast as the maximum of |x|, which would be stored.

    Right behind its producer, so that the value need not be kept to the end.
    """
    made: list[ir.Node] = []

    def added(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = unique(f"{value.name}.{operator.lower()}", taken)
        made.append(ir.node(operator, inputs, attributes, name=name))
        scalar = made[-1].outputs[0]
        scalar.name, scalar.type, scalar.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        return scalar

    low = added("Neg", added("ReduceMin", value, keepdims=0))
    largest = added("Max", added("ReduceMax", value, keepdims=0), low)
    producer = value.producer()
    assert producer is not None, "with_outputs takes results of nodes"
    graph.insert_after(producer, made)
    return largest
