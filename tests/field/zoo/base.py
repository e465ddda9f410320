"""What the families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto

from alexdeploy.contract import Contract
from tests.helpers.foreign_graphs import CONTRACT, Foreign, Tensor, graph, head, network_weights, node
from tests.helpers.graphs import Array

FLOAT = TensorProto.FLOAT
IMAGE: Tensor = ("image", FLOAT, ["n", 3, 8, 8])
SCORES: Tensor = ("scores", FLOAT, ["n", 4])


def built(
    nodes: Sequence[onnx.NodeProto],
    *,
    image: Tensor = IMAGE,
    scores: Tensor = SCORES,
    contract: Contract = CONTRACT,
    opset: int = 17,
    ir_version: int = 8,
    probabilities: bool = False,
    named: Mapping[str, Array] = MappingProxyType({}),
    **weights: Array,
) -> Foreign:
    """A graph from the image to the scores, with the common weights, ``weights`` and ``named``."""
    known = network_weights() | weights | dict(named)
    made = graph(nodes, [image], [scores], opset=opset, ir_version=ir_version, weights=known)
    return Foreign(made, contract, image[0], scores[0], probabilities=probabilities)


def around(
    nodes: Sequence[onnx.NodeProto], *, opset: int = 17, ir_version: int = 8, start: str = "r1", **weights: Array
) -> Foreign:
    """``nodes`` make ``body`` of ``start``, both (n, 16, h, w): a convolution is before them and one after."""
    return built(
        [*stem(start), *nodes, *tail("body")],
        opset=opset,
        ir_version=ir_version,
        named=weights,
    )


def stem(to: str = "r1", source: str = "image") -> list[onnx.NodeProto]:
    """(n, 3, 8, 8) → (n, 16, 4, 4)."""
    return [
        node("Conv", [source, "w1", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], [to], "r1"),
    ]


def tail(source: str, scores: str = "scores") -> list[onnx.NodeProto]:
    """(n, 16, h, w) → (n, 4)."""
    return [
        node("Conv", [source, "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"], "r2"),
        node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
        *head(scores),
    ]


def normal(*shape: int, seed: int = 1, scale: float = 0.3) -> Array:
    """Random weights."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def ints(*values: int) -> Array:
    """A constant of one axis."""
    return np.array(values, np.int64)
