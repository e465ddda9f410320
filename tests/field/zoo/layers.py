"""Kinds of layers."""

from __future__ import annotations

import numpy as np

from tests.field.zoo.base import around, built, ints, normal, stem
from tests.helpers.foreign_graphs import Foreign, features, head, network_weights, node


def without_bias() -> Foreign:
    """Conv, Gemm and MatMul without one."""
    return built(
        [
            node("Conv", ["image", "w1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["c1"], ["r1"], "r1"),
            node("Conv", ["r1", "w2", ""], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("Gemm", ["flat", "square"], ["fc"], "fc1"),
            node("MatMul", ["fc", "kernel"], ["scores"], "fc2"),
        ],
        square=normal(16, 16),
    )


def scaled_gemm() -> Foreign:
    """alpha, beta and transA; a bias of one row, of one number, and of one column."""
    return built(
        [
            *features("image"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("Transpose", ["flat"], ["turned"], "turn", perm=[1, 0]),
            node("Gemm", ["turned", "square", "row"], ["fc1"], "fc1", alpha=0.5, beta=3.0, transA=1),
            node("Gemm", ["fc1", "square", "number"], ["fc2"], "fc2", alpha=4.0, transB=1),
            node("Gemm", ["fc2", "kernel", "bias"], ["scores"], "fc3", beta=0.25),
        ],
        square=normal(16, 16),
        row=normal(1, 16, seed=3),
        number=np.array([0.7], np.float32),
    )


def training_dropout() -> Foreign:
    """Pytorch's export in training mode."""
    return around([node("Dropout", ["r1", "half", "training"], ["body"], "drop")], training=np.array(True))


def training_dropout_at_zero() -> Foreign:
    """With a ratio of 0 it changes nothing."""
    return around(
        [node("Dropout", ["r1", "none", "training"], ["body"], "drop")],
        training=np.array(True),
        none=np.array(0, np.float32),
    )


def noisy() -> Foreign:
    """RandomNormalLike, as of a diffusion model."""
    return around([node("RandomNormalLike", ["r1"], ["noise"], "noise"), node("Add", ["r1", "noise"], ["body"], "add")])


def depthwise_and_grouped() -> Foreign:
    """MobileNet and ResNeXt, dilated too."""
    return around(
        [
            node("Conv", ["r1", "depth", "b1"], ["d1"], "d1", pads=[1, 1, 1, 1], group=16),
            node("Clip", ["d1", "nought", "six"], ["rd"], "rd"),
            node("Conv", ["rd", "point"], ["p1"], "p1"),
            node("Conv", ["p1", "grouped", "b1"], ["g1"], "g1", pads=[2, 2, 2, 2], dilations=[2, 2], group=4),
            node("Relu", ["g1"], ["body"], "body"),
        ],
        depth=normal(16, 1, 3, 3),
        point=normal(16, 16, 1, 1),
        grouped=normal(16, 4, 3, 3),
        nought=np.array(0, np.float32),
        six=np.array(6, np.float32),
    )


def transposed_convolution() -> Foreign:
    """ConvTranspose, grouped, with output_padding."""
    return around(
        [
            node(
                "ConvTranspose",
                ["r1", "up", "b1"],
                ["wide"],
                "up",
                strides=[2, 2],
                pads=[1, 1, 1, 1],
                output_padding=[1, 1],
                group=2,
            ),
            node("Relu", ["wide"], ["body"], "body"),
        ],
        up=normal(16, 8, 3, 3),
    )


def activations() -> Foreign:
    """HardSwish, HardSigmoid, LeakyRelu, Elu, Selu, Softplus, Mish, Tanh, PRelu with a slope per channel."""
    kinds = ["HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Selu", "Softplus", "Mish", "Tanh", "Softsign"]
    return around(
        [
            node("PRelu", ["c1", "slope"], ["prelu"], "prelu"),
            *(node(kind, ["prelu"], [kind], kind) for kind in kinds),
            node("Mean", kinds, ["body"], "mean"),
        ],
        opset=18,
        slope=normal(16, 1, 1),
    )


def hard_swish_by_hand() -> Foreign:
    """X · ReLU6(x + 3) / 6, and an SE gate of HardSigmoid; MobileNet-V3 of tf2onnx."""
    return around(
        [
            node("Add", ["c1", "three"], ["plus"], "plus"),
            node("Clip", ["plus", "nought", "six"], ["clipped"], "clip"),
            node("Mul", ["c1", "clipped"], ["product"], "product"),
            node("Div", ["product", "six"], ["swish"], "sixth"),
            node("GlobalAveragePool", ["swish"], ["gap"], "gap"),
            node("Conv", ["gap", "down", "low_bias"], ["low"], "down"),
            node("Relu", ["low"], ["low_r"], "low_r"),
            node("Conv", ["low_r", "up"], ["high"], "up"),
            node("HardSigmoid", ["high"], ["gate"], "gate", alpha=1 / 6),
            node("Mul", ["swish", "gate"], ["body"], "gated"),
        ],
        three=np.array(3, np.float32),
        nought=np.array(0, np.float32),
        six=np.array(6, np.float32),
        down=normal(4, 16, 1, 1),
        low_bias=normal(4),
        up=normal(16, 4, 1, 1, seed=2),
    )


def convnext() -> Foreign:
    """A block of ConvNeXt: depthwise 7×7, LayerNormalization in NHWC, two MatMul with GELU by Erf, a scale, Add."""
    return around(
        [
            node("Conv", ["r1", "depth", "b1"], ["d1"], "d1", pads=[3, 3, 3, 3], group=16),
            node("Transpose", ["d1"], ["last"], "last", perm=[0, 2, 3, 1]),
            node("LayerNormalization", ["last", "gamma", "beta"], ["ln"], "ln", axis=-1, epsilon=1e-6),
            node("MatMul", ["ln", "wide"], ["mm1"], "mm1"),
            node("Add", ["wide_bias", "mm1"], ["a1"], "a1"),
            node("Div", ["a1", "root"], ["scaled"], "scaled"),
            node("Erf", ["scaled"], ["erf"], "erf"),
            node("Add", ["erf", "one"], ["plus"], "plus"),
            node("Mul", ["a1", "plus"], ["product"], "product"),
            node("Mul", ["product", "half"], ["gelu"], "gelu"),
            node("MatMul", ["gelu", "narrow"], ["mm2"], "mm2"),
            node("Mul", ["mm2", "gamma"], ["scaled2"], "layer_scale"),
            node("Transpose", ["scaled2"], ["first"], "first", perm=[0, 3, 1, 2]),
            node("Add", ["first", "r1"], ["body"], "residual"),
        ],
        depth=normal(16, 1, 7, 7),
        wide=normal(16, 64),
        wide_bias=normal(64),
        narrow=normal(64, 16, scale=0.1),
        root=np.array(2**0.5, np.float32),
        one=np.array(1, np.float32),
    )


def attention() -> Foreign:
    """One block of ViT: the product of two activations, Softmax in the middle, LayerNorm by ReduceMean and Pow."""
    return built(
        [
            *stem("r1"),
            node("Reshape", ["r1", "tokens"], ["rows"], "rows"),
            node("Transpose", ["rows"], ["x"], "x", perm=[0, 2, 1]),
            node("ReduceMean", ["x"], ["mean"], "mean", axes=[-1]),
            node("Sub", ["x", "mean"], ["centred"], "centred"),
            node("Pow", ["centred", "two"], ["squares"], "squares"),
            node("ReduceMean", ["squares"], ["variance"], "variance", axes=[-1]),
            node("Add", ["variance", "epsilon"], ["safe"], "safe"),
            node("Sqrt", ["safe"], ["deviation"], "deviation"),
            node("Div", ["centred", "deviation"], ["ln"], "ln"),
            node("MatMul", ["ln", "qkv"], ["three"], "qkv"),
            node("Split", ["three", "sizes"], ["q", "k", "v"], "split", axis=2),
            node("Transpose", ["k"], ["kt"], "kt", perm=[0, 2, 1]),
            node("MatMul", ["q", "kt"], ["products"], "products"),
            node("Mul", ["products", "half"], ["scaled"], "scaled"),
            node("Softmax", ["scaled"], ["shares"], "shares", axis=-1),
            node("MatMul", ["shares", "v"], ["mixed"], "mixed"),
            node("MatMul", ["mixed", "out"], ["projected"], "out"),
            node("Add", ["projected", "x"], ["residual"], "residual"),
            node("ReduceMean", ["residual"], ["flat"], "pool", axes=[1], keepdims=0),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ],
        tokens=ints(0, 16, 16),
        two=np.array(2, np.float32),
        epsilon=np.array(1e-6, np.float32),
        qkv=normal(16, 48),
        sizes=ints(16, 16, 16),
        out=normal(16, 16),
    )


def division_by_zero() -> Foreign:
    """0/0 for each image."""
    return around([node("Sub", ["r1", "r1"], ["zero"], "sub"), node("Div", ["zero", "zero"], ["body"], "div")])


def resizes() -> Foreign:
    """Resize by cubic, nearest and linear, DepthToSpace, SpaceToDepth."""
    return around(
        [
            node("Resize", ["r1", "", "twice"], ["cubic"], "cubic", mode="cubic"),
            node("Resize", ["cubic", "", "half_size"], ["near"], "near", mode="nearest", nearest_mode="floor"),
            node(
                "Resize",
                ["near", "", "twice"],
                ["linear"],
                "linear",
                mode="linear",
                coordinate_transformation_mode="align_corners",
            ),
            node("SpaceToDepth", ["linear"], ["deep"], "deep", blocksize=2),
            node("DepthToSpace", ["deep"], ["body"], "flat", blocksize=2, mode="CRD"),
        ],
        twice=np.array([1, 1, 2, 2], np.float32),
        half_size=np.array([1, 1, 0.5, 0.5], np.float32),
    )


def clips() -> Foreign:
    """With a lower bound alone, with an upper one alone, with none, with bounds that are computed."""
    return around(
        [
            node("Clip", ["c1", "low"], ["k1"], "k1"),
            node("Clip", ["k1", "", "high"], ["k2"], "k2"),
            node("Clip", ["k2"], ["k3"], "k3"),
            node("Mul", ["high", "half"], ["lower"], "lower"),
            node("Clip", ["k3", "", "lower"], ["body"], "k4"),
        ],
        low=np.array(-0.5, np.float32),
        high=np.array(2, np.float32),
    )


def recurrent() -> Foreign:
    """A GRU over the rows of the map, as in CRNN."""
    return built(
        [
            *stem("r1"),
            node("Reshape", ["r1", "line"], ["lines"], "lines"),
            node("Transpose", ["lines"], ["steps"], "steps", perm=[2, 0, 1]),
            node("GRU", ["steps", "wx", "wh"], ["all", "last"], "gru", hidden_size=16),
            node("Squeeze", ["last", "first"], ["flat"], "squeeze"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ],
        line=ints(0, 16, 16),
        wx=normal(1, 48, 16),
        wh=normal(1, 48, 16, seed=2),
        first=ints(0),
    )


def shared_weight() -> Foreign:
    """One weight in two convolutions, and one in a MatMul and, turned, in a Gemm."""
    return built(
        [
            *stem("r1"),
            node("Conv", ["r1", "w2", "b2"], ["c3"], "c3", pads=[1, 1, 1, 1]),
            node("Relu", ["c3"], ["r3"], "r3"),
            node("Conv", ["r3", "w2", "b1"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("MatMul", ["flat", "square"], ["m1"], "m1"),
            node("Gemm", ["m1", "square"], ["m2"], "m2", transB=1),
            node("Gemm", ["m2", "kernel", "bias"], ["scores"], "fc"),
        ],
        square=normal(16, 16),
    )


def weight_as_data() -> Foreign:
    """A weight that is also added to what its layer gives."""
    return built(
        [
            *features("image"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("MatMul", ["flat", "kernel"], ["mm"], "mm"),
            node("ReduceMean", ["kernel"], ["mean"], "mean", axes=[0], keepdims=1),
            node("Add", ["mm", "mean"], ["scores"], "add"),
        ]
    )


def dead_ends() -> Foreign:
    """Outputs that nothing reads, and a layer whose result nobody reads."""
    return built(
        [
            *features("image"),
            node("Conv", ["r1", "w2", "b2"], ["nobody"], "dead", pads=[1, 1, 1, 1]),
            node("Split", ["pooled"], ["first", "second"], "split", axis=1),
            node("TopK", ["pooled", "two"], ["best", "places"], "topk", axis=1),
            *head(),
        ],
        two=ints(2),
    )


def zero_shot() -> Foreign:
    """CLIP: rows of length 1 times a matrix of texts, and a large factor."""
    return built(
        [
            *features("image"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("LpNormalization", ["flat"], ["unit"], "unit", axis=-1, p=2),
            node("MatMul", ["unit", "texts"], ["cosines"], "texts"),
            node("Mul", ["cosines", "hundred"], ["scores"], "hundred"),
        ],
        texts=network_weights()["kernel"] / 4,
        hundred=np.array(100, np.float32),
    )


MAKERS = (
    without_bias,
    scaled_gemm,
    training_dropout,
    training_dropout_at_zero,
    noisy,
    depthwise_and_grouped,
    transposed_convolution,
    activations,
    hard_swish_by_hand,
    convnext,
    attention,
    division_by_zero,
    resizes,
    clips,
    recurrent,
    shared_weight,
    weight_as_data,
    dead_ends,
    zero_shot,
)
