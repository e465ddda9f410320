"""Divisions that a constant keeps from 0/0, which FP16 rounds to 0; all features are 0 on a black image alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from tests.field.zoo.base import built, ints
from tests.helpers.foreign_graphs import Foreign, head, node
from tests.helpers.graphs import Array

BLACK = -2  # the pixel


def _divided(nodes: Sequence[onnx.NodeProto], opset: int = 17, ir_version: int = 8, **weights: Array) -> Foreign:
    """``nodes`` make ``pooled`` of ``rows``, both (n, 16)."""
    w1 = np.random.default_rng(0).exponential(0.3, (16, 3, 3, 3)).astype(np.float32)
    return built(
        [
            node("Conv", ["image", "w1", "b1"], ["c1"], "c1", strides=[2, 2]),
            node("Relu", ["c1"], ["r1"], "r1"),
            node("GlobalAveragePool", ["r1"], ["gap"], "gap"),
            node("Flatten", ["gap"], ["rows"], "rows"),
            *nodes,
            *head(),
        ],
        opset=opset,
        ir_version=ir_version,
        named={"w1": w1, "b1": w1.sum((1, 2, 3)) * np.float32(1.5), **weights},
    )


def pytorch_normalize() -> Foreign:
    """F.normalize as torch.onnx writes it."""
    return _divided(
        [
            node("ReduceL2", ["rows"], ["norm"], "norm", axes=[1], keepdims=1),
            node("Clip", ["norm", "least"], ["clamped"], "clamp"),
            node("Shape", ["rows"], ["shape"], "shape"),
            node("Expand", ["clamped", "shape"], ["expanded"], "expand"),
            node("Div", ["rows", "expanded"], ["pooled"], "div"),
        ],
        least=np.array(1e-12, np.float32),
    )


def old_pytorch_normalize() -> Foreign:
    """Opset 9, whose Clip has attributes."""
    return _divided(
        [
            node("ReduceL2", ["rows"], ["norm"], "norm", axes=[1], keepdims=1),
            node("Clip", ["norm"], ["clamped"], "clamp", min=1e-12),
            node("Shape", ["rows"], ["shape"], "shape"),
            node("Expand", ["clamped", "shape"], ["expanded"], "expand"),
            node("Div", ["rows", "expanded"], ["pooled"], "div"),
        ],
        opset=9,
        ir_version=4,
    )


def plus_epsilon() -> Foreign:
    """Divided by (sqrt(sum of squares) + 1e-8)."""
    return _divided(
        [
            node("Mul", ["rows", "rows"], ["squares"], "squares"),
            node("ReduceSum", ["squares", "one"], ["sum"], "sum", keepdims=1),
            node("Sqrt", ["sum"], ["norm"], "norm"),
            node("Add", ["norm", "least"], ["clamped"], "clamp"),
            node("Div", ["rows", "clamped"], ["pooled"], "div"),
        ],
        one=ints(1),
        least=np.array(1e-8, np.float32),
    )


def keras_normalize() -> Foreign:
    """tf.math.l2_normalize as tf2onnx writes it: x · (1 / sqrt(max(sum of squares, 1e-12)))."""
    return _divided(
        [
            node("Mul", ["rows", "rows"], ["squares"], "squares"),
            node("ReduceSum", ["squares", "one"], ["sum"], "sum", keepdims=1),
            node("Max", ["sum", "least"], ["clamped"], "clamp"),
            node("Sqrt", ["clamped"], ["root"], "root"),
            node("Reciprocal", ["root"], ["inverse"], "inverse"),
            node("Mul", ["rows", "inverse"], ["pooled"], "mul"),
        ],
        one=ints(1),
        least=np.array(1e-12, np.float32),
    )


def largest_of_two() -> Foreign:
    """Divided by max(norm, 1e-12), which is moved about before."""
    return _divided(
        [
            node("ReduceL2", ["rows"], ["norm"], "norm", axes=[1], keepdims=0),
            node("Max", ["norm", "least"], ["clamped"], "clamp"),
            node("Unsqueeze", ["clamped", "one"], ["column"], "column"),
            node("Tile", ["column", "times"], ["twice"], "tile"),
            node("Slice", ["twice", "zero", "one", "one"], ["again"], "slice"),
            node("Concat", ["again", "again"], ["both"], "both", axis=1),
            node("Split", ["both"], ["left", "right"], "split", axis=1),
            node("Identity", ["right"], ["same"], "same"),
            node("Div", ["rows", "same"], ["pooled"], "div"),
        ],
        zero=ints(0),
        one=ints(1),
        times=ints(1, 2),
        least=np.array(1e-12, np.float32),
    )


def layer_normalization_of_bert() -> Foreign:
    """Written out, with the 1e-12 of BERT."""
    return _divided(
        [
            node("ReduceMean", ["rows"], ["mean"], "mean", axes=[1], keepdims=1),
            node("Sub", ["rows", "mean"], ["centered"], "center"),
            node("Pow", ["centered", "two"], ["squares"], "squares"),
            node("ReduceMean", ["squares"], ["variance"], "variance", axes=[1], keepdims=1),
            node("Add", ["variance", "least"], ["clamped"], "clamp"),
            node("Pow", ["clamped", "minus_half"], ["inverse"], "inverse"),
            node("Mul", ["centered", "inverse"], ["pooled"], "mul"),
        ],
        two=np.array(2, np.float32),
        minus_half=np.array(-0.5, np.float32),
        least=np.array(1e-12, np.float32),
    )


def logarithm() -> Foreign:
    """Of x + 1e-8."""
    return _divided(
        [
            node("Add", ["rows", "least"], ["clamped"], "clamp"),
            node("Log", ["clamped"], ["pooled"], "log"),
        ],
        least=np.array(1e-8, np.float32),
    )


MAKERS = (
    pytorch_normalize,
    old_pytorch_normalize,
    plus_epsilon,
    keras_normalize,
    largest_of_two,
    layer_normalization_of_bert,
    logarithm,
)
