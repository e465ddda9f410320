"""FP16 or bfloat16 written into the graph: weights and arithmetic of 16 bits, FP32 at the borders and on the islands.

TensorRT 11 and TensorRT-RTX have no FP16 flag, and a strongly typed network does what the graph says; so do ONNX
Runtime and OpenVINO. Inputs and outputs stay FP32. Islands are LRN (its sum of squares leaves FP16's range at
activations of about 114 over five channels), Q/DQ (whose scales stay FP32, behind Casts), nodes whose constants FP16
does not hold (the 1e-12 that keeps a division from 0/0 would be 0), nodes whose activations came too close to its
limits on real data, the upper and the lower one, and nodes with subgraphs, whose inner values keep their types. What
reads a value that FP16 may not hold is FP32 too. So is all between a constant that keeps from a division by 0 and that
division (``graph.divisors``), whatever was measured: an image that is all black is rarely among the measured ones.
bfloat16 has FP32's range and so no such islands; operators that ONNX does not define in it stay FP32.

NVIDIA's exporter writes FP16 scales and no Casts (Model-Optimizer, ``modelopt/onnx/utils.py``). TensorRT-RTX 1.7.1
makes the same kernels of both forms, all INT8; with FP16 scales the results of its Gemms are FP16 and not FP32. But
ONNX Runtime (1.32, CPU) gives wrong answers with FP16 scales: its optimizers quantize a bias by the product of two
scales, and FP16 does not hold 1e-7. One file for all runtimes is worth more.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.errors import GateError, InputError
from alexdeploy.graph.divisors import guarded_divisions
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.names import new_constant, taken_names, unique
from alexdeploy.graph.opset import BF16_OPSET, raised
from alexdeploy.graph.weighted import HALF_NAMES, INTEGER_OPERATORS, half_weights

_FLOAT = ir.DataType.FLOAT
# Cast keeps the type it names, the others behind it one that an attribute may name; Resize takes scales as float32.
_ISLANDS = frozenset({"LRN", "QuantizeLinear", "DequantizeLinear", "Cast", "Resize"})
_ISLANDS |= {"Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike"}
_ISLANDS |= {"MeanVarianceNormalization"}  # ONNX defines it with a float32 constant
# operators whose output is never larger in magnitude than their input
_NEVER_LARGER = frozenset(
    {"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Identity", "Dropout", "Clip", "LRN"}
    | {"Gather", "Transpose"}
)
# about as large as what they read
_PASS_ON = _NEVER_LARGER | {"QuantizeLinear", "DequantizeLinear", "Cast"}
_PASS_ON |= {"Concat", "Expand", "Max", "Min", "Pad", "Slice", "Split", "Sqrt", "Squeeze", "Tile", "Unsqueeze", "Where"}
LIMIT = float(np.finfo(np.float16).max)  # 65504
MARGIN = 4.0  # unseen images may reach this many times what was measured
SMALLEST = float(np.finfo(np.float16).tiny)  # 6.1e-5; what is smaller has fewer bits, and below 3e-8 it is 0
_MOST_LOST = 0.01  # of a constant, relative; 11 bits lose 0.0003
_DIVISORS = {"Div": 1, "BatchNormalization": 4}  # an element that becomes 0 there is no small error
_EPSILON = 1e-5  # of a BatchNormalization that does not say it


def largest_values(model: ir.Model) -> dict[str, ir.Value]:
    """The values whose largest magnitude decides whether FP16 is safe, each with the value to measure it at.

    They are the outputs of operators that can enlarge their input, and for an LRN, as its node's name, its sum of
    squares, which the graph does not show. A value that only a ReLU reads is measured after the
    ReLU: a negative overflow becomes -inf and then 0, which is still correct.
    """
    found = {}
    for node in model.graph:
        if node.op_type == "LRN":
            found[str(node.name)] = node.outputs[0]
            continue
        for output in node.outputs if node.op_type not in _NEVER_LARGER else ():
            if output.name and output.dtype in (None, _FLOAT):  # an output that is left out has no name
                users = output.consumers()
                behind_relu = len(users) == 1 and users[0].op_type == "Relu" and not output.is_graph_output()
                found[output.name] = users[0].outputs[0] if behind_relu else output
    return found


def headroom(largest: Mapping[str, float]) -> dict[str, float]:
    """65504 over the largest magnitude of each value; inf for a value that was always zero."""
    return {name: LIMIT / value if value > 0 else float("inf") for name, value in largest.items()}


def certify_lrn(model: ir.Model, largest: Mapping[str, float]) -> dict[str, float]:
    """Headroom of every LRN's sum of squares, when all have at least ``MARGIN``.

    Raises:
        GateError: one has less, or was not measured; named with its figure.
    """
    room = headroom(largest)
    names = [str(node.name) for node in model.graph if node.op_type == "LRN"]
    for name in names:
        if name not in room:
            raise GateError(f"LRN '{name}': its sum of squares was not measured; calibrate, and give `ranges`")
        if room[name] < MARGIN:
            raise GateError(
                f"LRN '{name}': its sum of squares reached {largest[name]:.4g} on real data, {room[name]:.2f} times "
                f"below FP16's 65504; at least {MARGIN:g} times is asked for, so leave LRN in FP32"
            )
    return {name: room[name] for name in names}


def to_fp16(model: ir.Model, *, largest: Mapping[str, float] = MappingProxyType({}), lrn: bool = False) -> ir.Model:
    """The same function with FP16 arithmetic outside the islands; input and output names and types unchanged.

    Args:
        model: not changed.
        largest: largest magnitude on real data, by the names of ``largest_values``; a node whose result has less than
            ``MARGIN`` times headroom, or is less than ``MARGIN`` times ``SMALLEST``, becomes an island, and so does
            what reads that result.
        lrn: FP16 inside LRN too; ``certify_lrn`` says whether that is safe.

    Raises:
        InputError: the graph already holds FP16 or BF16 weights, or multiplies integers.
    """
    model = model.clone()
    infer_shapes(model)
    fits = {name: value * MARGIN < LIMIT and not 0 < value < SMALLEST * MARGIN for name, value in largest.items()}
    return _to_half(model, ir.DataType.FLOAT16, fits, lrn=lrn)


def to_bf16(model: ir.Model) -> ir.Model:
    """The same with bfloat16 arithmetic outside LRN and Q/DQ; in opset 22 or later, which has it in Conv and pooling.

    Raises:
        InputError: the graph already holds FP16 or BF16 weights, multiplies integers, or cannot be raised so far.
    """
    return _to_half(raised(model, BF16_OPSET), ir.DataType.BFLOAT16)


def _to_half(
    model: ir.Model, half: ir.DataType, fits: Mapping[str, bool] = MappingProxyType({}), *, lrn: bool = False
) -> ir.Model:
    """Writes into ``model`` itself; ``fits``: if the type holds the values that were measured."""
    graph, opset = model.graph, model.opset_imports.get("", 0)
    held = half_weights(model)
    if held is not None:
        raise InputError(f"the graph already holds {held} weights; convert the float model instead")
    integer = next((node for node in graph if node.op_type in INTEGER_OPERATORS), None)
    if integer is not None:
        raise InputError(
            f"the graph is quantized already (node '{integer.name}' is {integer.op_type}); convert the float model it "
            "was made from"
        )
    outputs = list(graph.outputs)
    casts = _Casts(model)
    wide: set[ir.Value] = set()  # values that FP16 may not hold
    guarded = guarded_divisions(model, half)
    for node in list(graph):
        reads_wide = not wide.isdisjoint(node.inputs)
        names = [str(output.name) for output in node.outputs] if node.op_type != "LRN" else []
        told = [fits[name] for name in names if name in fits]
        seen = all(told) if told else None
        alone = _does_not_hold(node, half) or seen is False
        if (alone or (reads_wide and node.op_type in _PASS_ON)) and not seen:
            wide.update(node.outputs)
        island = node.op_type in _ISLANDS and not (lrn and node.op_type == "LRN")
        island = island or not _defined_in(half, node, opset) or bool(_subgraphs(node))
        wanted = _FLOAT if island or alone or reads_wide or node in guarded else half
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_FLOAT, half) and value.dtype != wanted:
                node.replace_input_with(index, casts.of(value, wanted, node))
        for user, index, value in _captured(node, half):
            user.replace_input_with(index, casts.of(value, _FLOAT, node))
        for output in _follow_inputs(node, opset) if wanted == half else ():
            if output.dtype == _FLOAT:
                output.type = ir.TensorType(half)
    for index, output in enumerate(outputs):
        if output.dtype == half:
            casts.restore_output(index, output)
    common.RemoveUnusedNodesPass()(model)
    return model


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def _captured(node: ir.Node, half: ir.DataType) -> list[tuple[ir.Node, int, ir.Value]]:
    """Where nodes inside ``node`` read a value of 16 bits of the graph around it: (reader, index of its input, value).

    What is inside keeps its types, so a value of 16 bits that is made inside was so before.
    """
    return [
        (user, index, value)
        for graph in _subgraphs(node)
        for user in ir.traversal.RecursiveGraphIterator(graph)
        for index, value in enumerate(user.inputs)
        if value is not None and value.dtype == half and value.graph is node.graph
    ]


def _defined_in(half: ir.DataType, node: ir.Node, opset: int) -> bool:
    """True if ONNX defines the operator on that type, which it does for FP16 nearly everywhere."""
    if node.domain or not onnx.defs.has(node.op_type):
        return True
    kind = f"tensor({half.name.lower()})"
    formal = onnx.defs.get_schema(node.op_type, opset).inputs
    pairs = ((value, formal[min(index, len(formal) - 1)]) for index, value in enumerate(node.inputs))
    return all(kind in taken.types for value, taken in pairs if value is not None and value.dtype in (_FLOAT, half))


def _follow_inputs(node: ir.Node, opset: int) -> list[ir.Value]:
    """The outputs that have the type of a float input; ConstantOfShape, Cast and If have types of their own."""
    if node.domain or not onnx.defs.has(node.op_type):
        return list(node.outputs)
    schema = onnx.defs.get_schema(node.op_type, opset)
    inputs, outputs = schema.inputs, schema.outputs
    followed = {
        inputs[min(index, len(inputs) - 1)].type_str
        for index, value in enumerate(node.inputs)
        if value is not None and value.dtype in (_FLOAT, *HALF_NAMES)
    }
    return [
        value for index, value in enumerate(node.outputs) if outputs[min(index, len(outputs) - 1)].type_str in followed
    ]


def _does_not_hold(node: ir.Node, half: ir.DataType) -> bool:
    """True if a constant of the node leaves the range of the type (FP16: ±65504), or is too small for it.

    A scale stays FP32. That of an activation tells how large this gets; constants in levels are judged at their reader.
    """
    limit = float(ml_dtypes.finfo(half.numpy()).max)  # type: ignore[no-untyped-call]
    constants = [_constant(value) for value in node.inputs]
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        read, scale = node.inputs[0], constants[1]
        stored = read is not None and read.const_value is not None
        constants = [] if stored or scale is None else [scale * np.float32(127)]
    for index, array in enumerate(constants):
        if array is None or not array.size:
            continue
        largest = float(np.max(np.abs(array)))
        if largest > limit:
            return True
        divides = _DIVISORS.get(node.op_type) == index
        if divides or largest < SMALLEST:
            lost = np.abs(array.astype(half.numpy()).astype(np.float32) - array)
            divisor = np.abs(array) + (_epsilon(node) if divides else 0)
            each = divides and bool(np.any(lost > _MOST_LOST * divisor))
            if each or np.linalg.norm(lost) > _MOST_LOST * np.linalg.norm(divisor):
                return True
    return False


def _epsilon(node: ir.Node) -> float:
    """What is added to a divisor before the division."""
    given = node.attributes.get("epsilon")
    return 0.0 if node.op_type != "BatchNormalization" else _EPSILON if given is None else given.as_float()


def _constant(value: ir.Value | None) -> npt.NDArray[np.floating] | None:
    """A float constant; of a quantized one the largest magnitude in each channel."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy() if value.dtype == _FLOAT else None
    made = value.producer()
    if made is None or made.op_type != "DequantizeLinear":
        return None
    constants = [None if one is None or one.const_value is None else one.const_value.numpy() for one in made.inputs]
    levels, scale, zero = (*constants, None)[:3]
    if levels is None or scale is None:
        return None
    scale = scale.astype(np.float32)
    along = made.attributes.get("axis")
    axis = levels.ndim if scale.ndim != 1 or scale.size == 1 else 1 if along is None else along.as_int() % levels.ndim
    others = tuple(index for index in range(levels.ndim) if index != axis)
    offset = np.float32(0) if zero is None or scale.ndim > 1 else zero.astype(np.float32)  # of blocks there is none
    ends = (end(levels, axis=others).astype(np.float32) - offset for end in (np.min, np.max))
    largest: npt.NDArray[np.floating] = np.maximum(*map(np.abs, ends)) * scale
    return largest


class _Casts:
    """Adds values in another type to one graph; each once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph, self._taken = model.graph, taken_names(model)
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, value: ir.Value, wanted: ir.DataType, user: ir.Node) -> ir.Value:
        """``value`` in the wanted type: a converted constant, or one Cast shared by all its users."""
        if (value, wanted) not in self._made:
            suffix = HALF_NAMES.get(wanted, "fp32").lower()
            base = f"{value.name}.{suffix}"
            if value.const_value is not None:
                array = value.const_value.numpy().astype(wanted.numpy())
                converted = new_constant(self._graph, base, array, self._taken)
            else:
                cast = ir.node("Cast", [value], {"to": int(wanted)}, name=self._node(f"{value.name}.to_{suffix}"))
                converted = cast.outputs[0]
                converted.name, converted.type = unique(base, self._taken), ir.TensorType(wanted)
                converted.shape = value.shape
                self._graph.insert_before(user, [cast])
            self._made[value, wanted] = converted
        return self._made[value, wanted]

    def restore_output(self, index: int, output: ir.Value) -> None:
        """Cast a half-precision graph output back to FP32 under its own name."""
        name, last = output.name, output.producer()
        assert last is not None
        half = HALF_NAMES[output.dtype or ir.DataType.FLOAT16].lower()
        output.name = unique(f"{name}.{half}", self._taken)
        cast = ir.node("Cast", [output], {"to": int(_FLOAT)}, name=self._node(f"{name}.to_fp32"))
        result = cast.outputs[0]
        result.name, result.type, result.shape = name, ir.TensorType(_FLOAT), output.shape
        self._graph.insert_after(last, [cast])
        self._graph.outputs[index] = result

    def _node(self, name: str) -> str:
        return unique(name, self._taken)
