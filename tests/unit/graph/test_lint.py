"""Every rule with a graph that breaks just it; where TensorRT-RTX is installed, its parser and builder judge the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.engine.build import EngineReport, Graph, build
from alexdeploy.engine.versions import load_library
from alexdeploy.errors import InputError
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.lint import Finding, check_tensorrt, lint
from alexdeploy.graph.model import load_onnx, model_bytes, precision_of
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.specs import BatchProfile
from tests.helpers.graphs import Array, conv_lrn_gemm, make_model

RANGES = {name: TensorRange(2.0, name == "flatten1") for name in ("input", "relu1", "flatten1", "logits")}
Nodes = list[onnx.NodeProto]
f32, i8, u8 = np.float32, np.int8, np.uint8


def quantized(source: str, target: str, zero: str | None = "zero", scale: str = "scale") -> Nodes:
    """Q/DQ between two tensors."""
    inputs = [scale] if zero is None else [scale, zero]
    return [
        helper.make_node("QuantizeLinear", [source, *inputs], [f"{target}.q"], f"{target}.quantize"),
        helper.make_node("DequantizeLinear", [f"{target}.q", *inputs], [target], f"{target}.dequantize"),
    ]


def dequantized(target: str, axis: int) -> onnx.NodeProto:
    inputs = [f"{target}.q", f"{target}.scale", f"{target}.zero"]
    return helper.make_node("DequantizeLinear", inputs, [target], f"{target}.dequantize", axis=axis)


def constants(channels: int = 3) -> dict[str, Array]:
    """Of an activation (``scale``, ``zero``) and of the 8 filters ``w``."""
    return {
        "scale": np.asarray(f32(0.03)),
        "zero": np.asarray(i8(0)),
        "w.q": np.ones((8, channels, 3, 3), i8),
        "w.scale": np.full(8, 0.01, f32),
        "w.zero": np.zeros(8, i8),
    }


def conv(x: Nodes | None = None, w: Nodes | None = None, **changed: Any) -> onnx.ModelProto:
    """The Conv ``layer`` with Q/DQ on both inputs; other ``nodes`` for either, other constants (``w_q`` is ``w.q``)."""
    x = quantized("input", "x") if x is None else x
    w = [dequantized("w", 0)] if w is None else w
    arrays = constants() | {name.replace("_", "."): np.asarray(array) for name, array in changed.items()}
    layer = helper.make_node("Conv", ["x", "w"], ["logits"], "layer")
    nodes = [*x, *w, layer]
    used = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    return make_model(nodes, {name: array for name, array in arrays.items() if name in used})


def matrix(operator: str, axis: int, *, scale: Array | None = None, **attributes: int) -> onnx.ModelProto:
    """The Gemm or MatMul ``layer``, 192 → 4, with Q/DQ on both inputs."""
    transposed = attributes.get("transB") == 1
    shape = (4, 192) if transposed else (192, 4)
    arrays = {
        "scale": np.asarray(f32(0.03) if scale is None else scale),
        "w.q": np.ones(shape, i8),
        "w.scale": np.full(shape[axis], 0.01, f32),
        "w.zero": np.zeros(shape[axis], i8),
    }
    arrays["zero"] = np.zeros_like(arrays["scale"], i8)
    nodes = [helper.make_node("Flatten", ["input"], ["flat"]), *quantized("flat", "x"), dequantized("w", axis)]
    return make_model(
        [*nodes, helper.make_node(operator, ["x", "w"], ["logits"], "layer", **attributes)], arrays, rank=2
    )


def int32_bias() -> onnx.ModelProto:
    bias = {"b.q": np.ones(8, np.int32), "b.scale": np.full(8, 1e-3, f32), "b.zero": np.zeros(8, np.int32)}
    nodes = [*quantized("input", "x"), dequantized("w", 0), dequantized("b", 0)]
    layer = helper.make_node("Conv", ["x", "w", "b"], ["logits"], "layer")
    return make_model([*nodes, layer], constants() | bias)


def sixteen_bits() -> onnx.ModelProto:
    """Q/DQ of the activation has int16 since opset 21."""
    model = conv()
    for tensor in model.graph.initializer:
        if tensor.name == "zero":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((), np.int16), "zero"))
    model.opset_import[0].version = 21
    return model


def computed(what: Literal["scale", "zero"]) -> onnx.ModelProto:
    """Scale or zero point from the image's largest value."""
    cast = helper.make_node("Cast", ["max"], [what], to=TensorProto.FLOAT if what == "scale" else TensorProto.INT8)
    nodes = [helper.make_node("ReduceMax", ["input"], ["max"], keepdims=0), cast, *quantized("input", "logits")]
    array = {"zero": np.asarray(i8(0))} if what == "scale" else {"scale": np.asarray(f32(0.03))}
    return make_model(nodes, array)


def single(operator: str, *, shape: Sequence[int | str] = ("batch", 3, 8, 8), **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(operator, ["input"], ["logits"], "layer", **attributes)
    return make_model([node], {}, shape=shape, rank=len(shape))


def pool_with_indices(*, used: bool) -> onnx.ModelProto:
    pool = helper.make_node("MaxPool", ["input"], ["x", "at"], "layer", kernel_shape=[2, 2])
    return make_model([pool, helper.make_node("Cast", ["at" if used else "x"], ["logits"], to=TensorProto.FLOAT)], {})


def mixed_types(operator: str) -> onnx.ModelProto:
    """A half-precision weight on a float activation, which onnx.checker refuses only when it infers types."""
    weight = np.ones((8, 3, 3, 3) if operator == "Conv" else (8, 4), f32)
    node = helper.make_node(operator, ["input", "w"], ["logits"], "layer")
    model = make_model([node], {"w": weight})
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.astype(np.float16), "w"))
    return model


def integer_conv() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["x.q"], "x.quantize"),
        helper.make_node("ConvInteger", ["x.q", "w.q"], ["sum"], "layer"),
        helper.make_node("Cast", ["sum"], ["logits"], to=TensorProto.FLOAT),
    ]
    return make_model(nodes, {name: constants()[name] for name in ("scale", "zero", "w.q")})


def two_convs(between: Callable[[str, str], Nodes]) -> onnx.ModelProto:
    """Two quantized Convs with nodes between them that make the second value from the first."""
    arrays = constants() | {name.replace("w", "v"): array for name, array in constants(8).items() if name[0] == "w"}
    first = [*quantized("input", "x"), dequantized("w", 0), helper.make_node("Conv", ["x", "w"], ["c1"], "first")]
    second = [dequantized("v", 0), helper.make_node("Conv", ["m", "v"], ["logits"], "layer")]
    return make_model([*first, *between("c1", "m"), *second], arrays)


def relu(source: str, target: str) -> Nodes:
    return [helper.make_node("Relu", [source], [target], "relu")]


def lrn(source: str, target: str) -> Nodes:
    return [helper.make_node("LRN", [source], [target], "lrn", size=5)]


def dynamic_quantization() -> onnx.ModelProto:
    quantize = helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "s", "z"], "layer")
    return make_model([quantize, helper.make_node("Cast", ["q"], ["logits"], to=TensorProto.FLOAT)], {})


class Case(NamedTuple):
    """A graph that breaks one rule at ``nodes``, what is said of it, and what TensorRT-RTX makes of it.

    It refuses the graph, builds it without a word, builds it with the ``layer`` in float, or was not asked.
    """

    rule: str
    model: Callable[[], onnx.ModelProto]
    said: str
    nodes: tuple[str, ...] = ("layer",)
    verdict: Literal["refused", "built", "float", "not asked"] = "refused"


Q, DQ = "x.quantize", "x.dequantize"
W = "w.dequantize"
RELU_THEN_Q = [*relu("input", "r"), *quantized("r", "x")]
ERRORS = (
    Case("lrn-window", lambda: single("LRN", size=4), "an even window (4)"),
    Case("lrn-window", lambda: single("LRN", size=17), "a window of 17"),
    Case("lrn-range", lambda: single("LRN", size=5, beta=0.009), "beta 0.009; TensorRT takes 0.01 to"),
    Case("lrn-range", lambda: single("LRN", size=5, beta=2e5), "beta 200000"),
    Case("lrn-range", lambda: single("LRN", size=5, bias=0.9e-5), "bias 9e-06; TensorRT takes 1e-05 to"),
    Case("lrn-range", lambda: single("LRN", size=5, alpha=1e21), "alpha 1e+21"),
    Case("lrn-rank", lambda: single("LRN", size=3, shape=("batch", 3, 8)), "rank 3"),
    Case("pool-dilations", lambda: single("MaxPool", kernel_shape=[2, 2], dilations=[1, 2]), "[1, 2]"),
    Case("pool-indices", lambda: pool_with_indices(used=True), "Indices"),
    Case("pool-indices", lambda: pool_with_indices(used=False), "Indices"),
    Case("mixed-types", lambda: mixed_types("Conv"), "FLOAT and FLOAT16"),
    Case("mixed-types", lambda: mixed_types("MatMul"), "FLOAT and FLOAT16"),
    Case("integer-operator", integer_conv, "is ConvInteger"),
    Case("integer-operator", dynamic_quantization, "is DynamicQuantizeLinear"),
    Case("zero-point", lambda: conv(zero=i8(-3)), "of -3", (Q, DQ)),
    Case("zero-point", lambda: conv(zero=u8(128)), "of 128", (Q, DQ)),
    Case("zero-point", lambda: conv(w_zero=np.full(8, 2, i8)), "of 2", (W,)),
    Case("unsigned", lambda: conv(zero=u8(0)), "quantizes to uint8", (Q,), "built"),
    Case("unsigned", lambda: conv(quantized("input", "x", zero=None)), "has no zero point", (Q,), "built"),
    Case("level-type", lambda: conv(w_q=np.ones((8, 3, 3, 3), u8), w_zero=np.zeros(8, u8)), "UINT8", (W,)),
    Case("level-type", int32_bias, "INT32", ("b.dequantize",)),
    Case("level-type", sixteen_bits, "INT16", (Q,)),
    Case("scale-value", lambda: conv(scale=f32(0)), "a scale of 0;", (Q, DQ)),
    Case("scale-value", lambda: conv(scale=f32(-1)), "a scale of -1;", (Q, DQ)),
    Case("scale-value", lambda: conv(w_scale=np.array([1] * 7 + [np.nan], f32)), "a scale of nan", (W,)),
    Case("scale-value", lambda: conv(w_scale=np.array([1] * 7 + [np.inf], f32)), "a scale of inf", (W,), "built"),
    Case("scale-count", lambda: conv(w_scale=np.ones(5, f32), w_zero=np.zeros(5, i8)), "axis 0 asks for (8,)", (W,)),
    Case("computed-scale", lambda: computed("zero"), "zero point computed", ("logits.quantize", "logits.dequantize")),
    # built as it is; with a Conv behind it the builder crashes (SIGSEGV), so that it is not asked here
    Case(
        "computed-scale",
        lambda: computed("scale"),
        "scale computed",
        ("logits.quantize", "logits.dequantize"),
        "not asked",
    ),
)
WARNINGS = (Case("one-sided", lambda: conv(w=[], w=np.ones((8, 3, 3, 3), f32)), "activation only", verdict="float"),)
