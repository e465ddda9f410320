"""LRN written with operators that ONNX Runtime's CPU kernels are fast at; for use in memory, never for the file.

x / (k + alpha/size · Σ x²)^beta, the sum over ``size`` neighbouring channels being a 1×1 convolution with a banded
matrix of ones, and y^0.75 being sqrt(y)·sqrt(sqrt(y)).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common


def lower_lrn(model: ir.Model) -> ir.Model:
    """Replace every float32 LRN whose channel count is known; the others stay."""
    model = model.clone()
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "LRN" or source is None or source.shape is None or source.dtype != ir.DataType.FLOAT:
            continue
        channels = source.shape[1]
        if isinstance(channels, int) and len(source.shape) == 4:
            _replace(model.graph, node, source, channels)
    common.RemoveUnusedNodesPass()(model)
    return model


def band(channels: int, size: int) -> npt.NDArray[np.float32]:
    """(channels, channels) with 1 where output channel c sums input channel i (ONNX operator LRN)."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    return ((offset >= -((size - 1) // 2)) & (offset <= size // 2)).astype(np.float32)


def sum_of_squares(lrn: str) -> str:
    """Name of the tensor in the lowered graph that holds k + alpha/size · Σ x² of an LRN node."""
    return f"{lrn}.base"


def squares_from_base(lrn: ir.Node, base: float) -> float:
    """Σ x² from the value of ``sum_of_squares``; 0 when alpha is 0, where the lowered graph does not tell."""
    size = lrn.attributes["size"].as_int()
    alpha, _, bias = _coefficients(lrn)
    return max(0.0, (base - bias) * size / alpha) if alpha else 0.0


def _coefficients(node: ir.Node) -> tuple[float, float, float]:
    """Alpha, beta and bias with ONNX's defaults."""
    alpha, beta, bias = (
        node.attributes[name].as_float() if name in node.attributes else default
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return alpha, beta, bias


def _replace(graph: ir.Graph, node: ir.Node, source: ir.Value, channels: int) -> None:
    size = node.attributes["size"].as_int()
    alpha, beta, bias = _coefficients(node)

    def constant(part: str, array: npt.NDArray[np.float32]) -> ir.Value:
        value = ir.val(f"{node.name}.{part}", const_value=ir.tensor(array, name=f"{node.name}.{part}"))
        graph.register_initializer(value)
        return value

    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(op, inputs, name=f"{node.name}.{len(nodes)}.{op.lower()}"))
        nodes[-1].outputs[0].name = str(nodes[-1].name)
        return nodes[-1].outputs[0]

    weight = (band(channels, size) * np.float32(alpha / size)).reshape(channels, channels, 1, 1)
    squares = add("Mul", source, source)
    base = add("Conv", squares, constant("band", weight), constant("k", np.full(channels, bias, np.float32)))
    base.name = sum_of_squares(str(node.name))
    if beta == 0.75:
        root = add("Sqrt", base)
        power = add("Mul", root, add("Sqrt", root))
    else:
        power = add("Pow", base, constant("beta", np.asarray(beta, np.float32)))
    add("Div", source, power).name = node.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
