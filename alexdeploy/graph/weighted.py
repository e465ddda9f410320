"""The nodes that multiply activations with constant weights, which are the ones to quantize."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy.errors import few
from alexdeploy.specs import Precision

TENSORRT_NAMES = {  # as its reports have them
    ir.DataType.FLOAT: "FLOAT",
    ir.DataType.FLOAT16: "HALF",
    ir.DataType.BFLOAT16: "BFLOAT16",
    ir.DataType.INT8: "INT8",
    ir.DataType.UINT8: "INT8",
    ir.DataType.FLOAT8E4M3FN: "FP8",
}
MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})  # adopt folds them
HALF_NAMES = {ir.DataType.FLOAT16: "FP16", ir.DataType.BFLOAT16: "BF16"}
FP8_WINDOW = 32
_NEVER_QUANTIZED = frozenset({"ConvTranspose", "DeformConv", "Einsum", "GRU", "LSTM", "RNN"})  # layers with weights too
INTEGER_OPERATORS = frozenset(  # multiply integers themselves, as dynamic quantization and QOperator write it
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QLinearConv", "QLinearMatMul"}
)
QUANTIZED_OPERATORS = INTEGER_OPERATORS | {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True)
class WeightedNode:
    """A Conv, Gemm or MatMul with constant weights.

    ``channel_axis`` is the axis of the weight that runs over output channels: 0 for Conv (OIHW) and Gemm with
    transB=1, 1 for Gemm with transB=0 and MatMul.
    """

    node: ir.Node
    channel_axis: int

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def groups(self) -> int:
        """Of a Conv; 1 for the others."""
        return _groups(self.node)

    @property
    def activation(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None  # guaranteed by the checker
        return value

    @property
    def weight(self) -> ir.Value:
        value = self.node.inputs[1]
        assert value is not None  # guaranteed by weighted_nodes()
        return value

    def weight_array(self) -> npt.NDArray[np.floating]:
        tensor = self.weight.const_value
        assert tensor is not None  # guaranteed by weighted_nodes()
        return tensor.numpy()


def weighted_nodes(model: ir.Model) -> list[WeightedNode]:
    """Nodes of the model with float initializers as weights, in graph order; a MatMul only where that is a matrix.

    No 64 bits: QuantizeLinear takes none.
    """
    return [
        WeightedNode(node, _channel_axis(node))
        for node in model.graph
        if is_weighted(node) and _is_initializer(node.inputs[1]) and not _is_double(node) and not _is_stacked(node)
    ]


def bias_per_channel(node: ir.Node, channels: int) -> npt.NDArray[np.floating] | None:
    """(channels,), zeros where there is no bias; None where it is computed, or differs from row to row of a Gemm."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return np.zeros(channels, np.float32)
    array = bias.const_value.numpy() if bias.const_value is not None else None
    if array is None or math.prod(array.shape[:-1]) != 1:
        return None
    return np.broadcast_to(array.reshape(-1), channels)


def half_weights(model: ir.Model) -> str | None:
    """FP16 or BF16 where the graph holds such weights."""
    held = (HALF_NAMES[value.dtype] for value in model.graph.initializers.values() if value.dtype in HALF_NAMES)
    return next(held, None)


def grouped_layers(model: ir.Model) -> list[str]:
    """Names of the convolutions with groups, quantized or not; depthwise ones have kernels of their own."""
    return [str(node.name) for node in model.graph if is_weighted(node) and 1 < _groups(node) != _outputs(node)]


def grouped_hint(layers: Collection[str]) -> str:
    """What to measure where TensorRT computes those convolutions in INT8 (NVIDIA/TensorRT issue 4529)."""
    return (
        f"TensorRT may split INT8 convolutions with groups ({few(layers)}) by their groups, and be slower than in FP16 "
        f"(NVIDIA/TensorRT#4529); measure also with `keep_float` {','.join(layers)}"
    )


def quantized_nodes(model: ir.Model) -> list[ir.Node]:
    """Conv, Gemm and MatMul that Q/DQ requests in a type of 8 bits."""
    return [node for node in model.graph if quantized_type(node) is not None]


def quantized_type(node: ir.Node) -> str | None:
    """TensorRT's name of the type that Q/DQ requests for a Conv, Gemm or MatMul; None where it is not quantized.

    Both activation and weight come from a DequantizeLinear, through a Cast at most.
    """
    if not is_weighted(node):
        return None
    types = [type_of_levels(dequantize) for value in node.inputs[:2] if (dequantize := dequantize_of(value))]
    return types[0] if len(types) == 2 else None


def why_left_float(node: ir.Node) -> str | None:
    """Why quantization leaves a layer in float; None where it does not, and for a product of two activations."""
    if not is_weighted(node) or quantized_type(node) is not None:
        return None
    first, weight = node.inputs[:2]
    dequantize = dequantize_of(behind(weight))
    if dequantize is not None and not depends_on_input(dequantize.inputs[0]):
        one_sided = dequantize_of(behind(first)) is None and type_of_levels(dequantize) in ("INT8", "FP8")
        return "only its weights have Q/DQ" if one_sided else None  # INT4 is for weights alone
    if _is_initializer(weight):
        if _is_double(node):
            return "its weights are float64"
        return "its weight is no matrix" if _is_stacked(node) else None
    if not depends_on_input(weight):
        maker = weight.producer() if weight is not None else None
        if maker is not None and maker.op_type in MOVES and _is_initializer(behind(weight)):
            return f"its weights go through a {maker.op_type}; adopt the file, which computes that once"
        return "its weights are computed at run time"
    return "its weights are its first input" if not depends_on_input(first) else None


def layers_left(model: ir.Model, asked: Precision) -> dict[str, str]:
    """The layers with weights that are not in the precision asked for although nobody chose so, and why."""
    left = {}
    for node in model.graph.all_nodes():
        other = _is_other_layer(node)
        if not (is_weighted(node) or other) or asked is Precision.FP32:
            continue
        why = f"{node.op_type} is not quantized" if other else why_left_float(node)
        if node.graph is not model.graph:
            why = "it is in a branch or a loop"
        elif not asked.quantized:
            name = "FP16" if asked.fp16 else "BF16" if asked.bf16 else None
            types = {value.dtype for value in node.inputs[:2] if value is not None}
            if name and ir.DataType.FLOAT in types:
                why = f"{name} does not hold its weights, or what it reads or gives"
                if asked.bf16:  # its range is that of FP32
                    why = f"ONNX has no {node.op_type} in BF16"
            elif ir.DataType.DOUBLE not in types:
                why = None
        if why is not None:
            left[str(node.name)] = why
    if asked is not Precision.FP32:
        inner = (node for function in model.functions.values() for node in function)
        left |= {str(node.name): "it is in a function; adopt the file" for node in inner if is_weighted(node)}
    return left


def depends_on_input(value: ir.Value | None) -> bool:
    """Whether the value changes from run to run, and is not computed from constants alone."""
    values: list[ir.Value | None] = [value]
    seen = {value}
    while values:
        value = values.pop()
        producer = value.producer() if value is not None else None
        if producer is None and value is not None and value.name and not value.is_initializer():
            return True
        more = set(producer.inputs) - seen if producer is not None else set()
        seen |= more
        values += more
    return False


def half_type(node: ir.Node) -> str | None:
    """TensorRT's name of the 16-bit type that a Conv, Gemm or MatMul without Q/DQ computes in; None for any other."""
    weight = node.inputs[1] if is_weighted(node) and quantized_type(node) is None else None
    return TENSORRT_NAMES[weight.dtype] if weight is not None and weight.dtype in HALF_NAMES else None


def why_not_fp8(node: ir.Node) -> str | None:
    """Why TensorRT has no FP8 kernel for a convolution with FP8 Q/DQ; None for any other node.

    Its windows hold at most 32 places: 5×5 and 4×8 are FP8, 6×6 and 1×33 are not (TensorRT-RTX 1.7.1, whatever the
    channels, groups and strides are).
    """
    dequantize = dequantize_of(node.inputs[1]) if node.op_type == "Conv" and quantized_type(node) == "FP8" else None
    levels = dequantize.inputs[0] if dequantize is not None else None
    if levels is None or levels.shape is None:
        return None
    sides = [side for side in levels.shape[2:] if isinstance(side, int)]
    if math.prod(sides) <= FP8_WINDOW:
        return None
    window = "×".join(map(str, sides))
    return f"its window {window} has {math.prod(sides)} places, an FP8 convolution at most {FP8_WINDOW}"


def type_of_levels(dequantize: ir.Node) -> str:
    """TensorRT's name of the type that a DequantizeLinear reads, INT8 where the graph does not say."""
    for value in (*dequantize.inputs[2:], dequantize.inputs[0]):  # the zero point has it even before shape inference
        if value is not None and value.dtype is not None:
            return TENSORRT_NAMES.get(value.dtype, value.dtype.name)
    return "INT8"


def dequantize_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes ``value``, seen through one Cast."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Cast":
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def behind(value: ir.Value | None, operators: Collection[str] = MOVES) -> ir.Value | None:
    """What comes through those operators, by default the ones that only move or convert values, to be ``value``."""
    while value is not None and (maker := value.producer()) is not None and maker.op_type in operators:
        value = maker.inputs[0]
    return value


def is_weighted(node: ir.Node) -> bool:
    """Conv, Gemm or MatMul of the standard domain, whatever its weights are."""
    return not node.domain and node.op_type in ("Conv", "Gemm", "MatMul") and len(node.inputs) >= 2


def _is_other_layer(node: ir.Node) -> bool:
    """A layer with constant weights whose operator is never quantized."""
    known = node.op_type in _NEVER_QUANTIZED and not node.domain
    return known and any(_is_initializer(behind(value)) for value in node.inputs)


def _groups(node: ir.Node) -> int:
    group = node.attributes.get("group")
    return 1 if group is None else group.as_int()


def _outputs(node: ir.Node) -> int | None:
    """Output channels of a Conv; None where the graph does not say."""
    weight = node.inputs[1]
    dequantize = dequantize_of(weight)
    stored = dequantize.inputs[0] if dequantize is not None else weight
    size = stored.shape[0] if stored is not None and stored.shape is not None and len(stored.shape) else None
    return size if isinstance(size, int) else None


def _is_initializer(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.const_value is not None


def _is_double(node: ir.Node) -> bool:
    weight = node.inputs[1]
    return weight is not None and weight.dtype == ir.DataType.DOUBLE


def _is_stacked(node: ir.Node) -> bool:
    """A MatMul with one vector or a stack of matrices has no axis of output channels."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    tensor = weight.const_value if weight is not None else None
    return tensor is not None and len(tensor.shape) != 2


def _channel_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = node.attributes.get("transB")
    return 0 if node.op_type == "Gemm" and transposed is not None and transposed.as_int() == 1 else 1
