"""One builder per public bug report: the smallest graph of its shape, written with onnx.helper.

The reports are listed in the docstrings; the graphs are our own, in their shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.helpers.foreign_graphs import Foreign, Tensor, features, graph, head, network_weights, node
from tests.helpers.graphs import Array

FLOAT = TensorProto.FLOAT
IMAGE: Tensor = ("image", FLOAT, ["n", 3, 8, 8])
SCORES: Tensor = ("scores", FLOAT, ["n", 4])


def built(
    nodes: Sequence[onnx.NodeProto],
    *,
    scores: Tensor = SCORES,
    opset: int = 17,
    ir_version: int = 8,
    probabilities: bool = False,
    named: Mapping[str, Array] = MappingProxyType({}),
    **weights: Array,
) -> Foreign:
    """A graph from the image to the scores, with the common weights, ``weights`` and ``named``."""
    known = network_weights() | weights | dict(named)
    made = graph(nodes, [IMAGE], [scores], opset=opset, ir_version=ir_version, weights=known)
    return Foreign(made, logits=scores[0], probabilities=probabilities)


def normal(*shape: int, seed: int = 1, scale: float = 0.3) -> Array:
    """Random weights."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


# Numbers


def tiny_channels() -> Foreign:
    """microsoft/onnxruntime#22020, #21645, #25278: channels with tiny weights and an ordinary bias."""
    weights = network_weights()
    w2, b2 = weights["w2"], weights["b2"]
    w2[2] *= 1e-10
    w2[5] *= 1e-11
    b2[2], b2[5] = 3, 4
    return built([*features("image"), *head()], w2=w2, b2=b2)


def ends_in_softmax() -> Foreign:
    """roboflow/inference#201, ultralytics#13851."""
    return built([*features("image"), *head("fc"), node("Softmax", ["fc"], ["scores"], "softmax")], probabilities=True)


def ends_in_sigmoid() -> Foreign:
    return built([*features("image"), *head("fc"), node("Sigmoid", ["fc"], ["scores"], "sigmoid")])


def normalized() -> Foreign:
    """pytorch/pytorch#32137: F.normalize keeps from dividing by 0 with 1e-12; for half of the images all is 0."""
    return built(
        [
            *features("image")[:4],
            node("GlobalAveragePool", ["r2"], ["gap"], "pool"),
            node("Flatten", ["gap"], ["rows"], "rows"),
            node("Gemm", ["rows", "faint", "dead"], ["faint_rows"], "faint"),
            node("Relu", ["faint_rows"], ["alive"], "alive"),
            node("ReduceL2", ["alive"], ["length"], "length", axes=[1], keepdims=1),
            node("Clip", ["length", "smallest"], ["clipped"], "clip"),
            node("Div", ["alive", "clipped"], ["pooled"], "div"),
            *head(),
        ],
        faint=normal(16, 16),
        dead=np.full(16, -1e3, np.float32),
        smallest=np.array(1e-12, np.float32),
    )


def small_factor() -> Foreign:
    """Activations below what FP16 holds, brought back up by a constant that it does not hold either."""
    return built(
        [
            *features("image"),
            node("Mul", ["pooled", "nano"], ["small"], "shrink"),
            node("Div", ["small", "nano"], ["back"], "enlarge"),
            node("Flatten", ["back"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ],
        nano=np.array(1e-9, np.float32),
    )


def small_variance() -> Foreign:
    """A BatchNormalization whose variance and epsilon are below what FP16 holds."""
    random = np.random.default_rng(0)
    w2 = network_weights()["w2"] * 1e-5
    return built(
        [
            *features("image")[:2],
            node("Conv", ["r1", "w2", "zero"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c2", "gamma", "beta", "zero", "var"], ["bn"], "bn", epsilon=1e-10),
            node("Relu", ["bn"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            *head(),
        ],
        w2=w2,
        zero=np.zeros(16, np.float32),
        var=random.uniform(0.5e-9, 1.5e-9, 16).astype(np.float32),
    )


def vanishing() -> Foreign:
    """Weights that shrink to 1e-9 and grow again without any normalisation; torchvision nets with fresh weights."""
    weights = network_weights()
    return built(
        [
            node("Conv", ["image", "w1", "small"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["c1"], ["r1"], "r1"),
            node("Conv", ["r1", "w2", "none"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            *head(),
        ],
        w1=weights["w1"] * np.float32(1e-5),
        small=weights["b1"] * np.float32(1e-5),
        w2=weights["w2"] * np.float32(1e-4),
        none=np.zeros(16, np.float32),
        kernel=weights["kernel"] * np.float32(1e9),
    )


def overflowing() -> Foreign:
    """Activations of about a million between two convolutions, each with weights that FP16 holds."""
    weights = network_weights()
    return built(
        [
            node("Conv", ["image", "w1", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["c1"], ["r1"], "r1"),
            node("Conv", ["r1", "large"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("Conv", ["r2", "small"], ["c3"], "c3"),
            node("GlobalAveragePool", ["c3"], ["pooled"], "pool"),
            *head(),
        ],
        large=np.clip(weights["w2"] * 1e6, -6e4, 6e4),
        small=normal(16, 16, 1, 1) * np.float32(1e-4),
    )


# Files that did not load


def stacked_matmul() -> Foreign:
    """microsoft/onnxruntime#25489: a MatMul whose constant has rank 3."""
    return built(
        [
            *features("image"),
            node("Reshape", ["pooled", "shape"], ["rows"], "rows"),
            node("MatMul", ["rows", "stack"], ["mm"], "mm"),
            node("Squeeze", ["mm", "one"], ["scores"], "squeeze"),
        ],
        shape=np.array([-1, 1, 16], np.int64),
        stack=normal(1, 16, 4),
        one=np.array([1], np.int64),
    )


def constant_of_shape() -> Foreign:
    """microsoft/onnxruntime#20570, #6501: a float made by ConstantOfShape."""
    half = helper.make_tensor("value", FLOAT, [1], [0.5])
    return built(
        [
            *features("image"),
            node("Shape", ["pooled"], ["shape"], "shape"),
            node("ConstantOfShape", ["shape"], ["halves"], "cos", value=half),
            node("Mul", ["pooled", "halves"], ["scaled"], "mul"),
            node("Flatten", ["scaled"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ]
    )


def mask_of_shape() -> Foreign:
    """Swin of torchvision: Equal compares what ConstantOfShape made with a float."""
    zeros = helper.make_tensor("value", FLOAT, [1], [0.0])
    return built(
        [
            *features("image"),
            node("Shape", ["pooled"], ["shape"], "shape"),
            node("ConstantOfShape", ["shape"], ["nought"], "cos", value=zeros),
            node("Sub", ["pooled", "pooled"], ["zero"], "sub"),
            node("Equal", ["nought", "zero"], ["mask"], "equal"),
            node("Where", ["mask", "pooled", "nought"], ["masked"], "where"),
            node("Flatten", ["masked"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ]
    )


def captured() -> Foreign:
    """NVIDIA/Model-Optimizer#1628: the branches of an If read a float of the graph around it."""

    def branch(name: str, operator: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, FLOAT, ["n", 4])
        two = helper.make_tensor("two_" + name, FLOAT, [], [2.0])
        inner = node(operator, ["fc", "two_" + name], [name], "in_" + name)
        return helper.make_graph([inner], name, [], [value], [two])

    return built(
        [
            *features("image"),
            *head("fc"),
            node("ReduceMax", ["fc"], ["largest"], "largest", keepdims=0),
            node("Greater", ["largest", "half"], ["high"], "greater"),
            node("If", ["high"], ["scores"], "if", then_branch=branch("a", "Mul"), else_branch=branch("b", "Add")),
        ]
    )


def float64_island() -> Foreign:
    """SonySemiconductorSolutions/mct-model-optimization#489."""
    return built(
        [
            *features("image"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("Cast", ["flat"], ["double"], "double", to=TensorProto.DOUBLE),
            node("MatMul", ["double", "wide"], ["product"], "mm"),
            node("Cast", ["product"], ["scores"], "single", to=FLOAT),
        ],
        wide=normal(16, 4).astype(np.float64),
    )


# Tracebacks


def taken_activation_name() -> Foreign:
    """microsoft/onnxruntime#24705, #8811: ``bn1`` is an activation, and ``bn1.scale`` an initializer."""
    return built(
        [
            node("Conv", ["image", "w1", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c1", "bn1.scale", "beta", "moving_mean", "moving_var"], ["bn1"], "bn1"),
            node("Relu", ["bn1"], ["bn1.q"], "r1"),
            node("Conv", ["bn1.q", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Add", ["c2", "bn1"], ["sum"], "add"),
            node("Conv", ["bn1", "w2", "b2"], ["c3"], "c3", pads=[1, 1, 1, 1]),
            node("Add", ["c3", "sum"], ["r2"], "add2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            *head(),
        ],
        named={"bn1.scale": network_weights()["gamma"]},
    )


def taken_weight_name() -> Foreign:
    """microsoft/onnxscript#2680, onnx/ir-py#246: names that ours would get, weights, values and FP16's."""
    return built(
        [
            node("Mul", ["image", "c1.weight.scale"], ["image.fp16"], "x"),
            *features("image.fp16"),
            node("Mul", ["pooled", "w1.fp16"], ["r1.dq"], "y"),
            node("Mul", ["r1.dq", "c2.bias.scale"], ["scaled"], "z"),
            node("Flatten", ["scaled"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores.fp16"], "fc"),
            node("Mul", ["scores.fp16", "half"], ["scores"], "end"),
        ],
        named={name: np.array(1.5, np.float32) for name in ("c1.weight.scale", "w1.fp16", "c2.bias.scale")},
    )


def vector_matmul() -> Foreign:
    """MatMul with a vector."""
    return built(
        [
            *features("image")[:4],
            node("Transpose", ["r2"], ["last"], "last", perm=[0, 2, 3, 1]),
            node("MatMul", ["last", "vector"], ["map"], "mm"),
            node("Flatten", ["map"], ["flat"], "flatten"),
            node("Gemm", ["flat", "dense", "bias"], ["scores"], "fc"),
        ],
        vector=normal(16),
        dense=normal(16, 4, seed=2),
    )


def reshape_attribute() -> Foreign:
    """onnx/onnx#2191, onnx/models#439: opset 3, where the shape of Reshape is an attribute."""
    return built(
        [
            *features("image"),
            node("Reshape", ["pooled"], ["flat"], "flatten", shape=[0, 16]),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc", broadcast=1),
        ],
        opset=3,
        ir_version=3,
    )


def dropout_mask() -> Foreign:
    """Caffe's zoo files: Dropout with its mask, which was a float and is a bool from opset 10 on."""
    return built(
        [
            *features("image"),
            node("Dropout", ["pooled"], ["dropped", "mask"], "drop", ratio=0.5),
            node("Flatten", ["dropped"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ],
        opset=8,
        ir_version=3,
    )


# What was not told


def local_function() -> Foreign:
    """pytorch/pytorch#111495: the convolution is in a function of the file."""
    block = node("Block", ["image", "w1", "b1"], ["r1"], "block", domain="local")
    made = built([block, *features("image")[2:], *head()])
    model = made.model
    opsets = [helper.make_opsetid("", 17)]
    inner = [
        node("Conv", ["x", "w", "b"], ["y"], "conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["y"], ["z"], "relu"),
    ]
    model.functions.append(helper.make_function("local", "Block", ["x", "w", "b"], ["z"], inner, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return made


def constant_on_the_left() -> Foreign:
    """MatMul(W, x)."""
    return built(
        [
            *features("image")[:4],
            node("Reshape", ["r2", "maps"], ["flat_maps"], "maps"),
            node("MatMul", ["left", "flat_maps"], ["mixed"], "mix"),
            node("Flatten", ["mixed"], ["flat"], "flatten"),
            node("Gemm", ["flat", "dense", "bias"], ["scores"], "fc"),
        ],
        maps=np.array([0, 16, 16], np.int64),
        left=normal(8, 16),
        dense=normal(8 * 16, 4, seed=2),
    )


def computed_weight() -> Foreign:
    """light_bvlc_alexnet: weights made at run time."""
    value = helper.make_tensor("value", FLOAT, [1], [0.02])
    return built(
        [
            *features("image"),
            node("Flatten", ["pooled"], ["row"], "row"),
            node("ConstantOfShape", ["wide"], ["made"], "cos", value=value),
            node("Gemm", ["row", "made"], ["long"], "long"),
            node("Slice", ["long", "start", "end", "one"], ["short"], "short"),
            node("Gemm", ["short", "kernel", "bias"], ["scores"], "fc"),
        ],
        wide=np.array([16, 20000], np.int64),
        start=np.array([0], np.int64),
        end=np.array([16], np.int64),
        one=np.array([1], np.int64),
    )


# What was refused


def windows() -> Foreign:
    """microsoft/winml-cli#129, torchvision's swin and ViT: the first axis is not the batch."""
    return built(
        [
            *features("image")[:4],
            node("Transpose", ["r2"], ["tokens"], "tokens", perm=[2, 3, 0, 1]),
            node("Reshape", ["tokens", "rows"], ["sequence"], "sequence"),
            node("MatMul", ["sequence", "project"], ["projected"], "project"),
            node("Relu", ["projected"], ["positive"], "positive"),
            node("MatMul", ["positive", "again"], ["twice"], "again"),
            node("ReduceMean", ["twice"], ["mean"], "mean", axes=[0], keepdims=0),
            node("Gemm", ["mean", "kernel", "bias"], ["scores"], "fc"),
        ],
        rows=np.array([16, -1, 16], np.int64),
        project=normal(16, 16),
        again=normal(16, 16, seed=2),
    )


def map_of_scores() -> Foreign:
    """leonardvandriel/caffe2_cpp_tutorial#23, light_squeezenet: (N, classes, 1, 1)."""
    return built(
        [
            *features("image")[:4],
            node("Conv", ["r2", "last", "bias"], ["c3"], "c3"),
            node("GlobalAveragePool", ["c3"], ["scores"], "pool"),
        ],
        scores=("scores", FLOAT, ["n", 4, 1, 1]),
        last=normal(4, 16, 1, 1),
    )


def nan_weight() -> Foreign:
    """NVIDIA/TensorRT#3112."""
    w2 = network_weights()["w2"]
    w2[3, 1] = np.nan
    return built([*features("image"), *head()], w2=w2)


def one_sided_lrn() -> Foreign:
    """A decomposed LRN whose window lies to one side: channels c-4 … c."""
    return built(
        [
            *features("image")[:2],
            node("Mul", ["r1", "r1"], ["squared"], "square"),
            node("Unsqueeze", ["squared", "first"], ["deep"], "unsqueeze"),
            node("Pad", ["deep", "pads"], ["padded"], "pad"),
            node("AveragePool", ["padded"], ["mean"], "average", kernel_shape=[5, 1, 1], strides=[1, 1, 1]),
            node("Squeeze", ["mean", "first"], ["sums"], "squeeze"),
            node("Mul", ["sums", "alpha"], ["scaled"], "scale"),
            node("Add", ["scaled", "one"], ["biased"], "add"),
            node("Pow", ["biased", "beta_"], ["power"], "pow"),
            node("Div", ["r1", "power"], ["normed"], "div"),
            node("Conv", ["normed", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            *head(),
        ],
        first=np.array([1], np.int64),
        pads=np.array([0, 0, 4, 0, 0, 0, 0, 0, 0, 0], np.int64),
        alpha=np.array(0.5, np.float32),
        one=np.array(1, np.float32),
        beta_=np.array(0.75, np.float32),
    )


def old_batch_normalization() -> Foreign:
    """microsoft/onnxruntime#967, onnx/models#439: opset 6, whose BatchNormalization ONNX Runtime lacks."""
    return built(
        [
            node("Conv", ["image", "w1", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node(
                "BatchNormalization",
                ["c1", "gamma", "beta", "moving_mean", "moving_var"],
                ["bn"],
                "bn",
                is_test=1,
                epsilon=1e-3,
            ),
            node("Relu", ["bn"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc", broadcast=1),
        ],
        opset=6,
        ir_version=3,
    )


def old_broadcast() -> Foreign:
    """Opset 6: Mul broadcasts along an axis that an attribute names."""
    return built(
        [
            *features("image")[:4],
            node("Mul", ["r2", "gamma"], ["scaled"], "mul", broadcast=1, axis=1),
            node("GlobalAveragePool", ["scaled"], ["pooled"], "pool"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc", broadcast=1),
        ],
        opset=6,
        ir_version=3,
    )


def partly_quantized() -> Foreign:
    """Q/DQ on a weight alone, in HWIO behind a Transpose."""
    w2 = network_weights()["w2"].transpose(2, 3, 1, 0)
    scale = np.array(np.abs(w2).max() / 127, np.float32)
    return built(
        [
            *features("image")[:2],
            node("DequantizeLinear", ["levels", "step", "zero"], ["hwio"], "dq"),
            node("Transpose", ["hwio"], ["oihw"], "turn", perm=[3, 2, 0, 1]),
            node("Conv", ["r1", "oihw", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            *head(),
        ],
        levels=np.rint(w2 / scale).astype(np.int8),
        step=scale,
        zero=np.array(0, np.int8),
    )


def dynamically_quantized() -> Foreign:
    """What onnxruntime's quantize_dynamic writes."""
    return built(
        [
            node("Flatten", ["image"], ["flat"], "flatten"),
            node("DynamicQuantizeLinear", ["flat"], ["levels", "step", "zero"], "dynamic"),
            node("MatMulInteger", ["levels", "integers", "zero"], ["sums"], "mm"),
            node("Cast", ["sums"], ["wide"], "cast", to=FLOAT),
            node("Mul", ["wide", "step"], ["scaled"], "mul"),
            node("Add", ["scaled", "bias"], ["scores"], "add"),
        ],
        integers=np.random.default_rng(0).integers(-127, 128, (192, 4)).astype(np.int8),
    )


def squeeze_and_excite() -> Foreign:
    """efficientnet: a gate of two 1×1 convolutions."""
    return built(
        [
            *features("image")[:4],
            node("GlobalAveragePool", ["r2"], ["gap"], "gap"),
            node("Conv", ["gap", "down"], ["low"], "down"),
            node("Relu", ["low"], ["low_r"], "low_r"),
            node("Conv", ["low_r", "up"], ["high"], "up"),
            node("Sigmoid", ["high"], ["gate"], "gate"),
            node("Mul", ["r2", "gate"], ["gated"], "mul"),
            node("GlobalAveragePool", ["gated"], ["pooled"], "pool"),
            *head(),
        ],
        down=normal(4, 16, 1, 1),
        up=normal(16, 4, 1, 1, seed=2),
    )


MAKERS = (
    *(tiny_channels, ends_in_softmax, ends_in_sigmoid, normalized, small_factor, small_variance, vanishing),
    overflowing,
    *(stacked_matmul, constant_of_shape, mask_of_shape, captured, float64_island),
    *(taken_activation_name, taken_weight_name, vector_matmul, reshape_attribute, dropout_mask),
    *(local_function, constant_on_the_left, computed_weight),
    *(windows, map_of_scores, nan_weight, one_sided_lrn, old_batch_normalization, old_broadcast),
    *(partly_quantized, dynamically_quantized, squeeze_and_excite),
)
ZOO = {maker.__name__: maker for maker in MAKERS}
