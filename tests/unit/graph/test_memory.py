"""The prediction against arithmetic by hand, and against what NVIDIA's builder reports of its own plan."""

from __future__ import annotations

import itertools
import re

import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.graph import memory
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.memory import _bytes, predict_memory
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, calibration_tensors, insert_qdq
from alexdeploy.graph.taps import with_outputs
from alexdeploy.specs import Profile
from tests.helpers.graphs import conv_lrn_gemm, make_model

MIB = 1 << 20


def test_a_small_network_by_hand() -> None:
    need = predict_memory(ir.from_proto(conv_lrn_gemm()), 3)
    conv = 8 * 8 * 8  # floats of conv1 and lrn1 per image
    assert need.weights_bytes == 4 * (8 * 3 * 3 * 3 + 8 + 4 * 8 * 4 * 4 + 4)
    assert need.activations_bytes == 8 * MIB + 4 * 3 * (conv + conv + conv)  # relu1, lrn1 and the squares between
    assert need.io_bytes == 4 * 3 * (3 * 8 * 8 + 4)
    assert need.total_bytes == need.weights_bytes + need.activations_bytes + need.io_bytes


def test_a_value_that_is_used_again_stays_alive() -> None:
    """A → b → c → d, and a + d: at c and at d, a is there beside the two that are needed."""
    nodes = [helper.make_node("Exp", [x], [y], y) for x, y in (["input", "a"], "ab", "bc", "cd")]
    skip = make_model([*nodes, helper.make_node("Add", ["a", "d"], ["logits"], "sum")], {})
    assert predict_memory(ir.from_proto(skip), 5).activations_bytes == 8 * MIB + 3 * 4 * 5 * 3 * 8 * 8


def test_each_value_is_counted_once_or_twice_however_many_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 results that are all read at the end."""
    names = [f"r{index}" for index in range(500)]
    nodes = [helper.make_node("Exp", ["input"], [name], name) for name in names]
    model = ir.from_proto(make_model([*nodes, helper.make_node("Sum", names, ["logits"], "sum")], {}))
    infer_shapes(model)
    counted = []

    def of_one(value: ir.Value | None, batch: int) -> int:
        counted.append(value)
        return _bytes(value, batch)

    monkeypatch.setattr(memory, "_bytes", of_one)
    assert predict_memory(model, 1).activations_bytes == 8 * MIB + 500 * 4 * 3 * 8 * 8
    assert len(counted) < 3 * 500


def test_largest_magnitudes_keep_no_value_alive() -> None:
    """They are taken right behind each result: two of a chain at once, and a few numbers of each."""
    chain = ["input", *(f"r{index}" for index in range(100)), "logits"]
    nodes = [helper.make_node("Exp", [x], [y], y) for x, y in itertools.pairwise(chain)]
    tapped = with_outputs(ir.from_proto(make_model(nodes, {})), ["logits"], magnitudes=chain[1:-1])
    assert predict_memory(tapped, 5).activations_bytes <= 8 * MIB + 2 * 4 * 5 * 3 * 8 * 8 + 100 * 4 * 4


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8+fp16"])
def test_close_to_what_tensorrt_rtx_reports(int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from alexdeploy.engine.build import BuilderInput, EngineBuild
    from alexdeploy.engine.options import BuilderOptions
    from alexdeploy.engine.versions import load_library, process_logger

    library, batch = load_library("tensorrt-rtx"), 8192
    model = ir.from_proto(conv_lrn_gemm())
    if int8:
        model = to_fp16(insert_qdq(model, dict.fromkeys(calibration_tensors(model), TensorRange(1.0))))
    shapes = {"input": Profile.parse(f"1:8:{batch}").with_sizes((3, 8, 8))}
    graph = BuilderInput(model_bytes(model), shapes, (), {})
    words: list[str] = []
    monkeypatch.setattr(type(process_logger(library)), "log", lambda _, severity, text: words.append(text))
    EngineBuild(graph, BuilderOptions(), library).run()
    (activations,) = map(int, re.findall(r"Total Activation Memory: (\d+) bytes", "".join(words)))
    assert activations > 40 * MIB
    assert predict_memory(model, batch).activations_bytes == pytest.approx(activations, rel=0.2)
