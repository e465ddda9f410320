"""Numbers that 8 or 16 bits do not hold."""

from __future__ import annotations

import numpy as np

from tests.field.zoo.base import built, normal
from tests.helpers.foreign_graphs import Foreign, features, head, network_weights, node


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


MAKERS = (
    tiny_channels,
    ends_in_softmax,
    ends_in_sigmoid,
    normalized,
    small_factor,
    small_variance,
    vanishing,
    overflowing,
)
