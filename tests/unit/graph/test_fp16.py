from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from alexdeploy.errors import GateError, InputError
from alexdeploy.graph.fp16 import LIMIT, certify_lrn, largest_values, to_bf16, to_fp16
from alexdeploy.graph.model import precision_of
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.specs import Dialect, Precision
from tests.helpers.graphs import Array, conv_lrn_gemm, images, make_model, run


def types(model: ir.Model) -> dict[str, int]:
    """Element type by value name, inferred by ONNX itself, strictly."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True)
    return {v.name: v.type.tensor_type.elem_type for v in (*proto.graph.value_info, *proto.graph.output)}


def test_close_to_fp32_with_float_ends_and_lrn_as_an_island() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    half = to_fp16(model)
    batch = images()
    (expected,), (actual,) = run(model, batch), run(half, batch)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=5e-3, atol=5e-3)
    assert precision_of(half) is Precision.FP16
    found = types(half)
    assert found["conv1"] == found["pool1"] == TensorProto.FLOAT16
    assert found["lrn1"] == found["logits"] == TensorProto.FLOAT


def test_lrn_survives_activations_whose_squares_overflow_fp16() -> None:
    model = conv_lrn_gemm()
    batch = images() * 300  # 300² is infinity in FP16
    (expected,), (actual,) = run(model, batch), run(to_fp16(ir.from_proto(model)), batch)
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=2e-2, atol=2e-2)


def test_int8_with_fp16_between_keeps_scales_in_fp32() -> None:
    quantized = insert_qdq(ir.from_proto(conv_lrn_gemm()), {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)})
    mixed = to_fp16(quantized)
    assert precision_of(mixed) is Precision.INT8_FP16
    for node in mixed.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = node.inputs[1]
            assert scale is not None
            assert scale.dtype == ir.DataType.FLOAT
    batch = images()
    np.testing.assert_allclose(run(mixed, batch)[0], run(quantized, batch)[0], rtol=2e-2, atol=2e-2)
    assert types(mixed)["conv1"] == TensorProto.FLOAT16


def test_small_scales_of_int8_give_right_answers_with_fp16_between() -> None:
    """ONNX Runtime's optimizers multiply two scales, here 4e-4 and 2e-4; FP16 does not hold the product."""
    nodes = [
        helper.make_node("Gemm", ["input", "w", "b"], ["hidden"], "fc1", transB=1),
        helper.make_node("Gemm", ["hidden", "v", "b"], ["logits"], "fc2", transB=1),
    ]
    random = np.random.default_rng(0)
    weights = {name: random.uniform(-0.025, 0.025, (32, 32)).astype(np.float32) for name in "wv"}
    weights["b"] = random.uniform(-0.05, 0.05, 32).astype(np.float32)
    model = make_model(nodes, weights, shape=("batch", 32), rank=2)
    batch = images(4, (32,)) / 100
    ranges = {"input": TensorRange(0.05), "hidden": TensorRange(0.06)}
    (expected,) = run(model, batch)
    mixed = ir.to_proto(to_fp16(insert_qdq(ir.from_proto(model), ranges))).SerializeToString()
    (actual,) = ort.InferenceSession(mixed, providers=["CPUExecutionProvider"]).run(None, {"input": batch})
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_a_constant_beyond_fp16_makes_its_node_an_island() -> None:
    nodes = [
        helper.make_node("Mul", ["input", "big"], ["large"], "mul"),
        helper.make_node("Mul", ["large", "small"], ["logits"], "back"),
    ]
    weights = {"big": np.asarray([1e6], np.float32), "small": np.asarray([1e-4], np.float32)}
    model = make_model(nodes, weights)
    half = to_fp16(ir.from_proto(model))
    assert types(half)["large"] == types(half)["logits"] == TensorProto.FLOAT
    (finite,) = run(ir.to_proto(half), images(2))
    np.testing.assert_allclose(finite, run(model, images(2))[0], rtol=1e-2)
    big = half.graph.initializers["big"].const_value
    assert big is not None
    assert big.numpy()[0] == np.float32(1e6)


def test_one_cast_serves_all_users_and_the_input_model_is_untouched() -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["a"], "a"),
        helper.make_node("Neg", ["input"], ["b"], "b"),
        helper.make_node("Add", ["a", "b"], ["logits"], "add"),
    ]
    model = ir.from_proto(make_model(nodes, {}))
    before = ir.to_proto(model).SerializeToString()
    half = to_fp16(model)
    assert [node.op_type for node in half.graph].count("Cast") == 2, "one at the input, one at the output"
    assert ir.to_proto(model).SerializeToString() == before
    with pytest.raises(InputError, match="FP16"):
        to_fp16(to_fp16(ir.from_proto(conv_lrn_gemm())))


def test_values_that_come_near_the_limit_on_real_data_make_their_node_an_island() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    assert set(largest_values(model)) == {"conv1", "lrn1", "logits"}
    found = types(to_fp16(model, largest={"conv1": LIMIT / 2, "logits": LIMIT / 100}))
    assert found["conv1"] == found["relu1"] == TensorProto.FLOAT, "a ReLU is as large as what it reads"
    assert found["flatten1"] == TensorProto.FLOAT, "what follows the LRN too"
    found = types(to_fp16(model, largest={"lrn1": LIMIT}))
    assert found["flatten1"] == TensorProto.FLOAT16, "an LRN's sum of squares says nothing of its result"
    assert types(to_fp16(model, largest={"conv1": LIMIT / 5}))["conv1"] == TensorProto.FLOAT16


def test_lrn_becomes_fp16_only_with_a_certificate() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    assert certify_lrn(model, {"lrn1": 655.04}) == {"lrn1": pytest.approx(100.0)}
    with pytest.raises(GateError, match=r"'lrn1'.*3e\+04.*2\.18 times"):
        certify_lrn(model, {"lrn1": 3e4})
    with pytest.raises(GateError, match="not measured"):
        certify_lrn(model, {"conv1": 1.0})
    half, batch = to_fp16(model, lrn=True), images()
    assert types(half)["lrn1"] == TensorProto.FLOAT16
    np.testing.assert_allclose(run(half, batch)[0], run(model, batch)[0], rtol=2e-2, atol=2e-2)


def test_what_would_overflow_on_real_data_stays_finite_all_the_way() -> None:
    model = conv_lrn_gemm()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w1")
    values = np.frombuffer(weight.raw_data, np.float32) * np.float32(5e4)
    weight.raw_data = values.tobytes()
    (expected,) = run(model, images())
    (lost,) = run(to_fp16(ir.from_proto(model)), images())
    assert not np.isfinite(lost).all(), "without ranges it overflows, or the test shows nothing"
    (half,) = run(to_fp16(ir.from_proto(model), largest={"conv1": 2e5}), images())
    np.testing.assert_allclose(half, expected, rtol=1e-2, atol=1e-2 * float(np.abs(expected).max()))


def test_bfloat16_has_the_same_islands_and_raises_the_opset() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    model.metadata_props["kept"] = "yes"
    half = to_bf16(model)
    assert (precision_of(half), half.opset_imports[""], model.opset_imports[""]) == (Precision.BF16, 22, 20)
    assert half.metadata_props["kept"] == "yes"
    onnx.checker.check_model(ir.to_proto(half), full_check=True)
    found = types(half)
    assert found["conv1"] == found["pool1"] == TensorProto.BFLOAT16
    assert found["lrn1"] == found["logits"] == TensorProto.FLOAT
    with pytest.raises(InputError, match="already holds BF16"):
        to_fp16(half)


def test_bfloat16_needs_no_island_for_a_constant_that_fp16_cannot_hold() -> None:
    nodes = [helper.make_node("Mul", ["input", "big"], ["large"], "mul")]
    nodes.append(helper.make_node("Mul", ["large", "small"], ["logits"], "back"))
    weights = {"big": np.asarray([1e6], np.float32), "small": np.asarray([1e-4], np.float32)}
    assert types(to_bf16(ir.from_proto(make_model(nodes, weights))))["large"] == TensorProto.BFLOAT16


def test_an_operator_that_onnx_lacks_in_bfloat16_stays_in_fp32() -> None:
    nodes = [helper.make_node("Relu", ["input"], ["a"], "relu"), helper.make_node("Celu", ["a"], ["logits"], "celu")]
    half = to_bf16(ir.from_proto(make_model(nodes, {})))
    taken = {node.name: node.inputs[0].dtype for node in half.graph if node.inputs[0] is not None}
    assert (taken["relu"], taken["celu"]) == (ir.DataType.BFLOAT16, ir.DataType.FLOAT)


@pytest.mark.parametrize("to_half", [to_fp16, to_bf16])
def test_what_has_a_type_of_its_own_keeps_it(to_half: Callable[[ir.Model], ir.Model]) -> None:
    """A shortcut padded with zeros that the graph makes, as some exporters of ResNets for CIFAR write it."""
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(4, 3, 3, 3)), "g": random.normal(size=(8, 5))}
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["conv"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Concat", ["conv", "zeros"], ["padded"], axis=1),
        helper.make_node("GlobalAveragePool", ["padded"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "g"], ["logits"]),
    ]
    model = make_model(nodes, {name: array.astype(np.float32) for name, array in weights.items()}, rank=2)
    half = to_half(ir.from_proto(model))
    onnx.checker.check_model(ir.to_proto(half), full_check=True)
    found = types(half)
    assert (found["zeros"], found["conv"]) == (TensorProto.FLOAT, found["padded"])
    assert found["conv"] != TensorProto.FLOAT
    if to_half is to_fp16:
        batch = images()
        np.testing.assert_allclose(run(half, batch)[0], run(model, batch)[0], rtol=2e-2, atol=2e-2)


def conv_types(model: ir.Model) -> set[str]:
    """Of what Conv and Gemm compute in."""
    return {
        node.outputs[0].dtype.name for node in model.graph if node.op_type in ("Conv", "Gemm") and node.outputs[0].dtype
    }


def with_bias(value: float) -> ir.Model:
    model = ir.from_proto(conv_lrn_gemm())
    for name, size in (("b1", 8), ("b2", 4)):
        model.graph.initializers[name].const_value = ir.tensor(np.full(size, value, np.float32), name=name)
    return model


@pytest.mark.parametrize("bias", [0.0, 0.3, 100.0])
@pytest.mark.parametrize("dialect", ["tensorrt", "onnxruntime", "openvino"])
def test_a_bias_in_levels_of_32_bits_is_no_reason_for_an_island(dialect: Dialect, bias: float) -> None:
    """Its scale is tiny, and its levels are no int8; scales stay FP32."""
    ranges = {"input": TensorRange(1e-4), "flatten1": TensorRange(1e-4)}
    outputs = {"conv1": TensorRange(5.0), "relu1": TensorRange(5.0), "logits": TensorRange(5.0)}
    half = to_fp16(insert_qdq(with_bias(bias), ranges | outputs, dialect=dialect))
    assert conv_types(half) == {"FLOAT16"}


def test_a_bias_in_levels_that_fp16_does_not_hold_makes_an_island() -> None:
    ranges = {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)}
    outputs = {"conv1": TensorRange(2e6), "relu1": TensorRange(2e6), "logits": TensorRange(2e6)}
    half = to_fp16(insert_qdq(with_bias(1e6), ranges | outputs, dialect="onnxruntime"))
    assert conv_types(half) == {"FLOAT"}


def test_weights_in_levels_are_judged_by_their_values() -> None:
    """Of one channel, the levels times the scale, and not the scale alone."""
    nodes = [
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["w"], "dq", axis=0),
        helper.make_node("Conv", ["input", "w"], ["logits"], "conv"),
    ]
    weights: dict[str, Array] = {
        "levels": np.array([[100, 130, 120], [200, 100, 90]], np.uint8).reshape(2, 3, 1, 1),
        "scale": np.array([1e3, 1.0], np.float32),
        "zero": np.array([128, 100], np.uint8),
    }
    half = to_fp16(ir.from_proto(make_model(nodes, weights)))  # 28 × 1e3
    assert conv_types(half) == {"FLOAT16"}
    weights["scale"] = np.array([3e3, 1.0], np.float32)
    assert conv_types(to_fp16(ir.from_proto(make_model(nodes, weights)))) == {"FLOAT"}


@pytest.mark.parametrize(("epsilon", "island"), [(1e-5, False), (1e-12, True)])
def test_a_dead_channel_of_a_batch_normalization_is_divided_by_its_epsilon(epsilon: float, island: bool) -> None:
    nodes = [
        helper.make_node(
            "BatchNormalization", ["input", "one", "zero", "zero", "var"], ["logits"], "bn", epsilon=epsilon
        )
    ]
    weights = {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    weights["var"] = np.array([1.0, 1e-12, 2.0], np.float32)
    half = to_fp16(ir.from_proto(make_model(nodes, weights)))
    (bn,) = (node for node in half.graph if node.op_type == "BatchNormalization")
    assert bn.outputs[0].dtype == (ir.DataType.FLOAT if island else ir.DataType.FLOAT16)


@pytest.mark.parametrize(("largest", "kind"), [(1e-3, "FLOAT16"), (1e-7, "FLOAT")])
def test_the_scale_of_an_activation_tells_whether_fp16_holds_it(largest: float, kind: str) -> None:
    ranges = {"input": TensorRange(largest), "flatten1": TensorRange(largest)}
    assert conv_types(to_fp16(insert_qdq(ir.from_proto(conv_lrn_gemm()), ranges))) == {kind}
