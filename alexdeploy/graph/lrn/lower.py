"""LRN written with operators that ONNX Runtime's CPU kernels are fast at; for use in memory, never for the file.

x / (k + alpha/size · Σ x²)^beta, the sum over ``size`` neighbouring channels being a 1×1 convolution with a banded
matrix of ones, and y^0.75 being sqrt(y)·sqrt(sqrt(y)).

Behind a DequantizeLinear it works on the integers q, x = s·q, with s folded into the constants, and channels last, as
the integer convolutions and pooling around it do: so nothing is dequantized twice and no layout is changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.names import new_constant, taken_names, unique

_SUM_OF = "sum of squares of"  # the LRN node; at a value


def lower_lrn(model: ir.Model) -> ir.Model:
    """Replace every float32 LRN whose channel count is known; the others stay."""
    model = model.clone()
    taken = taken_names(model)
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "LRN" or source is None or source.shape is None or source.dtype != ir.DataType.FLOAT:
            continue
        channels = source.shape[1]
        if isinstance(channels, int) and len(source.shape) == 4:
            lowering = _Lowering(model.graph, node, taken)
            integers = _quantized(source) if lowering.beta else None
            integers = integers if integers is not None and lowering.takes(integers.scale) else None
            result = lowering.on_floats(source, channels) if integers is None else lowering.on_integers(integers)
            new, result.name = lowering.nodes, node.outputs[0].name
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], new, node.outputs, [result])
    common.RemoveUnusedNodesPass()(model)
    return model


def lrn_alone(node: ir.Node) -> ir.Model:
    """A graph of this LRN only, on (batch, C, 3, 3) images; behind Q/DQ when it lies behind a DequantizeLinear."""
    source = node.inputs[0]
    assert source is not None
    assert source.shape is not None
    integers = _quantized(source)
    shape = ir.Shape(["batch", source.shape[1], 3, 3])
    value = start = ir.val("input", ir.DataType.FLOAT, shape)
    nodes, constants = [], []
    if integers is not None:
        scale = ir.val("scale", const_value=ir.tensor(np.float32(integers.scale), name="scale"))
        zero = ir.val("zero", const_value=ir.tensor(np.zeros((), integers.dtype), name="zero"))
        constants = [scale, zero]
        for op in ("QuantizeLinear", "DequantizeLinear"):
            nodes.append(ir.node(op, [value, scale, zero], name=op))
            value = nodes[-1].outputs[0]
    nodes.append(ir.node("LRN", [value], dict(node.attributes), name="lrn"))
    result = nodes[-1].outputs[0]
    result.name, result.type, result.shape = "output", ir.TensorType(ir.DataType.FLOAT), shape
    graph = ir.Graph([start], [result], nodes=nodes, initializers=constants, opset_imports={"": 20}, name="lrn")
    model = ir.Model(graph, ir_version=10)
    infer_shapes(model)
    return model


def band(channels: int, size: int) -> npt.NDArray[np.float32]:
    """(channels, channels) with 1 where output channel c sums input channel i (ONNX operator LRN)."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    return ((offset >= -((size - 1) // 2)) & (offset <= size // 2)).astype(np.float32)


def sums_of_squares(lowered: ir.Model) -> dict[str, str]:
    """By name of an LRN node that was lowered: the tensor that holds k + alpha/size · Σ x² of it."""
    values = (value for node in lowered.graph for value in node.outputs)
    return {value.meta[_SUM_OF]: str(value.name) for value in values if _SUM_OF in value.meta}


def squares_from_base(lrn: ir.Node, base: float) -> float:
    """Σ x² from the value of ``sums_of_squares``; 0 when alpha is 0, where the lowered graph does not tell."""
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


@dataclass(frozen=True)
class _Integers:
    """x = scale · q with q (batch, C, H, W) of that integer type, zero point 0, C, H and W known."""

    q: ir.Value
    scale: float
    sizes: tuple[int, int, int]

    @property
    def dtype(self) -> npt.DTypeLike:
        assert self.q.dtype is not None
        return self.q.dtype.numpy()


def _quantized(source: ir.Value) -> _Integers | None:
    """The integers behind ``source``, or None when it is not a plain DequantizeLinear of a whole tensor."""
    node = source.producer()
    if node is None or node.op_type != "DequantizeLinear" or source.shape is None:
        return None
    q, scale = node.inputs[:2]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    sizes = [dim for dim in source.shape[1:] if isinstance(dim, int)]
    constant = [value.const_value for value in (scale, zero) if value is not None]
    if q is None or len(sizes) != 3 or len(constant) != 2 or any(t is None or t.size != 1 for t in constant):
        return None
    factor, offset = (float(tensor.numpy().item()) for tensor in constant if tensor is not None)
    return _Integers(q, factor, (sizes[0], sizes[1], sizes[2])) if offset == 0 and q.dtype is not None else None


class _Lowering:
    """The nodes that take the place of one LRN; its constants go into the graph."""

    def __init__(self, graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
        self._taken = taken
        self._graph, self._name = graph, str(node.name or node.outputs[0].name)
        self._size = node.attributes["size"].as_int()
        self._alpha, self.beta, self._bias = _coefficients(node)
        self.nodes: list[ir.Node] = []

    def takes(self, scale: float) -> bool:
        """If the constants of ``on_integers`` hold that scale."""
        with np.errstate(all="ignore"):
            unit = np.float64(scale) ** (-1 / np.float64(self.beta))
            factors = np.array([unit, unit * scale**2, unit * self._bias]).astype(np.float32)
        return bool(np.isfinite(factors).all()) and float(factors[0]) > 0

    def on_floats(self, x: ir.Value, channels: int) -> ir.Value:
        weight = (band(channels, self._size) * np.float32(self._alpha / self._size)).reshape(channels, channels, 1, 1)
        k = self._constant("k", np.full(channels, self._bias, np.float32))
        base = self._add("Conv", self._add("Mul", x, x), self._constant("band", weight), k)
        base.meta[_SUM_OF] = self._name
        return self._add("Div", x, self._power(base))

    def on_integers(self, integers: _Integers) -> ir.Value:
        """The same as q / (s^(-1/beta) · base)^beta."""
        channels, height, width = integers.sizes
        unit = integers.scale ** (-1 / self.beta)
        weight = band(channels, self._size).T * np.float32(self._alpha / self._size * integers.scale**2 * unit)
        q = self._add("Transpose", integers.q, perm=[0, 2, 3, 1])
        q = self._add("Cast", q, to=ir.DataType.FLOAT)
        q = self._add("Reshape", q, self._constant("rows", np.array([-1, channels])))
        k = self._constant("k", np.full(channels, self._bias * unit, np.float32))
        base = self._add("Gemm", self._add("Mul", q, q), self._constant("band", weight), k)
        ratio = self._add("Div", q, self._power(base))
        image = self._add("Reshape", ratio, self._constant("image", np.array([-1, height, width, channels])))
        return self._add("Transpose", image, perm=[0, 3, 1, 2])

    def _power(self, base: ir.Value) -> ir.Value:
        if self.beta == 0.75:
            root = self._add("Sqrt", base)
            return self._add("Mul", root, self._add("Sqrt", root))
        return self._add("Pow", base, self._constant("beta", np.asarray(self.beta, np.float32)))

    def _constant(self, part: str, array: npt.NDArray[np.generic]) -> ir.Value:
        return new_constant(self._graph, f"{self._name}.{part}", array, self._taken)

    def _add(self, op: str, *inputs: ir.Value, **attributes: list[int] | int) -> ir.Value:
        name = unique(f"{self._name}.{len(self.nodes)}.{op.lower()}", self._taken)
        self.nodes.append(ir.node(op, inputs, attributes, name=name))
        made = self.nodes[-1].outputs[0]
        made.name = name
        return made
