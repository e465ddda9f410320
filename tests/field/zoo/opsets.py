"""Old and new versions of ONNX."""

from __future__ import annotations

import numpy as np

from tests.field.zoo.base import around, built, ints, stem, tail
from tests.helpers.foreign_graphs import Foreign, features, head, node


def opset7() -> Foreign:
    """IR 3, initializers among the inputs, pads as attributes, and Upsample with its scales as an attribute."""
    return around(
        [
            node("Pad", ["r1"], ["padded"], "pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
            node("Upsample", ["padded"], ["twice"], "up", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"),
            node("BatchNormalization", ["twice", "gamma", "beta", "moving_mean", "moving_var"], ["bn"], "bn"),
            node("Clip", ["bn"], ["body"], "clip", min=0.0, max=6.0),
        ],
        opset=7,
        ir_version=3,
    )


def opset8() -> Foreign:
    """Sum and Max with broadcasting, an AveragePool, Softmax over what is flattened."""
    return built(
        [
            *features("image")[:4],
            node("Sum", ["r2", "half"], ["sum"], "sum"),
            node("Max", ["sum", "half"], ["max"], "max"),
            node("AveragePool", ["max"], ["pooled"], "pool", kernel_shape=[4, 4]),
            *head("fc"),
            node("Softmax", ["fc"], ["scores"], "softmax"),
        ],
        opset=8,
        ir_version=3,
        probabilities=True,
    )


def opset9() -> Foreign:
    """Upsample with scales as an input, Slice and Squeeze with attributes, BatchNormalization with momentum."""
    return built(
        [
            *stem("r1"),
            node("Upsample", ["r1", "scales"], ["twice"], "up", mode="linear"),
            node("Slice", ["twice"], ["part"], "slice", starts=[1, 1], ends=[7, 7], axes=[2, 3]),
            node(
                "BatchNormalization",
                ["part", "gamma", "beta", "moving_mean", "moving_var"],
                ["bn"],
                "bn",
                momentum=0.9,
                epsilon=1e-3,
            ),
            node("Conv", ["bn", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["gap"], "pool"),
            node("Squeeze", ["gap"], ["flat"], "squeeze", axes=[2, 3]),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ],
        opset=9,
        ir_version=3,
        scales=np.array([1, 1, 2, 2], np.float32),
    )


def opset10() -> Foreign:
    """Resize with scales, Slice with inputs, a Dropout, IR 5."""
    return around(
        [
            node("Resize", ["r1", "scales"], ["twice"], "up", mode="nearest"),
            node("Slice", ["twice", "begin", "end", "axes"], ["part"], "slice"),
            node("Dropout", ["part"], ["body"], "drop", ratio=0.5),
        ],
        opset=10,
        ir_version=5,
        scales=np.array([1, 1, 2, 2], np.float32),
        begin=ints(1, 1),
        end=ints(7, 7),
    )


def opset11() -> Foreign:
    """Pad and Clip with inputs, a Resize of PyTorch, a Softmax of four axes in the middle, Unsqueeze by attributes."""
    return around(
        [
            node("Pad", ["r1", "one_each"], ["padded"], "pad", mode="constant"),
            node("Resize", ["padded", "roi", "scales"], ["twice"], "up", mode="linear"),
            node("Softmax", ["twice"], ["shares"], "softmax", axis=3),
            node("Unsqueeze", ["shares"], ["deep"], "unsqueeze", axes=[1]),
            node("ReduceSum", ["deep"], ["flat_again"], "sum", axes=[1], keepdims=0),
            node("Clip", ["flat_again", "", "half"], ["body"], "clip"),
        ],
        opset=11,
        ir_version=6,
        one_each=ints(0, 0, 1, 1, 0, 0, 1, 1),
        roi=np.zeros(0, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
    )


def _new(opset: int, ir_version: int) -> Foreign:
    """What changed since 18: ReduceMean and Split by inputs, Pad with axes, Gelu, GroupNormalization."""
    return around(
        [
            node("Split", ["r1"], ["left", "right"], "split", axis=1, num_outputs=2),
            node("Concat", ["right", "left"], ["swapped"], "swap", axis=1),
            node("Pad", ["swapped", "one_each", "half", "axes"], ["padded"], "pad"),
            node("Gelu", ["padded"], ["gelu"], "gelu"),
            node("GroupNormalization", ["gelu", "gamma", "beta"], ["gn"], "gn", num_groups=4),
            node("ReduceMean", ["gn", "axes"], ["mean"], "mean", keepdims=1),
            node("Sub", ["gn", "mean"], ["body"], "sub"),
        ],
        opset=opset,
        ir_version=ir_version,
        one_each=ints(1, 1, 1, 1),
    )


def opset21() -> Foreign:
    return _new(21, 10)


def opset23() -> Foreign:
    return _new(23, 11)


def opset24() -> Foreign:
    """With Swish, which is new."""
    return around([node("Swish", ["r1"], ["body"], "swish")], opset=24, ir_version=12)


def opset26() -> Foreign:
    return _new(26, 13)


def rms_normalized() -> Foreign:
    """RMSNormalization of opset 23."""
    return around(
        [node("RMSNormalization", ["r1", "last"], ["body"], "rms")],
        opset=23,
        ir_version=11,
        last=np.ones(4, np.float32),
    )


def opset_of_the_future() -> Foreign:
    return built([*stem("r1"), *tail("r1")], opset=99, ir_version=10)


def ir_of_the_future() -> Foreign:
    return built([*stem("r1"), *tail("r1")], opset=21, ir_version=99)


MAKERS = (
    *(opset7, opset8, opset9, opset10, opset11, opset21, opset23, opset24, opset26),
    *(rms_normalized, opset_of_the_future, ir_of_the_future),
)
