"""Names."""

from __future__ import annotations

import onnx

from tests.field.zoo.base import around, built, normal
from tests.helpers.foreign_graphs import Foreign, features, head, node


def _renamed(made: Foreign, names: dict[str, str]) -> Foreign:
    graph = made.model.graph
    for one in graph.node:
        one.input[:] = [names.get(name, name) for name in one.input]
        one.output[:] = [names.get(name, name) for name in one.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    return made._replace(image=names.get(made.image, made.image), logits=names.get(made.logits, made.logits))


def _with_node_names(made: Foreign, names: dict[str, str]) -> onnx.ModelProto:
    for one in made.model.graph.node:
        one.name = names.get(one.name, one.name)
    return made.model


def unnamed_nodes() -> Foreign:
    """No node has a name."""
    made = built([*features("image"), *head()])
    for one in made.model.graph.node:
        one.ClearField("name")
    return made


def duplicate_names() -> Foreign:
    """All have one, which ONNX Runtime refuses."""
    made = built([*features("image"), *head()])
    for one in made.model.graph.node:
        one.name = "layer"
    return made


def foreign_script() -> Foreign:
    """Names in Chinese, with spaces, slashes, quotes, a colon, a comma and an emoji."""
    made = built([*features("image"), *head()])
    _with_node_names(made, {"c1": '卷积/1, "a"', "c2": "naïve layer;2", "fc": "🙂:0"})
    return _renamed(made, {"image": "图像:0", "scores": "оценки 'x'", "r1": "r 1/…", "w1": "权重", "pooled": "a,b"})


def same_name_for_all() -> Foreign:
    """A node is called as its result, its input or a weight of another; a value is called ``logits`` in the middle."""
    made = built([*features("image"), *head()])
    _with_node_names(made, {"c1": "r1", "c2": "image", "fc": "w1", "flatten": "scores"})
    return _renamed(made, {"r2": "logits"})


def long_names() -> Foreign:
    """Names of 3,000 characters."""
    made = built([*features("image"), *head()])
    _with_node_names(made, {"c1": "a" * 3000, "c2": "a" * 3000 + "b"})
    return _renamed(made, {"r1": "r" * 3000, "w2": "w" * 3000})


def suffixes() -> Foreign:
    """Names that ours would be: ``c2.weight.q``, ``r1.quantize``, ``body.fp16``."""
    made = around(
        [
            node("Conv", ["r1", "wx"], ["c2.weight.q"], "r1.quantize", pads=[1, 1, 1, 1]),
            node("Relu", ["c2.weight.q"], ["r1.dq"], "r1.dequantize"),
            node("Add", ["r1.dq", "r1"], ["body"], "c2.weight.dequantize"),
        ],
        wx=normal(16, 16, 3, 3, scale=0.1),
    )
    return _renamed(made, {"body": "r1.q", "b2": "c2.bias.scale", "w2": "c2.weight.scale"})


def hidden_names() -> Foreign:
    """Our own metadata keys and names with leading underscores, dots and percent signs."""
    made = built([*features("image"), *head()])
    _with_node_names(made, {"c1": "..", "c2": "%s%n", "fc": "_"})
    return _renamed(made, {"r1": "../r1", "pooled": "%d"})


MAKERS = (unnamed_nodes, duplicate_names, foreign_script, same_name_for_all, long_names, suffixes, hidden_names)
