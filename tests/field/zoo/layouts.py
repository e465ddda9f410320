"""Layouts, pads, batch axes and the ways of data through a graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.field.zoo.base import FLOAT, IMAGE, around, built, ints, normal, stem, tail
from tests.helpers.foreign_graphs import NHWC, Foreign, Tensor, features, graph, head, network_weights, node


def channels_last() -> Foreign:
    """tf2onnx without its optimizer: a pair of Transposes around each layer, biases added in NHWC, ReLU6."""
    there, back = [0, 3, 1, 2], [0, 2, 3, 1]
    return built(
        [
            node("Transpose", ["image"], ["t1"], "t1", perm=there),
            node("Conv", ["t1", "w1"], ["c1"], "c1", auto_pad="SAME_UPPER", strides=[2, 2]),
            node("Transpose", ["c1"], ["t2"], "t2", perm=back),
            node("Add", ["t2", "b1"], ["a1"], "a1"),
            node("Clip", ["a1", "nought", "six"], ["r1"], "r1"),
            node("Transpose", ["r1"], ["t3"], "t3", perm=there),
            node("Conv", ["t3", "w2"], ["c2"], "c2", auto_pad="SAME_LOWER", strides=[2, 2]),
            node("Transpose", ["c2"], ["t4"], "t4", perm=back),
            node("Add", ["t4", "b2"], ["a2"], "a2"),
            node("ReduceMean", ["a2"], ["flat"], "mean", axes=[1, 2], keepdims=0),
            node("MatMul", ["flat", "kernel"], ["mm"], "mm"),
            node("Add", ["mm", "bias"], ["scores"], "biased"),
        ],
        image=("image", FLOAT, ["n", 8, 8, 3]),
        contract=NHWC,
        nought=np.array(0, np.float32),
        six=np.array(6, np.float32),
    )


def uneven_pads() -> Foreign:
    """Asymmetric pads of convolutions and pools, ceil_mode."""
    return built(
        [
            node("Conv", ["image", "w1", "b1"], ["c1"], "c1", strides=[2, 2], pads=[0, 0, 1, 1]),
            node("Relu", ["c1"], ["r1"], "r1"),
            node("MaxPool", ["r1"], ["p1"], "p1", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0]),
            node("Conv", ["p1", "w2", "b2"], ["c2"], "c2", pads=[2, 1, 0, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("MaxPool", ["r2"], ["p2"], "p2", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
            node("GlobalAveragePool", ["p2"], ["pooled"], "pool"),
            *head(),
        ]
    )


def same_pads() -> Foreign:
    """SAME_UPPER and SAME_LOWER with even windows and an odd rest."""
    return built(
        [
            node("Conv", ["image", "even", "b1"], ["c1"], "c1", auto_pad="SAME_UPPER", strides=[3, 3]),
            node("Relu", ["c1"], ["r1"], "r1"),
            node("Conv", ["r1", "w2", "b2"], ["c2"], "c2", auto_pad="SAME_LOWER", strides=[2, 2]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("MaxPool", ["r2"], ["p2"], "p2", kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER"),
            node("GlobalAveragePool", ["p2"], ["pooled"], "pool"),
            *head(),
        ],
        even=normal(16, 3, 4, 4),
    )


def padded_first() -> Foreign:
    """Pad before Conv: with a value, by reflection, and with the edge."""
    return built(
        [
            node("Pad", ["image", "around_it", "half"], ["padded"], "pad1"),
            node("Conv", ["padded", "w1", "b1"], ["c1"], "c1", strides=[2, 2]),
            node("Relu", ["c1"], ["r1"], "r1"),
            node("Pad", ["r1", "around_it"], ["mirrored"], "pad2", mode="reflect"),
            node("Conv", ["mirrored", "w2", "b2"], ["c2"], "c2"),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("Pad", ["r2", "around_it"], ["edged"], "pad3", mode="edge"),
            node("Conv", ["edged", "w3"], ["c3"], "c3"),
            node("GlobalAveragePool", ["c3"], ["pooled"], "pool"),
            *head(),
        ],
        around_it=ints(0, 0, 1, 1, 0, 0, 1, 1),
        w3=normal(16, 16, 3, 3, scale=0.1),
    )


def frozen_batch() -> Foreign:
    """Batch 1, and a Reshape to [1, 16]."""
    return built(
        [
            *features("image"),
            node("Reshape", ["pooled", "row"], ["flat"], "reshape"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ],
        image=("image", FLOAT, [1, 3, 8, 8]),
        scores=("scores", FLOAT, [1, 4]),
        row=ints(1, 16),
    )


def unnamed_batch() -> Foreign:
    """A batch axis without a name, and outputs without a shape."""
    made = built([*features("image"), *head()], image=("image", FLOAT, [None, 3, 8, 8]))
    made.model.graph.output[0].type.tensor_type.ClearField("shape")
    return made


def zero_batch() -> Foreign:
    """PaddlePaddle and older MXNet write 0 for a batch that is open."""
    return built([*features("image"), *head()], image=("image", FLOAT, [0, 3, 8, 8]), scores=("scores", FLOAT, [0, 4]))


def odd_flattens() -> Foreign:
    """Flatten from axis 2, from axis 0, and from an axis counted from the end."""
    return built(
        [
            *features("image"),
            node("Flatten", ["pooled"], ["column"], "column", axis=2),
            node("Reshape", ["column", "rows"], ["maps"], "rows"),
            node("Flatten", ["maps"], ["flat"], "end", axis=-3),
            node("Gemm", ["flat", "kernel", "bias"], ["fc"], "fc"),
            node("Flatten", ["fc"], ["one_row"], "one_row", axis=0),
            node("Reshape", ["one_row", "classes"], ["scores"], "classes"),
        ],
        rows=ints(-1, 16, 1, 1),
        classes=ints(-1, 4),
    )


def image_among_outputs() -> Foreign:
    """An output that is the input itself."""
    made = built([*features("image"), *head()])
    made.model.graph.output.insert(0, helper.make_tensor_value_info(*IMAGE))
    return made


def identities() -> Foreign:
    """Chains of Identity before, between and after layers, and in front of weights."""
    return built(
        [
            node("Identity", ["image"], ["i1"], "i1"),
            node("Identity", ["i1"], ["i2"], "i2"),
            node("Identity", ["w1"], ["w1_1"], "i3"),
            node("Identity", ["w1_1"], ["w1_2"], "i4"),
            node("Conv", ["i2", "w1_2", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Identity", ["c1"], ["i5"], "i5"),
            node("Relu", ["i5"], ["r1"], "r1"),
            *tail("r1", "fc"),
            node("Identity", ["fc"], ["i6"], "i6"),
            node("Identity", ["i6"], ["scores"], "i7"),
        ]
    )


def cast_islands() -> Foreign:
    """A convolution in FP16 between Casts in a float graph, and a mask of bool."""
    return around(
        [
            node("Cast", ["r1"], ["r1h"], "half1", to=TensorProto.FLOAT16),
            node("Conv", ["r1h", "wh"], ["ch"], "ch", pads=[1, 1, 1, 1]),
            node("Cast", ["ch"], ["cf"], "float1", to=FLOAT),
            node("Greater", ["cf", "half"], ["high"], "greater"),
            node("Cast", ["high"], ["mask"], "mask", to=FLOAT),
            node("Mul", ["cf", "mask"], ["body"], "mul"),
        ],
        wh=normal(16, 16, 3, 3, scale=0.1).astype(np.float16),
    )


def branches() -> Foreign:
    """Split, Concat, a residual Add, a shuffle of channels."""
    return around(
        [
            node("Split", ["r1"], ["left", "right"], "split", axis=1),
            node("Conv", ["left", "wl"], ["cl"], "cl", pads=[1, 1, 1, 1]),
            node("Relu", ["cl"], ["rl"], "rl"),
            node("Concat", ["rl", "right"], ["joined"], "join", axis=1),
            node("Reshape", ["joined", "five"], ["deep"], "deep"),
            node("Transpose", ["deep"], ["turned"], "turned", perm=[0, 2, 1, 3, 4]),
            node("Reshape", ["turned", "four"], ["shuffled"], "shuffled"),
            node("Conv", ["shuffled", "wr", "b1"], ["cr"], "cr"),
            node("Add", ["cr", "r1"], ["sum"], "add"),
            node("Relu", ["sum"], ["body"], "body"),
        ],
        wl=normal(8, 8, 3, 3),
        wr=normal(16, 16, 1, 1),
        five=ints(0, 2, 8, 4, 4),
        four=ints(0, 16, 4, 4),
    )


def pools() -> Foreign:
    """count_include_pad, ceil_mode, dilations, indices, GlobalMaxPool, GlobalAveragePool and Squeeze."""
    return built(
        [
            *stem("r1"),
            node("AveragePool", ["r1"], ["a1"], "a1", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
            node("AveragePool", ["r1"], ["a2"], "a2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("MaxPool", ["r1"], ["m1", "where"], "m1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Sum", ["a1", "a2", "m1"], ["sum"], "sum"),
            node("Conv", ["sum", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["g1"], "g1"),
            node("GlobalMaxPool", ["r2"], ["g2"], "g2"),
            node("Add", ["g1", "g2"], ["g"], "g"),
            node("Squeeze", ["g", "axes"], ["flat"], "squeeze"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ]
    )


def one_and_three_axes() -> Foreign:
    """Conv1d and Conv3d on the way."""
    return around(
        [
            node("Reshape", ["r1", "line"], ["lines"], "lines"),
            node("Conv", ["lines", "w1d", "b1"], ["c1d"], "c1d", pads=[1, 1]),
            node("Relu", ["c1d"], ["r1d"], "r1d"),
            node("Reshape", ["r1d", "cube"], ["cubes"], "cubes"),
            node("Conv", ["cubes", "w3d", "b1"], ["c3d"], "c3d", pads=[0, 1, 1, 0, 1, 1]),
            node("Reshape", ["c3d", "map"], ["body"], "map"),
        ],
        line=ints(0, 16, 16),
        w1d=normal(16, 16, 3),
        cube=ints(0, 16, 1, 4, 4),
        w3d=normal(16, 16, 1, 3, 3, scale=0.1),
        map=ints(0, 16, 4, 4),
    )


def einsum() -> Foreign:
    """A layer with weights in Einsum, and a product of activations."""
    return around(
        [
            node("Einsum", ["r1", "mix"], ["mixed"], "mix", equation="nchw,dc->ndhw"),
            node("Einsum", ["mixed", "r1"], ["squared"], "square", equation="nchw,nchw->nchw"),
            node("Mul", ["squared", "half"], ["body"], "halved"),
        ],
        mix=normal(16, 16),
    )


def _branch(name: str, weight: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(name, FLOAT, ["n", 16, 4, 4])
    inner = node("Conv", ["r1", weight], [name], "conv_" + name, pads=[1, 1, 1, 1])
    return helper.make_graph([inner], name, [], [value])


def layers_in_branches() -> Foreign:
    """Convolutions in the branches of an If, with weights of the graph around it."""
    made = built(
        [
            *stem("r1"),
            node("ReduceMax", ["r1"], ["largest"], "largest", keepdims=0),
            node("Greater", ["largest", "half"], ["high"], "greater"),
            node("If", ["high"], ["body"], "if", then_branch=_branch("a", "wa"), else_branch=_branch("b", "wb")),
            node("Identity", ["wa"], ["unused_a"], "keep_a"),
            node("Identity", ["wb"], ["unused_b"], "keep_b"),
            *tail("body"),
        ],
        wa=normal(16, 16, 3, 3, scale=0.1),
        wb=normal(16, 16, 3, 3, seed=2, scale=0.1),
    )
    kept = [one for one in made.model.graph.node if not one.name.startswith("keep_")]
    made.model.graph.ClearField("node")
    made.model.graph.node.extend(kept)
    return made


def loop() -> Foreign:
    """A Loop that halves three times."""
    values: list[Tensor] = [
        ("turn", TensorProto.INT64, []),
        ("go", TensorProto.BOOL, []),
        ("state", FLOAT, ["n", 16, 4, 4]),
    ]
    outputs: list[Tensor] = [("still", TensorProto.BOOL, []), ("next", FLOAT, ["n", 16, 4, 4])]
    body = helper.make_graph(
        [node("Identity", ["go"], ["still"], "still"), node("Mul", ["state", "half"], ["next"], "next")],
        "body",
        [helper.make_tensor_value_info(*value) for value in values],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
    return around(
        [
            node("Mul", ["r1", "half"], ["start"], "start"),
            node("Loop", ["times", "yes", "start"], ["body"], "loop", body=body),
        ],
        times=np.array(3, np.int64),
        yes=np.array(True),
    )


def two_images() -> Foreign:
    """A network of two images."""
    made = built([node("Add", ["image", "other"], ["both"], "add"), *features("both"), *head()])
    made.model.graph.input.append(helper.make_tensor_value_info("other", FLOAT, ["n", 3, 8, 8]))
    return made


def long_input() -> Foreign:
    """int64 images."""
    cast = node("Cast", ["image"], ["float"], "cast", to=FLOAT)
    return built([cast, *features("float"), *head()], image=("image", TensorProto.INT64, ["n", 3, 8, 8]))


def open_size() -> Foreign:
    """Height and width are open, and a Resize by what Shape tells brings them to 8."""
    image: Tensor = ("image", FLOAT, ["n", 3, "h", "w"])
    nodes = [
        node("Shape", ["image"], ["shape"], "shape"),
        node("Slice", ["shape", "start", "end"], ["batch_and_channels"], "slice"),
        node("Concat", ["batch_and_channels", "eight"], ["sizes"], "sizes", axis=0),
        node("Resize", ["image", "", "", "sizes"], ["resized"], "resize", mode="linear"),
        *features("resized"),
        *head(),
    ]
    weights = network_weights() | {"start": ints(0), "end": ints(2), "eight": ints(8, 8)}
    return Foreign(graph(nodes, [image], [("scores", FLOAT, ["n", 4])], weights=weights))


MAKERS = (
    *(channels_last, uneven_pads, same_pads, padded_first, frozen_batch, unnamed_batch, zero_batch, odd_flattens),
    *(image_among_outputs, identities, cast_islands, branches, pools, one_and_three_axes, einsum),
    *(layers_in_branches, loop, two_images, long_input, open_size),
)
