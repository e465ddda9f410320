"""What was not told, and what was refused without need or in the wrong words."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.field.zoo.base import FLOAT, built, normal
from tests.helpers.foreign_graphs import Foreign, features, head, network_weights, node


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
    local_function,
    constant_on_the_left,
    computed_weight,
    windows,
    map_of_scores,
    nan_weight,
    one_sided_lrn,
    old_batch_normalization,
    old_broadcast,
    partly_quantized,
    dynamically_quantized,
    squeeze_and_excite,
)
