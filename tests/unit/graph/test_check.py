"""Files that ONNX's checker takes, or that break a library behind it: each is refused by name, in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from alexdeploy.errors import InputError
from alexdeploy.graph.model import load_onnx
from tests.helpers.graphs import conv_lrn_gemm

Change = Callable[[onnx.ModelProto], object]


def conv(model: onnx.ModelProto, **attributes: object) -> None:
    node = model.graph.node[0]
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())


def weight(model: onnx.ModelProto, **fields: object) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "b1")
    for name, value in fields.items():
        if name == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, name, value)


def elsewhere(model: onnx.ModelProto, **entries: str) -> None:
    weight(model, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        next(one for one in model.graph.initializer if one.name == "b1").external_data.add(key=key, value=value)


def functions(model: onnx.ModelProto, calls: dict[str, list[str]]) -> None:
    """Functions that call others, one after the other."""
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("theirs", 1)]
    for name, called in calls.items():
        values = ["x", *(f"v{index}" for index in range(len(called)))]
        nodes = [
            helper.make_node(one, [values[index]], [values[index + 1]], domain="theirs" if one in calls else "")
            for index, one in enumerate(called)
        ]
        model.functions.append(helper.make_function("theirs", name, ["x"], [values[-1]], nodes, imports))
    model.opset_import.add(domain="theirs", version=1)
    first = model.graph.node[1]
    first.op_type, first.domain = next(iter(calls)), "theirs"


def without_value(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="body", type=AttributeProto.GRAPH)


CASES: dict[str, tuple[Change, str]] = {
    "stride 0": (
        lambda m: conv(m, strides=[0, 1]),
        r"node 'conv1' \(Conv\) has strides \(0, 1\); .* from 1 on",
    ),
    "window below 0": (lambda m: conv(m, kernel_shape=[-3, 3]), r"has kernel_shape \(-3, 3\)"),
    "pads of 62 bits": (lambda m: conv(m, pads=[1 << 62] * 4), r"'conv1' \(Conv\) has pads"),
    "pads of another rank": (
        lambda m: conv(m, pads=[1, 1], strides=[1, 1]),
        "strides .* and pads .* different ranks",
    ),
    "a window of another rank": (lambda m: conv(m, kernel_shape=[3]), r"kernel_shape \(3\), where its weights have 4"),
    "text": (lambda m: conv(m, auto_pad=b"\xff\xfe"), r"'auto_pad' = b'.xff.xfe', which is not UTF-8"),
    "an attribute without a value": (without_value, "'relu1' .* attribute 'body' without a value"),
    "an attribute of no function": (
        lambda m: m.graph.node[1].attribute.add(name="alpha", type=AttributeProto.GRAPH, ref_attr_name="theirs"),
        "'relu1' takes the attribute 'theirs' of a function, and is in none",
    ),
    "a weight cut off": (
        lambda m: weight(m, raw_data=bytes(31)),
        r"'b1' has 31 bytes, .*\(8\) of FLOAT asks for 32",
    ),
    "another type": (lambda m: weight(m, data_type=TensorProto.DOUBLE), "'b1' has 32 bytes, .* asks for 64"),
    "no type": (lambda m: weight(m, data_type=0), "'b1' has type 0, which ONNX does not have"),
    "a dimension below 0": (lambda m: weight(m, dims=[-8]), r"'b1' has the dimensions \(-8\)"),
    "dimensions of 186 bits": (lambda m: weight(m, dims=[1 << 62] * 3), "'b1' has 32 bytes"),
    "no place": (lambda m: elsewhere(m), "'b1': its data lie in '.'"),
    "a place outside": (
        lambda m: elsewhere(m, location="../../etc/passwd"),
        "lie in '../../etc/passwd'; ONNX takes",
    ),
    "an absolute place": (lambda m: elsewhere(m, location="/dev/zero"), "data lie in '/dev/zero'; ONNX takes"),
    "an unknown key": (lambda m: elsewhere(m, location="w", whence="x"), "has the key 'whence'"),
    "no number": (lambda m: elsewhere(m, location="w", offset="-1"), "offset or the length .* no number"),
    "two opsets": (lambda m: m.opset_import.add(domain="ai.onnx", version=13), r"opsets \(13, 20\); expected one"),
    "a function of itself": (lambda m: functions(m, {"f": ["f"]}), "function 'f' calls itself; export it without"),
    "two of each other": (lambda m: functions(m, {"f": ["Relu", "g"], "g": ["f"]}), "function '[fg]' calls itself"),
    "doubling": (
        lambda m: functions(m, {**{f"f{n}": [f"f{n + 1}"] * 2 for n in range(40)}, "f40": ["Relu"]}),
        "function 'f0' .* has 1099511627776 nodes, at most 1000000",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_with_its_name(case: str, tmp_path: Path) -> None:
    change, words = CASES[case]
    model = conv_lrn_gemm()
    change(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "w").write_bytes(bytes(32))
    with pytest.raises(InputError, match=words) as caught:
        load_onnx(path)
    assert len(str(caught.value)) - len(str(path)) < 400


def test_the_other_name_of_the_standard_operators_is_the_same_everywhere() -> None:
    """In the graph, a branch, a function and its opsets."""
    model = conv_lrn_gemm()
    functions(model, {"outer": ["Relu"]})
    branch = helper.make_graph(
        [helper.make_node("Neg", ["b1"], ["b"], domain="ai.onnx")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [8])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch))
    for node in (*model.graph.node, *model.functions[0].node):
        node.domain = node.domain or "ai.onnx"
    model.opset_import[0].domain = model.functions[0].opset_import[0].domain = "ai.onnx"
    loaded = load_onnx(model.SerializeToString())
    (function,) = loaded.functions.values()
    assert {node.domain for node in (*loaded.graph.all_nodes(), *function.all_nodes())} == {"", "theirs"}
    assert loaded.opset_imports == {"": 20, "theirs": 1}
    assert function.opset_imports == {"": 20, "theirs": 1}


def test_an_overload_of_a_function_calls_the_other_one() -> None:
    """Since IR version 10 a function has a third part of its name."""
    model = conv_lrn_gemm()
    functions(model, {"f": ["Relu", "f"]})
    outer = model.functions.add()
    outer.CopyFrom(model.functions[0])  # the first one stays what calls and is called
    inner = model.functions[0]
    outer.node[1].overload = inner.overload = "inner"
    del inner.node[1]
    inner.output[0] = inner.node[0].output[0]
    loaded = load_onnx(model.SerializeToString())
    assert sorted(overload for _, _, overload in loaded.functions) == ["", "inner"]


def test_every_form_of_a_constant_has_the_size_that_it_says() -> None:
    """Typed fields, packed types, complex numbers, text, scalars and empty ones are all right."""
    kinds = {
        "float": numpy_helper.from_array(np.array([1, 2], np.float32)),
        "typed": helper.make_tensor("", TensorProto.FLOAT, [2], [1.0, 2.0]),
        "half": helper.make_tensor("", TensorProto.FLOAT16, [2], [1.0, 2.0]),
        "int4": helper.make_tensor("", TensorProto.INT4, [3], [1, 2, 3]),
        "int4 raw": helper.make_tensor("", TensorProto.INT4, [3], b"\x21\x03", raw=True),
        "bool": helper.make_tensor("", TensorProto.BOOL, [3], [True, False, True]),
        "double": helper.make_tensor("", TensorProto.DOUBLE, [1], [1.0]),
        "int64": helper.make_tensor("", TensorProto.INT64, [1], [1]),
        "uint32": helper.make_tensor("", TensorProto.UINT32, [1], [1]),
        "complex": helper.make_tensor("", TensorProto.COMPLEX64, [2], np.array([1j, 2j])),
        "text": helper.make_tensor("", TensorProto.STRING, [2], np.array([b"a", b"b"])),
        "scalar": numpy_helper.from_array(np.array(1, np.float32)),
        "empty": numpy_helper.from_array(np.zeros((0, 4), np.float32)),
    }
    model = conv_lrn_gemm()
    for name, tensor in kinds.items():
        tensor.name = name
        model.graph.initializer.append(tensor)
    assert kinds.keys() <= load_onnx(model.SerializeToString()).graph.initializers.keys()
