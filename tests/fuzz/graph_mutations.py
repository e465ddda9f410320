"""One change of an ONNX model each: of any field, or of what a kind of graph depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.contract import METADATA_KEY
from tests.helpers.foreign_graphs import node

_NUMBERS = (0, 1, -1, 2, 3, 7, 13, 64, 1 << 16, (1 << 31) - 1, -(1 << 31), 1 << 32, 1 << 62, -(1 << 62), (1 << 63) - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    *("", " ", ".", "/", "..", "../../etc/passwd", "/etc/passwd", "/dev/zero", "a\nb", "\x1b[31mred\x1b[0m", "a\x00b"),
    *("\u202egnp.exe", "图像", "x" * 5000, "image", "scores", "logits", "c1", "w1", "%s%n{}", "a b", "a:b", "a'b\"c"),
    *("Conv", "LRN", "Loop", "If", "Reshape", "ai.onnx", "com.microsoft", METADATA_KEY, "{}", "null", "[" * 2000),
)
_OPERATORS = (
    *(
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "ConstantOfShape",
        "Conv",
        "Div",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
    ),
    *("Identity", "LRN", "LSTM", "MatMul", "MaxPool", "Mul", "NonZero", "Pad", "Pow", "QLinearConv", "QuantizeLinear"),
    *(
        "DequantizeLinear",
        "Range",
        "Relu",
        "Reshape",
        "Resize",
        "SequenceConstruct",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
    ),
    *(
        "StringNormalizer",
        "Tile",
        "TopK",
        "Transpose",
        "Unsqueeze",
        "Where",
        "Nonsense",
        "BatchNormalization",
        "Upsample",
    ),
)

Mutation = Callable[[onnx.ModelProto, Random], None]


def _messages(message: Message) -> list[Message]:
    found, most = [message], 5000
    for one in found:
        for kind, content in one.ListFields():
            if kind.type == kind.TYPE_MESSAGE and len(found) < most:
                found += [content] if isinstance(content, Message) else content
    return found


def _any_field(model: onnx.ModelProto, chance: Random) -> None:
    """A field that is set somewhere gets another value, goes, or is there twice."""
    message = chance.choice(_messages(model))
    fields = message.ListFields()
    if fields:
        kind, content = chance.choice(fields)
        _change(message, kind, content, chance)


def _new_field(model: onnx.ModelProto, chance: Random) -> None:
    """A field that may be unset gets a value."""
    message = chance.choice(_messages(model))
    kind = chance.choice(message.DESCRIPTOR.fields)
    if kind.type != kind.TYPE_MESSAGE:
        _change(message, kind, getattr(message, kind.name), chance)


def _change(message: Message, kind: Any, content: Any, chance: Random) -> None:
    repeated = not isinstance(content, Message | str | bytes | int | float)
    if kind.type == kind.TYPE_MESSAGE:
        if not repeated:
            message.ClearField(kind.name)
        elif content:
            _shuffle(content, chance)
    elif not repeated:
        setattr(message, kind.name, _value(kind, content, chance))
    elif content and chance.random() < 0.3:
        del content[chance.randrange(len(content))]
    elif content and chance.random() < 0.7:
        content[chance.randrange(len(content))] = _value(kind, content[0], chance)
    else:
        content.append(_value(kind, content[0] if content else None, chance))


def _shuffle(entries: Any, chance: Random) -> None:
    place, other = chance.randrange(len(entries)), chance.randrange(len(entries))
    what = chance.randrange(4)
    if what == 0:
        del entries[place]
    elif what == 1:
        entries.add().CopyFrom(entries[place])
    elif what == 2:
        copied = [type(entries[0])() for _ in entries]
        for target, source in zip(copied, entries, strict=True):
            target.CopyFrom(source)
        copied[place], copied[other] = copied[other], copied[place]
        del entries[:]
        entries.extend(copied)
    else:
        entries[place].CopyFrom(entries[other])


def _value(kind: Any, before: Any, chance: Random) -> Any:
    if kind.type == kind.TYPE_STRING:
        return chance.choice(_TEXTS)
    if kind.type == kind.TYPE_BYTES:
        return chance.choice(
            (b"", b"\xff" * 7, b"\0" * 64, bytes(before or b"")[:-1], bytes(before or b"") + b"\0", b"SAME")
        )
    if kind.type in (kind.TYPE_FLOAT, kind.TYPE_DOUBLE):
        return chance.choice(_FLOATS)
    if kind.type == kind.TYPE_ENUM:
        return chance.randrange(12)
    number = chance.choice((*_NUMBERS, chance.randrange(32), chance.randrange(32)))
    if kind.type == kind.TYPE_INT64:
        return number
    small = number & 0x7FFFFFFF
    return small if kind.type != kind.TYPE_UINT64 else abs(number)


# Mutations that mean something


def _graph_of(model: onnx.ModelProto, chance: Random) -> onnx.GraphProto:
    graphs = [message for message in _messages(model) if isinstance(message, onnx.GraphProto)]
    return chance.choice(graphs)


def _rewire(model: onnx.ModelProto, chance: Random) -> None:
    """An input of a node becomes another value, of itself or of a later one too: cycles."""
    graph = _graph_of(model, chance)
    values = [name for one in graph.node for name in (*one.input, *one.output)]
    readers = [one for one in graph.node if one.input]
    if readers and values:
        reader = chance.choice(readers)
        reader.input[chance.randrange(len(reader.input))] = chance.choice(values)


def _rename(model: onnx.ModelProto, chance: Random) -> None:
    """A name is changed everywhere, or in one place alone."""
    graph = _graph_of(model, chance)
    names = [name for one in graph.node for name in (*one.input, *one.output, one.name)]
    if not names:
        return
    old, new = chance.choice(names), chance.choice((*_TEXTS, *names))
    everywhere = chance.random() < 0.7
    for one in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        if one.name == old and everywhere:
            one.name = new
    for one in graph.node:
        for field in (one.input, one.output):
            for index, found in enumerate(field):
                if found == old and (everywhere or chance.random() < 0.5):
                    field[index] = new


def _operator(model: onnx.ModelProto, chance: Random) -> None:
    graph = _graph_of(model, chance)
    if graph.node:
        one = chance.choice(graph.node)
        one.op_type = chance.choice(_OPERATORS)
        if chance.random() < 0.5:
            del one.attribute[:]


def _attribute(model: onnx.ModelProto, chance: Random) -> None:
    """An attribute of a wrong type or size."""
    graph = _graph_of(model, chance)
    nodes = [one for one in graph.node if one.attribute]
    if nodes:
        attributes = chance.choice(nodes).attribute
        place = chance.randrange(len(attributes))
        values: Sequence[Any] = (
            chance.choice(_NUMBERS[:-1]),
            chance.choice(_FLOATS),
            chance.choice(_TEXTS),
            [chance.choice(_NUMBERS[:-1]) for _ in range(chance.randint(1, 9))],
            [1.5, 2.5],
            ["a", "b"],
            numpy_helper.from_array(np.zeros(3, np.float32), "t"),
        )
        attributes[place].CopyFrom(helper.make_attribute(attributes[place].name, chance.choice(values)))


def _weight(model: onnx.ModelProto, chance: Random) -> None:
    """A weight of another size, shape, type or place than it says."""
    graph = _graph_of(model, chance)
    if not graph.initializer:
        return
    tensor = chance.choice(graph.initializer)
    what = chance.randrange(7)
    if what == 0:
        tensor.raw_data = tensor.raw_data[: chance.randrange(len(tensor.raw_data) + 1)]
    elif what == 1:
        tensor.dims.append(chance.choice(_NUMBERS))
    elif what == 2 and tensor.dims:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(_NUMBERS)
    elif what == 3:
        tensor.data_type = chance.randrange(27)
    elif what == 4:
        tensor.dims[:] = tensor.dims[::-1]
    elif what == 5:
        _elsewhere(tensor, chance)
    else:
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.STRING, [2], np.array([b"a", b"\xff"])))


def _elsewhere(tensor: onnx.TensorProto, chance: Random) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    if chance.random() < 0.7:
        tensor.ClearField("raw_data")
    del tensor.external_data[:]
    places = ("../../etc/passwd", "/etc/passwd", "/dev/zero", "", ".", "..", "model.onnx", "no such", "a\x00b", "a\nb")
    entries = {
        "location": chance.choice(places),
        "offset": str(chance.choice((*_NUMBERS, "x", ""))),
        "length": str(chance.choice((*_NUMBERS, "x", ""))),
    }
    for key, value in entries.items():
        if chance.random() < 0.8:
            tensor.external_data.add(key=key, value=value)


def _shape(model: onnx.ModelProto, chance: Random) -> None:
    """A declared shape or type of another rank, size or kind."""
    graph = _graph_of(model, chance)
    values = [*graph.input, *graph.output, *graph.value_info]
    if not values:
        return
    value = chance.choice(values)
    dims = [chance.choice((*_NUMBERS, None, "n", "", "a\nb")) for _ in range(chance.randrange(6))]
    what = chance.randrange(6)
    if what < 3:
        kind = chance.choice((1, 1, 1, 10, 2, 7, 8, 9, 11, 16))
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, dims))
    elif what == 3:
        element = helper.make_tensor_type_proto(1, [1, 2])
        makers = (helper.make_sequence_type_proto, helper.make_optional_type_proto)
        value.CopyFrom(helper.make_value_info(value.name, chance.choice(makers)(element)))
    elif what == 4:
        value.CopyFrom(helper.make_tensor_sequence_value_info(value.name, 1, dims))
    else:
        value.CopyFrom(helper.make_sparse_tensor_value_info(value.name, 1, dims))


def _opset(model: onnx.ModelProto, chance: Random) -> None:
    del model.opset_import[chance.randrange(len(model.opset_import) + 1) :]
    domain = chance.choice(("", "", "ai.onnx", "com.microsoft", "ai.onnx.ml", "no.such"))
    version = chance.choice((0, -1, 1, 2, 6, 7, 9, 11, 12, 13, 18, 21, 22, 24, 25, 26, 30, 10**9, 1 << 40))
    model.opset_import.add(domain=domain, version=version)
    if chance.random() < 0.3:
        model.ir_version = chance.choice((0, -1, 1, 2, 3, 4, 7, 8, 10, 11, 12, 13, 99, 1 << 40))


def _nested(model: onnx.ModelProto, chance: Random) -> None:
    """The graph in a branch of an If in a branch of an If."""
    output = helper.make_tensor_value_info("deepest", 9, [])
    inner = helper.make_graph([node("Identity", ["yes"], ["deepest"])], "deepest", [], [output])
    other = inner
    for level in range(chance.choice((1, 3, 10, 30))):  # protobuf takes 100 messages within each other, a level has 3
        one = node("If", ["yes"], [f"level{level}"], f"if{level}", then_branch=inner, else_branch=other)
        outputs = [helper.make_tensor_value_info(f"level{level}", 9, [])]
        inner = helper.make_graph([one], f"level{level}", [], outputs)
    yes = numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.append(yes)
    model.graph.node.append(node("If", ["yes"], ["nested"], "outermost", then_branch=inner, else_branch=inner))


def _function(model: onnx.ModelProto, chance: Random) -> None:
    """Functions that call each other, or themselves."""
    domain, count = chance.choice(("", "local", "local")), chance.choice((1, 2, 30))
    imports = [helper.make_opsetid("", chance.choice((1, 13, 17, 22))), helper.make_opsetid("local", 1)]
    for index in range(count):
        called = chance.choice((index, (index + 1) % count, index + 1))
        body = [node(f"f{called}", ["x"], ["y"], domain=domain), node("f1", ["y"], ["z"], domain=domain)]
        if chance.random() < 0.5:
            body = [node("Relu", ["x"], ["y"]), node("Identity", ["y"], ["z"])]
        model.functions.append(helper.make_function(domain, f"f{index}", ["x"], ["z"], body, imports))
    model.opset_import.add(domain="local", version=1)
    if model.graph.node:
        one = chance.choice(model.graph.node)
        one.op_type, one.domain = "f0", domain
        del one.attribute[:]


def _sparse(model: onnx.ModelProto, chance: Random) -> None:
    values = helper.make_tensor(chance.choice(("w1", "sparse", "")), 1, [3], [1.0, 2.0, 3.0])
    places = helper.make_tensor("places", 7, [3], [chance.choice((0, 1, 1 << 40)), 2, 3])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, places, [chance.choice((0, 4, 1 << 62)), 4])
    )


def _metadata(model: onnx.ModelProto, chance: Random) -> None:
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), "{}")
    if not text:
        return
    place = chance.randrange(len(text))
    broken = chance.choice((text[:place], text[:place] + chance.choice(_TEXTS) + text[place:], chance.choice(_TEXTS)))
    helper.set_model_props(model, {METADATA_KEY: broken})


def _extra(model: onnx.ModelProto, chance: Random) -> None:
    """One more node between, with an operator that is not made for these inputs."""
    graph = _graph_of(model, chance)
    if not graph.node:
        return
    place = chance.randrange(len(graph.node))
    after = graph.node[place]
    values = [name for one in graph.node for name in one.input]
    if not after.output or not values:
        return
    inputs = [after.output[0], *(chance.choice(values) for _ in range(chance.randrange(3)))]
    added = node(chance.choice(_OPERATORS), inputs, [f"extra{place}"], chance.choice(_TEXTS))
    for other in graph.node[place + 1 :]:
        for index, found in enumerate(other.input):
            if found == after.output[0]:
                other.input[index] = f"extra{place}"
    copied = [*graph.node[: place + 1], added, *graph.node[place + 1 :]]
    kept = [onnx.NodeProto.FromString(one.SerializeToString()) for one in copied]
    del graph.node[:]
    graph.node.extend(kept)


MUTATIONS: tuple[Mutation, ...] = (
    *(_any_field, _any_field, _any_field, _any_field, _new_field, _rewire, _rename, _operator, _attribute, _attribute),
    *(_weight, _weight, _shape, _opset, _nested, _function, _sparse, _metadata, _extra),
)
