from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from PIL import Image

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import GateError
from alexdeploy.graph.fp16 import to_bf16, to_fp16
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.quantize import apply
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.gate import check_answers, drawn_images
from alexdeploy.quantize.quantize import quantize_onnx
from alexdeploy.quantize.rangefile import save_ranges
from tests.helpers.graphs import Array, conv_lrn_gemm

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
    assert expected / 3 < found < expected * 3  # which of two levels is nearer, the order of a sum may decide


def test_bfloat16_is_judged_although_onnxruntime_has_no_kernels_for_it() -> None:
    assert 0 < check_answers(to_bf16(network()), network(), CONTRACT, HERE) < 0.02


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_answers_that_are_not_those_of_the_model_are_refused(factor: float) -> None:
    other = network()
    weight = other.graph.initializers["w2"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor), name="w2")
    with pytest.raises(GateError, match=r"^model.onnx in int8 answers otherwise .* so nothing was written; calibrate"):
        check_answers(insert_qdq(other, RANGES), network(), CONTRACT, HERE)


def test_what_does_not_load_is_a_fault_of_ours_and_said_to_be() -> None:
    broken = to_fp16(network())
    cast = next(node for node in broken.graph if node.op_type == "Cast")
    cast.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.DOUBLE))
    with pytest.raises(GateError, match=r"^model.onnx in fp16 cannot be run.*fault of alexdeploy") as caught:
        check_answers(broken, network(), CONTRACT, HERE)
    assert "\n" not in str(caught.value)


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
