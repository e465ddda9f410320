from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import GateError, InputError, InputWarning, UnavailableError
from alexdeploy.graph.fp16 import to_bf16, to_fp16
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.quantize import apply
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.gate import check_answers, drawn_images
from alexdeploy.quantize.quantize import quantize_onnx
from alexdeploy.quantize.rangefile import save_ranges
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.helpers.graphs import Array, conv_lrn_gemm, make_model

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
RANGES = {"input": TensorRange(2.0), "flatten1": TensorRange(3.0, nonnegative=True)}
HERE = Path("model.onnx")


def network() -> ir.Model:
    """Without a bias at the end, which would be most of the answer."""
    model = ir.from_proto(conv_lrn_gemm())
    model.graph.initializers["b2"].const_value = ir.tensor(np.zeros(4, np.float32), name="b2")
    return model


def answers(model: ir.Model) -> Array:
    """By ONNX's own reference implementation."""
    evaluator = ReferenceEvaluator(onnx.load_from_string(model_bytes(model)))
    found: Array = evaluator.run(None, {"input": drawn_images(CONTRACT)})[0]  # type: ignore[index]
    return found


@pytest.mark.parametrize("write", [lambda model: insert_qdq(model, RANGES), to_fp16], ids=["int8", "fp16"])
def test_the_distance_is_that_of_the_reference_implementation(write: Callable[[ir.Model], ir.Model]) -> None:
    written = write(network())
    found = check_answers(written, network(), CONTRACT, HERE)
    exact = answers(network())
    expected = np.linalg.norm(answers(written) - exact) / np.linalg.norm(exact)
    assert found is not None
    assert expected / 3 < found < expected * 3  # which of two levels is nearer, the order of a sum may decide


def test_bfloat16_is_judged_although_onnxruntime_has_no_kernels_for_it() -> None:
    found = check_answers(to_bf16(network()), network(), CONTRACT, HERE)
    assert found is not None
    assert 0 < found < 0.02


def times(factor: float, name: str = "w2") -> ir.Model:
    """The network with one weight multiplied."""
    other = network()
    weight = other.graph.initializers[name]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor), name=name)
    return other


FIXES: dict[str, tuple[Callable[[ir.Model], ir.Model], str, str]] = {
    "int8": (lambda model: insert_qdq(model, RANGES), "less than 100%", "calibrate on images that the network is for"),
    "fp16": (to_fp16, "at most 5%", "calibrate, and give `ranges`.*; or take BF16$"),
    "bf16": (to_bf16, "less than 100%", "take FP32, or FP16 with `ranges`"),
}


@pytest.mark.parametrize("factor", [0.0, 3.0, -1.0])
@pytest.mark.parametrize("precision", FIXES)
def test_answers_that_are_not_those_of_the_model_are_refused(precision: str, factor: float) -> None:
    write, bound, fix = FIXES[precision]
    words = f"^model.onnx in {precision} answers otherwise .* {bound} is allowed, so nothing was written; {fix}"
    with pytest.raises(GateError, match=words) as caught:
        check_answers(write(times(factor)), network(), CONTRACT, HERE)
    assert precision != "bf16" or "BF16" not in str(caught.value), "nobody is advised what they did"


def test_who_gave_ranges_is_not_advised_to_give_them() -> None:
    with pytest.raises(GateError, match="nothing was written; take BF16, or FP32") as caught:
        check_answers(to_fp16(times(3)), network(), CONTRACT, HERE, calibrated=True)
    assert "calibrate" not in str(caught.value)


def test_answers_that_do_not_depend_on_the_image_are_told() -> None:
    """As with a last layer of zeros, whose answers are its bias in any precision."""
    flat = times(0)
    flat.graph.initializers["b2"].const_value = ir.tensor(np.array([1, 2, 3, 4], np.float32), name="b2")
    words = "^model.onnx answers the same whatever the image is, so fp16 was not judged; "
    with pytest.warns(InputWarning, match=words) as told:
        check_answers(to_fp16(flat), flat, CONTRACT, HERE)
    assert len(told) == 1


@pytest.mark.parametrize(("precision", "factor"), [("int8", 1.7), ("bf16", 1.4), ("bf16", 0.1)])
def test_answers_that_are_far_off_and_may_be_right_are_a_warning(precision: str, factor: float) -> None:
    words = rf"^model.onnx in {precision} is \d\d% away .*judge it on your images, with compare or bench$"
    with pytest.warns(InputWarning, match=words) as told:
        found = check_answers(FIXES[precision][0](times(factor)), network(), CONTRACT, HERE)
    assert found is not None
    assert len(told) == 1
    assert abs(found - abs(factor - 1)) < 0.1


def test_fp16_is_rounded_after_each_node() -> None:
    """ONNX Runtime's CPU keeps 1e6 between two nodes of FP16; GPUs and onnx.reference do not."""
    nodes = [
        helper.make_node("Conv", ["input", "up"], ["large"], "large"),
        helper.make_node("Relu", ["large"], ["positive"], "relu"),
        helper.make_node("Conv", ["positive", "down"], ["map"], "down"),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "flatten"),
    ]
    random = np.random.default_rng(0)
    weights = {
        "up": random.uniform(1e4, 6e4, (8, 3, 3, 3)).astype(np.float32),
        "down": random.uniform(-1e-3, 1e-3, (4, 8, 3, 3)).astype(np.float32),
    }
    model = ir.from_proto(make_model(nodes, weights, rank=2))
    with np.errstate(all="ignore"):
        assert not np.isfinite(answers(to_fp16(model))).all(), "or the test shows nothing"
    with pytest.raises(GateError, match="in fp16 answers otherwise"):
        check_answers(to_fp16(model), model, CONTRACT, HERE)
    found = check_answers(to_fp16(model, largest={"large": 1e6}), model, CONTRACT, HERE)
    assert found is not None
    assert found < 1e-2


def test_what_is_not_finite_in_the_original_need_not_be_in_what_was_written() -> None:
    broken = network()
    bias = broken.graph.initializers["b2"]
    bias.const_value = ir.tensor(np.array([0, np.inf, 0, 0], np.float32), name="b2")
    found = check_answers(to_bf16(broken), broken, CONTRACT, HERE)
    assert found is not None
    assert found < 0.02
    with pytest.raises(GateError, match="by inf% of its answers"):
        check_answers(to_bf16(broken), network(), CONTRACT, HERE)


def faint() -> tuple[ir.Model, ir.Model]:
    """A Clip that ONNX Runtime's optimizers (1.32) drop before a QuantizeLinear, and the float model."""
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], "c1"),
        helper.make_node("Clip", ["c1", "zero", "six"], ["r1"], "r1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "c2"),
        helper.make_node("GlobalAveragePool", ["c2"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "flatten"),
    ]
    random = np.random.default_rng(0)
    weights = {
        "w1": (random.standard_normal((8, 3, 3, 3)) * 1e-10).astype(np.float32),
        "w2": random.standard_normal((4, 8, 3, 3)).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "six": np.full((), 6, np.float32),
    }
    model = ir.from_proto(make_model(nodes, weights, rank=2))
    ranges = {"input": TensorRange(2.0), "r1": TensorRange(25e-10, nonnegative=True)}
    return insert_qdq(model, ranges), model


@pytest.mark.parametrize("known", [True, False])
def test_optimizers_of_onnxruntime_do_not_change_the_verdict_and_what_they_change_is_told(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, model = faint()
    exact = answers(model)
    expected = np.linalg.norm(answers(written) - exact) / np.linalg.norm(exact)
    if not known:
        monkeypatch.setattr("alexdeploy.graph.emulate._FAINT", 0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = check_answers(written, model, CONTRACT, HERE)
    assert found == pytest.approx(expected, rel=0.5)
    words = "ONNX Runtime's own optimizations change the answers of model.onnx in int8"
    assert [str(one.message).startswith(words) for one in told] == ([] if known else [True])


def test_without_onnxruntime_it_is_not_run_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(InputWarning, match=r"^model.onnx in bf16 was not run.*'onnxruntime' is not installed; .*pip"):
        assert check_answers(to_bf16(network()), network(), CONTRACT, HERE) is None


def test_writing_a_precision_needs_no_onnxruntime() -> None:
    """The extra for TensorRT-RTX brings none, and build-engine takes a precision."""
    program = "import sys; sys.modules['onnxruntime'] = None; import alexdeploy.quantize.apply, alexdeploy.engine.plan"
    subprocess.run([sys.executable, "-c", program], check=True)


def without_its_cast() -> ir.Model:
    broken = to_fp16(network())
    cast = next(node for node in broken.graph if node.op_type == "Cast")
    cast.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.DOUBLE))
    return broken


def test_what_does_not_load_is_a_fault_of_ours_and_said_to_be() -> None:
    with pytest.raises(GateError, match=r"^model.onnx in fp16: ONNX Runtime cannot.*fault of alexdeploy") as caught:
        check_answers(without_its_cast(), network(), CONTRACT, HERE)
    assert "\n" not in str(caught.value)


def test_types_that_only_the_graph_itself_shows_to_be_wrong_are_found() -> None:
    """It is run in FP32, where a constant of FP16 that ought to be FP32 is FP32."""
    broken = to_fp16(network())
    bias = broken.graph.initializers["b1.fp16"]
    assert bias.const_value is not None
    wide = ir.val("b1.wide", const_value=ir.tensor(bias.const_value.numpy().astype(np.float32), name="b1.wide"))
    broken.graph.register_initializer(wide)
    ir.convenience.replace_all_uses_with(bias, wide)
    with pytest.raises(GateError, match=r"^model.onnx in fp16: ONNX Runtime cannot.*fault of alexdeploy"):
        check_answers(broken, network(), CONTRACT, HERE)


def test_an_original_that_does_not_load_is_named_and_no_fault_of_ours() -> None:
    with pytest.raises(InputError, match=r"^model.onnx: ONNX Runtime cannot load it") as caught:
        check_answers(to_fp16(network()), without_its_cast(), CONTRACT, HERE)
    assert "fault" not in str(caught.value)


def test_a_graph_with_a_plugin_of_tensorrt_is_not_judged_and_that_is_said() -> None:
    model = network()
    model.opset_imports["trt.plugins"] = 1
    relu = next(node for node in model.graph if node.op_type == "Relu")
    relu.op_type, relu.domain = "Swish_TRT", "trt.plugins"
    with pytest.warns(InputWarning, match=r"^model.onnx in fp16 was not run .* its trt.plugins.Swish_TRT: judge it"):
        assert check_answers(to_fp16(model), model, CONTRACT, HERE) is None


@pytest.mark.parametrize(("fails", "what"), [(1, "model.onnx"), (2, "model.onnx in fp16")])
def test_want_of_memory_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch, fails: int, what: str) -> None:
    run, calls = OnnxRuntimeRunner.run, []

    def short(runner: OnnxRuntimeRunner, batch: Array) -> dict[str, Array]:
        calls.append(batch)
        if len(calls) == fails:
            raise UnavailableError("CPUExecutionProvider: Failed to allocate memory")
        return run(runner, batch)

    monkeypatch.setattr(OnnxRuntimeRunner, "run", short)
    with pytest.raises(UnavailableError, match=f"^{what}: CPUExecutionProvider: Failed to allocate memory$"):
        check_answers(to_fp16(network()), network(), CONTRACT, HERE)


@pytest.mark.parametrize(
    ("contract", "shape"),
    [
        (CONTRACT, (3, 8, 8)),
        (Contract(color="gray", resize=(20, 12), mean=(0.1,), std=(0.3,)), (1, 20, 12)),
        (Contract(color="bgr", resize=16, crop=8, layout="nhwc", input_type="uint8"), (8, 8, 3)),
    ],
    ids=["rgb", "gray", "pixels"],
)
def test_drawn_images_are_as_the_contract_says_and_differ(contract: Contract, shape: tuple[int, ...]) -> None:
    first, second = drawn_images(contract)
    assert (first.shape, first.dtype.name) == (shape, contract.input_type)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(drawn_images(contract)[1], second)


def test_quantize_writes_nothing_that_the_gate_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.metadata_props[METADATA_KEY] = CONTRACT.to_json()
    (tmp_path / "model.onnx").write_bytes(model_bytes(model))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for index, image in enumerate(pixels):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[index % 2] / f"{index}.png")
    images = load_dataset(str(tmp_path), "all")
    save_ranges(tmp_path / "ranges.json", calibrate(tmp_path / "model.onnx", images, samples=4))

    def clipped(*arguments: object, **options: object) -> ir.Model:
        written = insert_qdq(*arguments, **options)  # type: ignore[arg-type]
        scale = written.graph.initializers["input.scale"]
        scale.const_value = ir.tensor(np.float32(1e-4), name=scale.name)
        return written

    monkeypatch.setattr(apply, "insert_qdq", clipped)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(GateError, match="answers otherwise than it does in float"):
        quantize_onnx(tmp_path / "model.onnx", tmp_path / "ranges.json", tmp_path / "int8.onnx")
    assert sorted(tmp_path.iterdir()) == before
