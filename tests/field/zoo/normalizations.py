"""Normalizations, by the batch, the image and the channels."""

from __future__ import annotations

import numpy as np

from tests.field.zoo.base import around, built, ints, normal, tail
from tests.helpers.foreign_graphs import Foreign, node


def batch_normalizations() -> Foreign:
    """In front of the first convolution, and behind a ReLU, where nothing folds it."""
    return built(
        [
            node("BatchNormalization", ["image", "g3", "g3", "z3", "g3"], ["bn0"], "bn0"),
            node("Conv", ["bn0", "w1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c1", "gamma", "beta", "moving_mean", "moving_var"], ["bn1"], "bn1"),
            node("Relu", ["bn1"], ["r1"], "r1"),
            node("BatchNormalization", ["r1", "gamma", "beta", "moving_mean", "moving_var"], ["bn2"], "bn2"),
            *tail("bn2"),
        ],
        g3=np.array([0.5, 1, 2], np.float32),
        z3=np.zeros(3, np.float32),
    )


def training_batch_normalization() -> Foreign:
    """An export in training mode: statistics of the batch, and the running ones as outputs."""
    return around(
        [
            node(
                "BatchNormalization",
                ["r1", "gamma", "beta", "moving_mean", "moving_var"],
                ["body", "mean_out", "var_out"],
                "bn",
                training_mode=1,
            )
        ]
    )


def old_training_batch_normalization() -> Foreign:
    """Opset 9, five outputs."""
    outputs = ["body", "mean_out", "var_out", "saved_mean", "saved_var"]
    return around(
        [node("BatchNormalization", ["r1", "gamma", "beta", "moving_mean", "moving_var"], outputs, "bn")],
        opset=9,
        ir_version=3,
    )


def other_normalizations() -> Foreign:
    """InstanceNormalization, GroupNorm as PyTorch writes it below opset 21, MeanVarianceNormalization, LpNorm."""
    return around(
        [
            node("InstanceNormalization", ["r1", "gamma", "beta"], ["in"], "in"),
            node("Reshape", ["in", "groups"], ["grouped"], "groups"),
            node("InstanceNormalization", ["grouped", "ones4", "zeros4"], ["gn"], "gn"),
            node("Reshape", ["gn", "maps"], ["back"], "maps"),
            node("Mul", ["back", "scale"], ["scaled"], "scale"),
            node("MeanVarianceNormalization", ["scaled"], ["mvn"], "mvn", axes=[1, 2, 3]),
            node("LpNormalization", ["mvn"], ["body"], "lp", axis=1, p=2),
        ],
        groups=ints(0, 4, -1),
        ones4=np.ones(4, np.float32),
        zeros4=np.zeros(4, np.float32),
        maps=ints(0, 16, 4, 4),
        scale=normal(1, 16, 1, 1),
    )


def mean_over_the_batch() -> Foreign:
    """MeanVarianceNormalization by default: over the batch, too."""
    return around([node("MeanVarianceNormalization", ["c1"], ["body"], "mvn")])


def lrn_by_default() -> Foreign:
    """LRN with its size alone."""
    return around([node("LRN", ["r1"], ["body"], "lrn", size=5)])


def strong_lrn() -> Foreign:
    """LRN whose sums matter, size 1 beside it, and one in NHWC behind a Transpose: there its axis is the height."""
    return around(
        [
            node("LRN", ["r1"], ["l1"], "l1", size=3, alpha=0.5, beta=0.75, bias=2.0),
            node("LRN", ["l1"], ["l2"], "l2", size=1, alpha=0.1),
            node("Transpose", ["l2"], ["last"], "last", perm=[0, 2, 3, 1]),
            node("LRN", ["last"], ["l3"], "l3", size=3, alpha=0.2),
            node("Transpose", ["l3"], ["body"], "first", perm=[0, 3, 1, 2]),
        ]
    )


def even_lrn() -> Foreign:
    """tensorflow/tensorflow's depth_radius 2 is 5; a size of 4 has no middle."""
    return around([node("LRN", ["r1"], ["body"], "lrn", size=4, alpha=0.1)])


MAKERS = (
    batch_normalizations,
    training_batch_normalization,
    old_training_batch_normalization,
    other_normalizations,
    mean_over_the_batch,
    lrn_by_default,
    strong_lrn,
    even_lrn,
)
