"""Where a constant that 16 bits round to 0 keeps a graph from dividing by 0, as the 1e-12 of PyTorch's F.normalize.

All is well until an image leaves every feature at 0, as a black one may: then 0/0 is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy.graph.weighted import depends_on_input

_DIVIDES = {"Div": 1, "Log": 0, "Pow": 0, "Reciprocal": 0}  # by which input; at 0 they give inf or NaN
_MOVES = frozenset({"Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_MOVES |= {"Concat", "ConstantOfShape", "Dropout", "Pad", "Slice", "Split", "Tile", "Where"}
_POWERS = frozenset({"Abs", "Pow", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Sqrt"})
# operators behind which the least value of a constant still tells in the least of the result
_CARRIES = _MOVES | _POWERS | {"Add", "Clip", "Constant", "Div", "Max", "Mean", "Min", "Mul", "Neg", "Relu", "Sum"}
_CARRIES |= {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMin"}
_MOST_LOST = 0.1  # of an element, relative: FP16 has the 1e-6 of many a LayerNormalization as 1.01e-6
_SMALL = float(np.finfo(np.float16).tiny)


def guarded_divisions(model: ir.Model, half: ir.DataType) -> set[ir.Node]:
    """The nodes that divide by a value that a constant keeps from 0 which ``half`` rounds away, and those before them.

    These are the ones that make the divisor, from the constant on, and the powers and sums that measure a length: with
    all of them in FP32 the quotient is as in FP32. A reciprocal of 1e-6 leaves FP16's range; what reads it is listed
    too.
    """
    guarded: set[ir.Value] = set()
    inverse: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in model.graph:
        if not inverse.isdisjoint(node.inputs):
            found.add(node)
            if node.op_type in _MOVES | _POWERS or _scales(node):
                inverse.update(node.outputs)
        carries = node.op_type in _CARRIES and not node.domain
        lost = carries and any(_rounds_away(array, half) for array in _constants(node))
        if lost or (carries and not guarded.isdisjoint(_carried(node))):
            guarded.update(node.outputs)
        divisor = _divisor(node)
        if divisor in guarded:
            found.add(node)
            found |= _makers(divisor, guarded)
            if node.op_type in ("Reciprocal", "Pow") or not depends_on_input(node.inputs[0]):
                inverse.update(node.outputs)
    return found


def _makers(divisor: ir.Value | None, guarded: set[ir.Value]) -> set[ir.Node]:
    """What makes a guarded value out of features."""
    found: set[ir.Node] = set()
    values = [divisor]
    while values:
        value = values.pop()
        maker = value.producer() if value is not None else None
        if maker is None or maker in found or not (value in guarded or _measures(maker)):
            continue
        found.add(maker)
        values += maker.inputs
    return found


def _scales(node: ir.Node) -> bool:
    """A product with a constant."""
    return node.op_type == "Mul" and not all(map(depends_on_input, node.inputs))


def _measures(node: ir.Node) -> bool:
    squares = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    return squares or node.op_type in _POWERS


def _carried(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """The inputs whose least value tells in the result: not a divisor."""
    return tuple(node.inputs[:1]) if node.op_type == "Div" else tuple(node.inputs)


def _divisor(node: ir.Node) -> ir.Value | None:
    """What the node divides by, or takes the logarithm of; None where it is no such node."""
    index = _DIVIDES.get(node.op_type)
    if index is None or index >= len(node.inputs) or node.domain:
        return None
    exponent = node.inputs[1] if node.op_type == "Pow" else None
    if exponent is not None and exponent.const_value is not None and np.all(exponent.const_value.numpy() >= 0):
        return None
    return node.inputs[index]


def _constants(node: ir.Node) -> Iterator[npt.NDArray[np.generic]]:
    """Among its inputs and, as in old opsets, its attributes."""
    for value in _carried(node):
        if value is not None and value.const_value is not None:
            yield value.const_value.numpy()
    for name in ("min", "value", "value_float"):
        given = node.attributes.get(name)
        if given is not None and given.type == ir.AttributeType.FLOAT:
            yield np.array(given.as_float(), np.float32)
        elif given is not None and given.type == ir.AttributeType.TENSOR:
            yield given.as_tensor().numpy()


def _rounds_away(array: npt.NDArray[np.generic], half: ir.DataType) -> bool:
    """True if a small element, which need not be the only one, is lost."""
    if array.dtype != np.float32:
        return False
    size = np.abs(array)
    small = size[(size > 0) & (size < _SMALL)]
    lost = np.abs(small.astype(half.numpy()).astype(np.float32) - small)
    return bool(np.any(lost > _MOST_LOST * small))
