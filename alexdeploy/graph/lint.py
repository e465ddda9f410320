"""An ONNX graph judged by TensorRT's rules before its parser does, with node, rule and fix for each breach.

An error is refused by the parser or the builder, or silently read in another sense than ONNX gives it. A warning
builds, and costs speed or accuracy: a quantized layer that stays in float, for example. The verdicts are those of
TensorRT-RTX 1.7.1; tests build the same graphs to confirm them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy.errors import InputError
from alexdeploy.graph.deterministic import TRAINED, training_mode
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.weighted import (
    INTEGER_OPERATORS,
    MOVES,
    behind,
    depends_on_input,
    dequantize_of,
    is_weighted,
    why_not_fp8,
)

Severity = Literal["error", "warning"]
Breach = tuple[str, str] | None  # predicate whose subject is the node, and the fix

LRN_MAX_SIZE = 15
_LRN_RANGES = {"alpha": (1e-4, -1e20, 1e20), "beta": (0.75, 0.01, 1e5), "bias": (1.0, 1e-5, 1e10)}  # default first
_LEVELS = frozenset({ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1})
# Q/DQ commutes with these: a layer behind them is INT8 all the same.
_MOVES = MOVES | {"Concat", "DepthToSpace", "Dropout", "Flatten", "MaxPool", "Pad", "Slice", "Split"}
_TO_INT8 = "quantize to symmetric int8 (alexdeploy quantize; onnxruntime: QuantType.QInt8, {}Symmetric)"


@dataclass(frozen=True)
class Finding:
    """One breach: the node's name, the rule's, what was found there and what to do about it."""

    node: str
    rule: str
    found: str
    fix: str
    severity: Severity


def lint(model: ir.Model) -> list[Finding]:
    """Every breach in the graph and its subgraphs, in graph order. The model is not changed."""
    inferred = model
    if any(value.shape is None or value.dtype is None for node in model.graph.all_nodes() for value in node.outputs):
        inferred = model.clone()
        infer_shapes(inferred)
    pairs = zip(model.graph.all_nodes(), inferred.graph.all_nodes(), strict=True)
    # a clone has invented names for nameless nodes
    return [finding for node, judged in pairs for finding in _judge(judged, str(node.name or node.outputs[0].name))]


def check_tensorrt(model: ir.Model, origin: str) -> None:
    """Refuse a graph that TensorRT would refuse or misread.

    Raises:
        InputError: with node, rule and fix of the first error, and how many more there are.
    """
    errors = [finding for finding in lint(model) if finding.severity == "error"]
    if errors:
        first = errors[0]
        more = f"; {len(errors) - 1} more, see alexdeploy lint" if errors[1:] else ""
        raise InputError(f"{origin}: node '{first.node}' {first.found}; {first.fix} (rule {first.rule}{more})")


def _judge(node: ir.Node, name: str) -> Iterator[Finding]:
    for rule, severity, operators, check in _RULES:
        if node.op_type in operators:  # in any domain: the parser does not look at it
            breach = check(node)
            if breach is not None:
                found, fix = breach
                yield Finding(name, rule, found, fix, severity)


# Rules on single operators


def _lrn_window(node: ir.Node) -> Breach:
    """ILRNLayer::setWindowSize (NvInfer.h)."""
    size = node.attributes.get_int("size", 0)
    takes = f"TensorRT takes odd windows from 1 to {LRN_MAX_SIZE}"
    if size % 2 == 0:
        found = f"has an even window ({size}); {takes}, and PyTorch and ONNX place even ones differently"
        return found, f"retrain or fine-tune with size {size - 1} or {size + 1}"
    if not 1 <= size <= LRN_MAX_SIZE:
        found = f"has a window of {size}; {takes}"
        return found, "fine-tune with a smaller window, or run the ONNX file in ONNX Runtime"
    return None


def _lrn_range(node: ir.Node) -> Breach:
    """ILRNLayer::setAlpha, setBeta and setK (NvInfer.h)."""
    for name, (default, low, high) in _LRN_RANGES.items():
        value = node.attributes.get_float(name, default)
        if not np.float32(low) <= np.float32(value) <= np.float32(high):
            return f"has {name} {value:g}; TensorRT takes {low:g} to {high:g}", f"fine-tune with {name} in that range"
    return None


def _lrn_rank(node: ir.Node) -> Breach:
    shape = _input(node, 0).shape
    if shape is None or len(shape) >= 4:
        return None
    return f"has an input of rank {len(shape)}; TensorRT takes (N, C, H, W)", "reshape to rank 4 before it"


def _pool_dilations(node: ir.Node) -> Breach:
    dilations = node.attributes.get_ints("dilations", ())
    if all(step == 1 for step in dilations):
        return None
    return f"has dilations {list(dilations)}; TensorRT pools without", "retrain with dilation 1 and a larger window"


def _pool_indices(node: ir.Node) -> Breach:
    """The parser refuses the second output even where nothing uses it."""
    if len(node.outputs) < 2 or not node.outputs[1].name:
        return None
    return "has the output Indices, which TensorRT lacks", "export without return_indices"


def _uint8_input(node: ir.Node) -> Breach:
    value = _input(node, 0)
    if value.dtype != ir.DataType.UINT8 or value.producer() is not None or value.is_initializer():
        return None
    return f"takes the uint8 input '{value.name}', which TensorRT takes into a Cast only", "put a Cast before it"


def _scalar_list(node: ir.Node) -> Breach:
    """The parser ends the process."""
    lists = node.inputs[:1] if node.op_type == "ConstantOfShape" else node.inputs[1:]
    scalar = next((value for value in lists if value is not None and value.shape is not None and not value.shape), None)
    if scalar is None:
        return None
    return f"takes the scalar '{scalar.name}' where ONNX has a list of numbers", "give it the shape (1)"


def _mixed_types(node: ir.Node) -> Breach:
    """A strongly typed network casts nothing by itself."""
    types = {value.dtype.name for value in node.inputs if value is not None and value.dtype is not None}
    if len(types) < 2:
        return None
    return f"mixes {' and '.join(sorted(types))} at its inputs; TensorRT casts nothing", "put a Cast before it"


def _integer_operator(node: ir.Node) -> Breach:
    found = f"is {node.op_type}; TensorRT takes quantization as QuantizeLinear/DequantizeLinear around float operators"
    return found, "quantize statically in that form (onnxruntime: QuantFormat.QDQ, no QOperator, no quantize_dynamic)"


# Rules on QuantizeLinear and DequantizeLinear


def _zero_point(node: ir.Node) -> Breach:
    zero = _array(_input(node, 2))
    if zero is None or not np.any(zero.astype(np.float32)):
        return None
    what = "Weight" if _array(_input(node, 0)) is not None else "Activation"
    return f"has a zero point of {zero.flat[np.flatnonzero(zero)[0]]}; TensorRT takes 0", _TO_INT8.format(what)


def _unsigned(node: ir.Node) -> Breach:
    """Parsed with a warning in the log at most; 128 to 255 saturate at 127."""
    if _level_type(node) != ir.DataType.UINT8 or _zero_point(node) is not None:
        return None
    declared = _input(node, 2).dtype is not None or "output_dtype" in node.attributes
    how = "quantizes to uint8" if declared else "has no zero point, which in ONNX means uint8"
    return f"{how}; TensorRT reads int8 and saturates at half the range", _TO_INT8.format("Activation")


def _levels(node: ir.Node) -> Breach:
    made = _behind(_input(node, 0), "QuantizeLinear") if node.op_type == "DequantizeLinear" else None
    levels = _level_type(node)
    if made is not None or levels is None or levels in _LEVELS:
        return None  # a breach of the QuantizeLinear is told there
    if node.op_type == "QuantizeLinear" and levels == ir.DataType.UINT8:
        return None  # _unsigned tells it
    fix = _TO_INT8.format("Weight")
    if levels == ir.DataType.INT32:
        fix = 'leave the bias in float (onnxruntime: extra_options={"QuantizeBias": False})'
    return f"has {levels.name} levels; TensorRT takes INT8, FP8, INT4 and FP4", fix


def _scale_value(node: ir.Node) -> Breach:
    """The parser refuses 0, negative and NaN; an infinite scale passes and gives NaN."""
    scale = _array(_input(node, 1))
    if scale is None:
        return None
    values = scale.astype(np.float32).reshape(-1)
    bad = values[~((values > 0) & (values < np.inf))]
    if not bad.size:
        return None
    return (
        f"has a scale of {bad[0]:g}; scales are finite and above 0",
        "calibrate again; give a tensor of zeros scale 1",
    )


def _half_scale(node: ir.Node) -> Breach:
    """Told at the weights, once for each layer."""
    if _input(node, 1).dtype != ir.DataType.FLOAT16 or _array(_input(node, 0)) is None:
        return None
    found = "has FP16 scales; ONNX Runtime (1.32) rounds biases to products of two scales, which FP16 does not hold"
    return found, "give it FP32 scales and a Cast behind it, or run the file in TensorRT alone"


def _scale_count(node: ir.Node) -> Breach:
    scale, shape = _array(_input(node, 1)), _input(node, 0).shape
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if scale is None or scale.size == 1 or shape is None or not -len(shape) <= axis < len(shape):
        return None
    dims = [dim if isinstance(dim, int) else None for dim in shape]  # None: not known before run time
    channels = dims[axis]
    if block and channels is not None:
        dims[axis] = -(-channels // block)
    expected = tuple(dims) if block else (channels,)
    if len(expected) == scale.ndim and all(dim in (None, n) for dim, n in zip(expected, scale.shape, strict=True)):
        return None
    found = f"has scales of shape {scale.shape} where axis {axis} asks for {expected}"
    return found, "give one scale per channel (or block), and the axis they run along"


def _computed_scale(node: ir.Node) -> Breach:
    """The parser takes it; the builder refuses such zero points and crashes where a Conv follows such a scale."""
    names = [name for index, name in ((1, "scale"), (2, "zero point")) if depends_on_input(_input(node, index))]
    if not names:
        return None
    return f"has a {names[0]} computed at run time; TensorRT needs a constant", "calibrate and quantize statically"


# Rules on the placement of Q/DQ: what breaks them builds, and runs slower or less exactly


def _one_sided(node: ir.Node) -> Breach:
    sources = [_behind(value, "DequantizeLinear") for value in node.inputs[:2]]
    levels = {_input(source, 0).dtype for source in sources if source is not None}
    if None not in sources or not levels & {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN}:
        return None  # INT4 and FP4 are for weights alone
    constant = [not depends_on_input(value) for value in node.inputs[:2]]
    names = ("first input", "second input")
    if any(constant):
        names = ("weight", "activation") if constant[0] else ("activation", "weight")
    side, other = names if sources[1] is None else names[::-1]
    return f"has Q/DQ on its {side} only and computes in float", f"put Q/DQ on its {other} too, or on neither"


def _activation_scales(node: ir.Node) -> Breach:
    """A Conv asks for a scalar; for Gemm and MatMul a list of one is as good."""
    source = _behind(node.inputs[0], "DequantizeLinear")
    scale = _array(_input(source, 1)) if source is not None else None
    if source is None or scale is None or (scale.size == 1 and (scale.ndim == 0 or node.op_type != "Conv")):
        return None
    found = f"has {scale.size} activation scales ('{source.name}'), of shape {scale.shape}, and computes in float"
    return found, "give the activation one scalar scale"


def _fp8_window(node: ir.Node) -> Breach:
    why = why_not_fp8(node)
    return (f"has FP8 Q/DQ and computes in float: {why}", "keep it in float, or quantize it to INT8") if why else None


def _channel_axis(node: ir.Node) -> Breach:
    weight = _input(node, 1)
    if weight.shape is None:
        return None
    axis = len(weight.shape) - 1
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1):
        axis = 0
    source = weight.producer()
    while source is not None and source.op_type in ("Cast", "Identity", "Transpose"):
        if source.op_type == "Transpose":
            axis = source.attributes.get_ints("perm", range(len(weight.shape))[::-1])[axis]
        source = _input(source, 0).producer()
    scale = _array(_input(source, 1)) if source is not None and source.op_type == "DequantizeLinear" else None
    if source is None or scale is None or scale.size == 1 or scale.ndim > 1:
        return None  # scales of blocks run along the other axis
    actual = source.attributes.get_int("axis", 1) % len(weight.shape)
    if actual == axis:
        return None
    found = f"has weight scales along axis {actual} ('{source.name}') and computes in float"
    return found, f"give one scale per output channel, axis {axis}"


def _before_activation(node: ir.Node) -> Breach:
    """NVIDIA's guide, Working with Quantized Types: quantize behind the activation, where it fuses with the Conv."""
    value = _quantized(node)
    source = value.producer() if value is not None else None
    if source is None or not is_weighted(source):
        return None
    found = f"has Q/DQ between it and '{source.name}', which rounds twice, at half the resolution"
    return found, f"put the Q/DQ behind '{node.name}'"


def _before_lrn(node: ir.Node) -> Breach:
    if _quantized(node) is None:
        return None
    return "has Q/DQ before it; LRN has no INT8 kernel, so that costs time and accuracy", "put the Q/DQ behind the LRN"


# What the rules look at


def _input(node: ir.Node, index: int) -> ir.Value:
    """The input; a value without name, type and producer where it is left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value if value is not None else ir.Value()


def _array(value: ir.Value) -> npt.NDArray[np.generic] | None:
    """Its numbers; None where it is no constant, or one of strings."""
    tensor = ir.convenience.get_const_tensor(value)
    return tensor.numpy() if tensor is not None and tensor.dtype != ir.DataType.STRING else None


def _level_type(node: ir.Node) -> ir.DataType | None:
    """The type of the levels that a QuantizeLinear makes or a DequantizeLinear takes; None where it is not known."""
    if node.op_type == "DequantizeLinear":
        return _input(node, 0).dtype
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node.inputs[2].dtype
    return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)


def _behind(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node of that type which makes ``value``, seen through nodes that only move values about."""
    source = behind(value, _MOVES)
    producer = source.producer() if source is not None else None
    return producer if producer is not None and producer.op_type == operator else None


def _quantized(node: ir.Node) -> ir.Value | None:
    """The float value that comes to the node's first input through Q/DQ."""
    dequantize = dequantize_of(node.inputs[0])
    quantize = _behind(_input(dequantize, 0), "QuantizeLinear") if dequantize is not None else None
    return _input(quantize, 0) if quantize is not None else None


_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_RULES: tuple[tuple[str, Severity, frozenset[str], Callable[[ir.Node], Breach]], ...] = (
    ("lrn-window", "error", frozenset({"LRN"}), _lrn_window),
    ("lrn-range", "error", frozenset({"LRN"}), _lrn_range),
    ("lrn-rank", "error", frozenset({"LRN"}), _lrn_rank),
    ("pool-dilations", "error", frozenset({"MaxPool"}), _pool_dilations),
    ("pool-indices", "error", frozenset({"MaxPool"}), _pool_indices),
    ("training-mode", "error", TRAINED, training_mode),
    ("uint8-input", "error", _MOVES - {"Cast"} | {"Gather", "Resize"}, _uint8_input),
    ("scalar-list", "error", frozenset({"ConstantOfShape", "Slice"}), _scalar_list),
    ("mixed-types", "error", _WEIGHTED, _mixed_types),
    ("integer-operator", "error", INTEGER_OPERATORS, _integer_operator),
    ("zero-point", "error", _QUANTIZERS, _zero_point),
    ("unsigned", "error", frozenset({"QuantizeLinear"}), _unsigned),
    ("level-type", "error", _QUANTIZERS, _levels),
    ("scale-value", "error", _QUANTIZERS, _scale_value),
    ("scale-count", "error", _QUANTIZERS, _scale_count),
    ("computed-scale", "error", _QUANTIZERS, _computed_scale),
    ("half-scale", "warning", frozenset({"DequantizeLinear"}), _half_scale),
    ("one-sided", "warning", _WEIGHTED, _one_sided),
    ("activation-scales", "warning", _WEIGHTED, _activation_scales),
    ("fp8-window", "warning", frozenset({"Conv"}), _fp8_window),
    ("channel-axis", "warning", _WEIGHTED, _channel_axis),
    ("qdq-before-relu", "warning", frozenset({"Relu", "Clip"}), _before_activation),
    ("qdq-before-lrn", "warning", frozenset({"LRN"}), _before_lrn),
)
