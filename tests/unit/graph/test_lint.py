"""Every rule with a graph that breaks just it; where TensorRT-RTX is installed, its parser and builder say the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.contract import Contract
from alexdeploy.engine.build import BuilderInput, EngineBuild
from alexdeploy.engine.options import BuilderOptions
from alexdeploy.engine.versions import load_library
from alexdeploy.errors import InputError
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.lint import check_tensorrt, lint
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.uint8_input import with_uint8_input
from alexdeploy.specs import Dialect, Profile
from tests.helpers.graphs import Array, conv_lrn_gemm, make_model

RGB = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
RANGES = {name: TensorRange(2.0, name[0] in "rfl") for name in ("input", "mul_input", "relu1", "flatten1", "logits")}
Nodes = list[onnx.NodeProto]
ACTIVATION: dict[str, Array] = {"scale": np.asarray(np.float32(0.03)), "zero": np.asarray(np.int8(0))}
f32, i8, u8 = np.float32, np.int8, np.uint8


def quantized(source: str, target: str, zero: str | None = "zero") -> Nodes:
    """Q/DQ between two tensors."""
    more = ["scale"] if zero is None else ["scale", zero]
    return [
        helper.make_node("QuantizeLinear", [source, *more], [f"{target}.q"], f"{target}.quantize"),
        helper.make_node("DequantizeLinear", [f"{target}.q", *more], [target], f"{target}.dequantize"),
    ]


def dequantized(target: str, axis: int) -> Nodes:
    inputs = [f"{target}.q", f"{target}.scale", f"{target}.zero"]
    return [helper.make_node("DequantizeLinear", inputs, [target], f"{target}.dequantize", axis=axis)]


def filters(name: str, channels: int, count: int = 8) -> dict[str, Array]:
    return {
        f"{name}.q": np.ones((8, channels, 3, 3), i8),
        f"{name}.scale": np.full(count, 0.01, f32),
        f"{name}.zero": np.zeros(count, i8),
    }


def conv(x: Nodes | None = None, w: Nodes | None = None, **changed: Any) -> onnx.ModelProto:
    """The Conv ``layer`` with Q/DQ on both inputs; other nodes for either, other constants (``w_q`` is ``w.q``)."""
    x = quantized("input", "x") if x is None else x
    w = dequantized("w", 0) if w is None else w
    arrays: dict[str, Any] = ACTIVATION | filters("w", 3) | {"w": np.ones((8, 3, 3, 3), f32)}
    arrays |= {name.replace("_", "."): array for name, array in changed.items()}
    nodes = [*x, *w, helper.make_node("Conv", ["x", "w"], ["logits"], "layer")]
    return make_model(nodes, free(nodes, arrays))


def free(nodes: Nodes, arrays: Mapping[str, Any]) -> dict[str, Array]:
    """Those arrays that the nodes take and do not make."""
    names = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    return {name: np.asarray(array) for name, array in arrays.items() if name in names}


def matrix(operator: str, axis: int, *, scale: Any = 0.03, **attributes: Any) -> onnx.ModelProto:
    """The Gemm or MatMul ``layer``, 192 → 4, with Q/DQ on both inputs."""
    shape = (4, 192) if attributes.get("transB") else (192, 4)
    arrays = {
        "scale": np.asarray(scale, f32),
        "zero": np.zeros(np.shape(scale), i8),
        "w.q": np.ones(shape, i8),
        "w.scale": np.full(shape[axis], 0.01, f32),
        "w.zero": np.zeros(shape[axis], i8),
    }
    flat = helper.make_node("Flatten", ["input"], ["flat"], "flatten")
    layer = helper.make_node(operator, ["x", "w"], ["logits"], "layer", **attributes)
    return make_model([flat, *quantized("flat", "x"), *dequantized("w", axis), layer], arrays, rank=2)


def product(first: str, second: str) -> onnx.ModelProto:
    """The MatMul ``layer`` of two of: the image, ``x``, which is the image with Q/DQ, and the constant ``w``."""
    nodes = [*quantized("input", "x"), helper.make_node("MatMul", [first, second], ["logits"], "layer")]
    return make_model(nodes, free(nodes, ACTIVATION | {"w": np.ones((8, 8), f32)}))


def transposed_weight(axis: int) -> onnx.ModelProto:
    """As exporters write Linear: the weight goes through Transpose behind its DequantizeLinear."""
    model = matrix("Gemm", axis, transB=1)
    layer = model.graph.node.pop()
    turn = helper.make_node("Transpose", ["w"], ["w.t"], "turn", perm=[1, 0])
    model.graph.node.extend([turn, helper.make_node("MatMul", ["x", "w.t"], ["logits"], layer.name)])
    return model


def int32_bias() -> onnx.ModelProto:
    nodes = [*quantized("input", "x"), *dequantized("w", 0), *dequantized("b", 0)]
    arrays = ACTIVATION | filters("w", 3)
    arrays |= {"b.q": np.ones(8, np.int32), "b.scale": np.full(8, 1e-3, f32), "b.zero": np.zeros(8, np.int32)}
    return make_model([*nodes, helper.make_node("Conv", ["x", "w", "b"], ["logits"], "layer")], arrays)


def replaced(model: onnx.ModelProto, name: str, array: Array, opset: int = 20) -> onnx.ModelProto:
    """With another constant, which onnx.checker has not seen."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    model.opset_import[0].version = opset
    return model


def blocks() -> onnx.ModelProto:
    """Blocks of 24 along the wrong axis, as ModelOpt 0.47 writes for a Gemm with transB."""
    model = replaced(matrix("Gemm", 0, transB=1), "w.scale", np.ones((4, 8), f32), opset=21)
    dequantize = next(node for node in model.graph.node if node.name == "w.dequantize")
    dequantize.attribute.append(helper.make_attribute("block_size", 24))
    return replaced(model, "w.zero", np.zeros((4, 8), i8), opset=21)


def computed(what: Literal["scale", "zero"]) -> onnx.ModelProto:
    """Scale or zero point from the image's largest value."""
    cast = helper.make_node(
        "Cast", ["max"], [what], "cast", to=TensorProto.FLOAT if what == "scale" else TensorProto.INT8
    )
    nodes = [helper.make_node("ReduceMax", ["input"], ["max"], "max", keepdims=0), cast, *quantized("input", "logits")]
    return make_model(nodes, free(nodes, ACTIVATION))


def folded() -> onnx.ModelProto:
    """A scale that is computed, but from constants."""
    return conv(
        [helper.make_node("Mul", ["half", "two"], ["scale"], "mul"), *quantized("input", "x")],
        half=f32(0.015),
        two=f32(2),
    )


def single(operator: str, *, shape: Sequence[int | str] = ("batch", 3, 8, 8), **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(operator, ["input"], ["logits"], "layer", **attributes)
    return make_model([node], {}, shape=shape, rank=len(shape))


def pool_with_indices(*, used: bool) -> onnx.ModelProto:
    pool = helper.make_node("MaxPool", ["input"], ["x", "at"], "layer", kernel_shape=[2, 2])
    cast = helper.make_node("Cast", ["at" if used else "x"], ["logits"], "cast", to=TensorProto.FLOAT)
    return make_model([pool, cast], {})


def scalar_list(operator: str) -> onnx.ModelProto:
    inputs = ["at"] if operator == "ConstantOfShape" else ["input", "at", "end"]
    nodes = [
        helper.make_node(operator, inputs, ["x"], "layer"),
        helper.make_node("Add", ["input", "x"], ["logits"], "add"),
    ]
    return make_model(nodes, {"at": np.array(1), "end": np.array([2])} if operator == "Slice" else {"at": np.array(1)})


def uint8_into(operator: str, *constants: Array, **attributes: Any) -> onnx.ModelProto:
    weights = {f"constant{number}": array for number, array in enumerate(constants)}
    layer = helper.make_node(operator, ["input", *weights], ["x"], "layer", **attributes)
    model = make_model([layer, helper.make_node("Cast", ["x"], ["logits"], "cast", to=TensorProto.FLOAT)], weights)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def half_scales() -> onnx.ModelProto:
    """As NVIDIA's exporter writes INT8 with FP16 around it."""
    arrays = {**ACTIVATION, **filters("w", 3), "scale": np.asarray(np.float16(0.03))}
    arrays["w.scale"] = arrays["w.scale"].astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["input"], ["half"], "half", to=TensorProto.FLOAT16),
        *quantized("half", "x"),
        *dequantized("w", 0),
        helper.make_node("Conv", ["x", "w"], ["y"], "layer"),
        helper.make_node("Cast", ["y"], ["logits"], "float", to=TensorProto.FLOAT),
    ]
    return make_model(nodes, free(nodes, arrays))


def half_weight(operator: str) -> onnx.ModelProto:
    weight = np.ones((8, 3, 3, 3) if operator == "Conv" else (8, 4), f32)
    model = make_model([helper.make_node(operator, ["input", "w"], ["logits"], "layer")], {"w": weight})
    return replaced(model, "w", weight.astype(np.float16))


def integer_conv() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["x.q"], "x.quantize"),
        helper.make_node("ConvInteger", ["x.q", "w.q"], ["sum"], "layer"),
        helper.make_node("Cast", ["sum"], ["logits"], "cast", to=TensorProto.FLOAT),
    ]
    return make_model(nodes, free(nodes, ACTIVATION | filters("w", 3)))


def dynamic_quantization() -> onnx.ModelProto:
    quantize = helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "s", "z"], "layer")
    return make_model([quantize, helper.make_node("Cast", ["q"], ["logits"], "cast", to=TensorProto.FLOAT)], {})


def two_convs(*between: str) -> onnx.ModelProto:
    """Two Convs with quantized weights, and that (``Q/DQ`` or an operator) between them."""
    nodes = [*quantized("input", "x"), *dequantized("w", 0), helper.make_node("Conv", ["x", "w"], ["0"], "first")]
    attributes: dict[str, dict[str, Any]] = {
        "MaxPool": {"kernel_shape": [2, 2]},
        "AveragePool": {"kernel_shape": [2, 2]},
        "LRN": {"size": 3},
    }
    for index, step in enumerate(between):
        if step == "Q/DQ":
            nodes += quantized(f"{index}", f"{index + 1}")
        else:
            nodes.append(
                helper.make_node(step, [f"{index}"], [f"{index + 1}"], step.lower(), **attributes.get(step, {}))
            )
    nodes += [*dequantized("v", 0), helper.make_node("Conv", [f"{len(between)}", "v"], ["logits"], "layer")]
    return make_model(nodes, ACTIVATION | filters("w", 3) | filters("v", 8))


class Case(NamedTuple):
    """A graph that breaks one rule at ``nodes``, what is said of it, and what TensorRT-RTX makes of it.

    It refuses the graph, builds the ``layer`` in INT8 or in float, or was not asked.
    """

    rule: str
    model: Callable[[], onnx.ModelProto]
    said: str
    nodes: tuple[str, ...] = ("layer",)
    verdict: Literal["refused", "int8", "float", "not asked"] = "refused"


Q, DQ, W = "x.quantize", "x.dequantize", "w.dequantize"
BOTH = ("logits.quantize", "logits.dequantize")
ERRORS = (
    Case("lrn-window", lambda: single("LRN", size=4), "an even window (4)"),
    Case("lrn-window", lambda: single("LRN", size=17), "a window of 17"),
    Case("lrn-range", lambda: single("LRN", size=5, beta=0.009), "beta 0.009; TensorRT takes 0.01 to"),
    Case("lrn-range", lambda: single("LRN", size=5, beta=2e5), "beta 200000"),
    Case("lrn-range", lambda: single("LRN", size=5, bias=0.9e-5), "bias 9e-06; TensorRT takes 1e-05 to"),
    Case("lrn-range", lambda: single("LRN", size=5, alpha=1e21), "alpha 1e+21"),
    Case("lrn-rank", lambda: single("LRN", size=3, shape=("batch", 3, 8)), "rank 3"),
    Case("pool-dilations", lambda: single("MaxPool", kernel_shape=[2, 2], dilations=[1, 2]), "[1, 2]"),
    Case("pool-indices", lambda: pool_with_indices(used=True), "Indices"),
    Case("pool-indices", lambda: pool_with_indices(used=False), "Indices"),
    Case("uint8-input", lambda: uint8_into("Transpose", perm=[0, 3, 1, 2]), "uint8 input 'input'"),
    Case("uint8-input", lambda: uint8_into("Gather", np.array([2, 1, 0]), axis=1), "uint8 input 'input'"),
    # the parser ends the process (SIGSEGV), so it is not asked
    Case("scalar-list", lambda: scalar_list("ConstantOfShape"), "the scalar 'at'", verdict="not asked"),
    Case("scalar-list", lambda: scalar_list("Slice"), "the scalar 'at'", verdict="not asked"),
    Case("mixed-types", lambda: half_weight("Conv"), "FLOAT and FLOAT16"),
    Case("mixed-types", lambda: half_weight("MatMul"), "FLOAT and FLOAT16"),
    Case("integer-operator", integer_conv, "is ConvInteger"),
    Case("integer-operator", dynamic_quantization, "is DynamicQuantizeLinear"),
    Case("zero-point", lambda: conv(zero=i8(-3)), "of -3", (Q, DQ)),
    Case("zero-point", lambda: conv(zero=u8(128)), "of 128", (Q, DQ)),
    Case("zero-point", lambda: conv(w_zero=np.full(8, 2, i8)), "of 2", (W,)),
    Case("unsigned", lambda: conv(zero=u8(0)), "quantizes to uint8", (Q,), "int8"),
    Case("unsigned", lambda: conv(quantized("input", "x", zero=None)), "has no zero point", (Q,), "int8"),
    Case("level-type", lambda: conv(w_q=np.ones((8, 3, 3, 3), u8), w_zero=np.zeros(8, u8)), "UINT8", (W,)),
    Case("level-type", int32_bias, "INT32", ("b.dequantize",)),
    Case("level-type", lambda: replaced(conv(), "zero", np.asarray(np.int16(0)), opset=21), "INT16", (Q,)),
    Case("scale-value", lambda: conv(scale=f32(0)), "a scale of 0;", (Q, DQ)),
    Case("scale-value", lambda: conv(scale=f32(-1)), "a scale of -1;", (Q, DQ)),
    Case("scale-value", lambda: conv(w_scale=np.array([1] * 7 + [np.nan], f32)), "a scale of nan", (W,)),
    Case("scale-value", lambda: conv(w_scale=np.array([1] * 7 + [np.inf], f32)), "a scale of inf", (W,), "int8"),
    Case("scale-count", lambda: conv(w_scale=np.ones(5, f32), w_zero=np.zeros(5, i8)), "axis 0 asks for (8,)", (W,)),
    Case("scale-count", blocks, "shape (4, 8) where axis 0 asks for (1, 192)", (W,)),
    Case("computed-scale", lambda: computed("zero"), "zero point computed", BOTH),
    # it builds; but with a Conv behind it the builder crashes (SIGSEGV), so it is not asked
    Case("computed-scale", lambda: computed("scale"), "scale computed", BOTH, "not asked"),
)
WARNINGS = (
    Case("one-sided", lambda: conv(w=[]), "activation only", verdict="float"),
    Case("one-sided", lambda: conv([helper.make_node("Relu", ["input"], ["x"])]), "weight only", verdict="float"),
    Case("one-sided", lambda: two_convs("Relu", "Q/DQ", "AveragePool"), "weight only", verdict="float"),
    Case("one-sided", lambda: product("input", "x"), "its second input only", verdict="float"),
    Case("one-sided", lambda: product("x", "input"), "its first input only", verdict="float"),
    Case("one-sided", lambda: product("w", "x"), "its activation only", verdict="float"),
    Case(
        "activation-scales", lambda: conv(axis_1(), scale=np.ones(3, f32), zero=np.zeros(3, i8)), "3", verdict="float"
    ),
    Case("activation-scales", lambda: conv(scale=np.ones(1, f32), zero=np.zeros(1, i8)), "(1,)", verdict="float"),
    Case("activation-scales", lambda: matrix("MatMul", 1, scale=[0.03] * 192), "192", verdict="float"),
    Case("channel-axis", lambda: conv(w=dequantized("w", 1), **wrong_axis()), "axis 1", verdict="float"),
    Case("channel-axis", lambda: matrix("Gemm", 1, transB=1), "axis 1", verdict="float"),
    Case("channel-axis", lambda: matrix("Gemm", 0), "axis 0", verdict="float"),
    Case("channel-axis", lambda: matrix("MatMul", 0), "axis 0", verdict="float"),
    Case("channel-axis", lambda: transposed_weight(1), "axis 1", verdict="float"),
    Case("half-scale", half_scales, "products of two scales", ("w.dequantize",), "int8"),
    Case("qdq-before-relu", lambda: two_convs("Q/DQ", "Relu", "Q/DQ"), "and 'first'", ("relu",), "int8"),
    Case("qdq-before-lrn", lambda: two_convs("Relu", "Q/DQ", "LRN", "Q/DQ"), "no INT8 kernel", ("lrn",), "int8"),
)
GOOD: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": conv,
    "a scale computed from constants": folded,
    "weight scales from a list of one": lambda: conv(w_scale=np.ones(1, f32), w_zero=np.zeros(1, i8)),
    "one scale for the weight": lambda: conv(w_scale=f32(1), w_zero=i8(0)),
    "negative axis": lambda: conv(w=dequantized("w", -4)),
    "gemm": lambda: matrix("Gemm", 1),
    "gemm, transB": lambda: matrix("Gemm", 0, transB=1),
    "matmul": lambda: matrix("MatMul", 1),
    "matmul on a list of one scale": lambda: matrix("MatMul", 1, scale=[0.03]),
    "matmul on a transposed weight": lambda: transposed_weight(0),
    "Q/DQ behind ReLU": lambda: two_convs("Relu", "Q/DQ"),
    "Q/DQ behind Conv": lambda: two_convs("Q/DQ"),
    "Q/DQ behind LRN": lambda: two_convs("Relu", "LRN", "Q/DQ"),
    "Q/DQ before a pool": lambda: two_convs("Relu", "Q/DQ", "MaxPool"),
    "Q/DQ around a pool": lambda: two_convs("Relu", "Q/DQ", "MaxPool", "Q/DQ"),
}


def axis_1() -> Nodes:
    nodes = quantized("input", "x")
    for node in nodes:
        node.attribute.append(helper.make_attribute("axis", 1))
    return nodes


def wrong_axis() -> dict[str, Any]:
    return {"w_scale": np.ones(3, f32), "w_zero": np.zeros(3, i8)}


def int8_layers(proto: onnx.ModelProto) -> set[str]:
    """Build with TensorRT-RTX; the nodes whose products its matrix and convolution kernels compute in INT8.

    A kernel of type runtime_fusion takes int8 too, but dequantizes and multiplies in float.
    """
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = ir.from_proto(proto)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    shapes = {"input": Profile.parse("1:2:4").with_sizes(tuple(shape))}
    graph = BuilderInput(model_bytes(model), shapes, (), {})
    _, report = EngineBuild(graph, BuilderOptions(), load_library("tensorrt-rtx")).run()
    kernels = [k for k in report.kernels if k.type in ("correlation", "gemm") and k.precision == "INT8"]
    return {layer for kernel in kernels for layer in kernel.onnx_layers}


def case_id(case: object) -> str:
    return f"{case.rule}: {case.said}" if isinstance(case, Case) else str(case)


@pytest.mark.parametrize("case", [*ERRORS, *WARNINGS], ids=case_id)
def test_a_graph_that_breaks_a_rule_breaks_just_that_rule(case: Case) -> None:
    findings = lint(ir.from_proto(case.model()))
    assert {(finding.rule, finding.severity) for finding in findings} == {
        (case.rule, "error" if case in ERRORS else "warning")
    }
    assert tuple(finding.node for finding in findings) == case.nodes
    assert all(case.said in finding.found and finding.fix for finding in findings)


@pytest.mark.parametrize("case", [case for case in (*ERRORS, *WARNINGS) if case.verdict == "refused"], ids=case_id)
def test_what_is_said_to_be_refused_is_refused_by_nvidias_parser_or_builder(case: Case) -> None:
    with pytest.raises(InputError, match="tensorrt-rtx"):
        int8_layers(case.model())


@pytest.mark.parametrize("case", [case for case in (*ERRORS, *WARNINGS) if case.verdict == "float"], ids=case_id)
def test_what_is_said_to_be_float_is_built_in_float(case: Case) -> None:
    assert "layer" not in int8_layers(case.model())


@pytest.mark.parametrize("case", [case for case in (*ERRORS, *WARNINGS) if case.verdict == "int8"], ids=case_id)
def test_what_is_misread_or_less_exact_is_built_without_a_word(case: Case) -> None:
    assert "layer" in int8_layers(case.model())


@pytest.mark.parametrize("name", GOOD)
def test_a_good_graph_has_no_finding_and_is_built_in_int8(name: str) -> None:
    assert lint(ir.from_proto(GOOD[name]())) == []
    assert "layer" in int8_layers(GOOD[name]())


def test_a_conv_behind_a_relu_without_qdq_is_float_and_both_reasons_are_told() -> None:
    model = two_convs("Q/DQ", "Relu")
    findings = [(finding.node, finding.rule) for finding in lint(ir.from_proto(model))]
    assert findings == [("relu", "qdq-before-relu"), ("layer", "one-sided")]
    assert int8_layers(model) >= {"first"}
    assert "layer" not in int8_layers(model)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("uint8", [False, True])
def test_what_we_write_for_tensorrt_has_no_finding(trans_b: int, int8: bool, fp16: bool, uint8: bool) -> None:
    model = ir.from_proto(conv_lrn_gemm(trans_b=trans_b))
    model = with_uint8_input(model, RGB)[0] if uint8 else model
    model = insert_qdq(model, RANGES) if int8 else model
    model = to_fp16(model) if fp16 else model
    assert lint(model) == []
    check_tensorrt(model, "model.onnx")


@pytest.mark.parametrize(
    ("dialect", "rules"),
    [("openvino", {"unsigned"}), ("onnxruntime", {"unsigned", "zero-point", "level-type", "qdq-before-lrn"})],
)
def test_what_we_write_for_other_runtimes_is_not_for_tensorrt(dialect: Dialect, rules: set[str]) -> None:
    model = insert_qdq(ir.from_proto(conv_lrn_gemm()), RANGES, dialect=dialect)
    assert {finding.rule for finding in lint(model)} == rules


def test_levels_named_by_output_dtype_are_int8_without_a_zero_point() -> None:
    model = conv(quantized("input", "x", zero=None))
    model.opset_import[0].version = 21
    model.graph.node[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    assert lint(ir.from_proto(model)) == []
    assert "layer" in int8_layers(model)


def test_a_nameless_node_is_named_by_its_output_and_the_model_stays_as_it_is() -> None:
    model = ir.from_proto(single("LRN", size=4))
    model.graph[0].name = None
    before = model_bytes(model)
    assert [finding.node for finding in lint(model)] == ["logits"]
    assert model_bytes(model) == before


@pytest.mark.parametrize(("size", "words"), [(4, "even window"), (17, "window of 17")])
def test_lrn_outside_tensorrt_is_refused_with_node_and_fix(size: int, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_tensorrt(ir.from_proto(conv_lrn_gemm(lrn_size=size)), "model.onnx")
    assert "'lrn1'" in str(caught.value)
    assert "fine-tune" in str(caught.value)
    check_tensorrt(ir.from_proto(conv_lrn_gemm(lrn_size=15)), "model.onnx")


def test_the_first_error_is_raised_and_the_rest_are_counted() -> None:
    with pytest.raises(
        InputError, match=r"^a\.onnx: node 'x\.quantize' .*\(rule zero-point; 1 more, see alexdeploy lint"
    ):
        check_tensorrt(ir.from_proto(conv(zero=i8(5))), "a.onnx")
    check_tensorrt(ir.from_proto(WARNINGS[0].model()), "a.onnx")
