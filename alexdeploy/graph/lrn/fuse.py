"""Local response normalisation that an exporter took apart, put back into one LRN node.

PyTorch's exporters write ``local_response_norm`` as x / (alpha · AveragePool3d(Pad(x²)) + k)^beta with reshapes
around the pooling; the TorchScript exporter adds shape arithmetic and an If. The pass recognises the arithmetic,
not the names, and the caller proves the result by running both graphs (``alexdeploy.export.from_torch.adopt``).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

_MOVES_DATA = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Pad", "Cast"})


@dataclass(frozen=True)
class _Lrn:
    source: ir.Value
    size: int
    alpha: float
    beta: float
    bias: float


def fuse_lrn(model: ir.Model, leave: Collection[str] = ()) -> tuple[ir.Model, list[str]]:
    """Replace every decomposed LRN by an LRN node; returns the new model and the names of the nodes it got.

    Anything that is not exactly this pattern is left alone. Windows of any odd size are fused; whether a
    runtime takes them is for its own check. So are those whose result is named in ``leave``.
    """
    model = model.clone()
    fused: list[str] = []
    for node in list(model.graph):
        found = _match(node)
        if found is None or node.outputs[0].name in leave:
            continue
        name = str(node.name or node.outputs[0].name)
        attributes = {"size": found.size, "alpha": found.alpha, "beta": found.beta, "bias": found.bias}
        lrn = ir.node("LRN", [found.source], attributes, name=name)
        output = node.outputs[0]
        lrn.outputs[0].name, lrn.outputs[0].type, lrn.outputs[0].shape = output.name, output.type, output.shape
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [lrn], [output], lrn.outputs)
        fused.append(name)
    if fused:
        _remove_unused(model)
    return model, fused


def _remove_unused(model: ir.Model) -> None:
    """Drop what led only to the replaced nodes; a removed If first lets go of the values its branches used."""
    conditionals = [node for node in model.graph if node.op_type == "If"]
    common.RemoveUnusedNodesPass()(model)
    for node in conditionals:
        if node.graph is None:
            for attribute in node.attributes.values():
                for inner in attribute.as_graph():
                    for index in range(len(inner.inputs)):
                        inner.replace_input_with(index, None)
    common.RemoveUnusedNodesPass()(model)


def _match(node: ir.Node) -> _Lrn | None:
    """Source / (alpha · mean(x²) + k)^beta, seen from its Div."""
    if node.op_type != "Div":
        return None
    source, divisor = node.inputs
    power = _producer(divisor, "Pow")
    beta = _scalar(power.inputs[1]) if power is not None else None
    if source is None or power is None or beta is None:
        return None
    scaled, bias = _with_constant(_producer(power.inputs[0], "Add"))
    mean, alpha = _with_constant(_producer(scaled, "Mul"))
    if bias is None or alpha is None:
        return None
    pool = _behind_moves(mean)
    size = _window(pool)
    if pool is None or size is None:
        return None
    squares = _behind_moves(pool.inputs[0])
    if squares is None or not _is_square_of(squares, source) or _is_one_sided(pool.inputs[0]):
        return None
    return _Lrn(source, size, alpha, beta, bias)


def _is_one_sided(value: ir.Value | None) -> bool:
    """A Pad adds more before the channels than behind them, or fewer: the window is not around the channel."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _MOVES_DATA:
        pads = _pads(node)
        if sum(pads[: len(pads) // 2]) != sum(pads[len(pads) // 2 :]):
            return True
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return False


def _pads(node: ir.Node) -> list[int]:
    """Of a Pad, before all axes and then behind them; none where they are computed, and proven with the rest."""
    if node.op_type != "Pad":
        return []
    given = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return [int(pad) for pad in given.numpy()] if given is not None else list(node.attributes.get_ints("pads", ()))


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op_type else None


def _scalar(value: ir.Value | None) -> float | None:
    tensor = value.const_value if value is not None else None
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def _with_constant(node: ir.Node | None) -> tuple[ir.Value | None, float | None]:
    """The varying and the constant operand of a commutative node, in either order."""
    if node is None:
        return None, None
    first, second = node.inputs
    constant = _scalar(second)
    return (first, constant) if constant is not None else (second, _scalar(first))


def _behind_moves(value: ir.Value | None) -> ir.Node | None:
    """The node that computed ``value``, behind nodes that only move data and Ifs that choose between such moves."""
    node = value.producer() if value is not None else None
    while node is not None and (node.op_type in _MOVES_DATA or node.op_type == "If"):
        value = _input_of_if(node) if node.op_type == "If" else node.inputs[0]
        node = value.producer() if value is not None else None
    return node


def _input_of_if(node: ir.Node) -> ir.Value | None:
    """The one value of the outer graph that both branches pass on by moving data."""
    origins: list[ir.Value | None] = []
    for attribute in node.attributes.values():
        branch = attribute.as_graph()
        value: ir.Value | None = branch.outputs[0]
        while value is not None and (producer := value.producer()) is not None and producer.graph is branch:
            if producer.op_type not in _MOVES_DATA:
                return None
            value = producer.inputs[0]
        origins.append(value)
    return origins[0] if origins and all(origin is origins[0] for origin in origins) else None


def _window(pool: ir.Node | None) -> int | None:
    """Window of an average over channels alone: kernel [n, 1, 1] or [n, 1], stride 1, no padding of its own."""
    if pool is None or pool.op_type != "AveragePool":
        return None
    size, *others = pool.attributes["kernel_shape"].as_ints()
    strides = pool.attributes["strides"].as_ints() if "strides" in pool.attributes else [1]
    pads = pool.attributes["pads"].as_ints() if "pads" in pool.attributes else [0]
    # PyTorch and ONNX place an even window differently, so that one stays as it is
    plain = size % 2 == 1 and math.prod(others) == 1 and math.prod(strides) == 1 and not any(pads)
    return size if plain else None


def _is_square_of(node: ir.Node, source: ir.Value) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is source and node.inputs[1] is source
    return node.op_type == "Pow" and node.inputs[0] is source and _scalar(node.inputs[1]) == 2.0
