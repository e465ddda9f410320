"""Why INT8 is not faster: facts from simulated engine records, and from what ONNX Runtime really runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from alexdeploy.bench import not_faster as module
from alexdeploy.bench.candidates import Candidate
from alexdeploy.bench.intervals import summarize
from alexdeploy.bench.not_faster import facts_of, not_faster
from alexdeploy.bench.report.table import notes
from alexdeploy.bench.results import BenchReport, NotFaster, Row
from alexdeploy.engine.kernels import Kernel
from alexdeploy.engine.record import EngineRecord
from alexdeploy.graph.model import save_onnx
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.runners.artifact import EngineArtifact, OnnxArtifact
from alexdeploy.specs import Precision
from tests.helpers.graphs import conv_lrn_gemm

RECORD = EngineRecord(
    builder="tensorrt",
    version="10.16",
    precision=Precision.INT8,
    layer_precisions={"conv1": "INT8", "conv2": "FLOAT", "fc3": "INT8"},
    quantized={"conv1": "INT8", "conv2": "INT8", "fc3": "INT8"},
    float_layers=("conv2",),
    left={"conv4": "its weight is made at run time"},
    grouped=("conv1",),
    kernels=(
        Kernel("conv1 + relu1", "CaskConvolution", "INT8", ("conv1",), True),
        Kernel("Reformatting CopyNode for conv2", "Reformat", "NONE", (), False),
        Kernel("conv2", "CaskConvolution", "FLOAT", ("conv2",), True),
        Kernel("fc3", "gemm", "INT8", ("fc3",), True),
    ),
)
TIMES = {"conv1 + relu1": 1.0, "Reformatting CopyNode for conv2": 2.0, "conv2": 4.0, "fc3": 1.0}


def engine(record: EngineRecord) -> Candidate:
    artifact = EngineArtifact(b"ftrt" + bytes(64), trust=True)
    artifact.record = record
    return Candidate(artifact, record.builder, layers_ms=TIMES)


def test_an_engine_tells_of_float_kernels_reformats_and_groups() -> None:
    assert facts_of(engine(RECORD)) == [
        "2 of 4 layers with weights are not computed in INT8 (conv2, conv4)",
        "1 convolutions have groups (conv1)",
        "float products take 50% of the time of its kernels (1 of them)",
        "conversions take 25% of the time of its kernels (1 of them)",
    ]


def test_of_an_engine_without_details_or_in_float_nothing_is_told() -> None:
    bare = EngineRecord(builder="tensorrt", version="10.16", precision=Precision.INT8)
    assert facts_of(engine(bare)) == []
    assert facts_of(engine(msgspec.structs.replace(RECORD, precision=Precision.FP16))) == []


@pytest.mark.parametrize("exact", [True, False])
def test_onnxruntime_tells_what_it_really_computes_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(module, "saturates_int8", lambda: not exact)
    ranges = {name: TensorRange(3.0) for name in ("input", "flatten1", "relu1")}
    whole = ir.from_proto(conv_lrn_gemm())
    path = tmp_path / "int8.onnx"
    save_onnx(insert_qdq(whole, ranges, dialect="onnxruntime", keep_float=["conv1"]), path)
    candidate = Candidate(OnnxArtifact(path), "onnxruntime-cpu")
    with candidate.artifact.runner("onnxruntime-cpu") as runner:
        candidate.layers_ms = runner.layer_times_ms(np.zeros((1, 3, 8, 8), np.float32))
        candidate.layer_types = dict(runner.layer_types)
    assert candidate.layer_types.keys() == candidate.layers_ms.keys()
    found = facts_of(candidate)
    nodes = {node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"}
    assert nodes == {"conv1"}
    assert any(fact.startswith("1 of 2 layers are float in the graph (conv1; ") for fact in found)
    assert any("computed in float" in fact and "relu1" in fact for fact in found)
    assert any("VNNI" in fact for fact in found) is not exact


def row(name: str, precision: str, ms: float, runtime: str = "tensorrt") -> Row:
    rounds = [[ms + 0.001 * (index % 3)] for index in range(60)]
    latency = summarize(np.array(rounds))
    return Row(
        name, runtime, precision, 8, 1, "ok", latency_ms=latency, images_per_s=8000 / ms, samples_ms={"host": rounds}
    )


@pytest.mark.parametrize(
    ("int8_ms", "verdict"),
    [(0.5, None), (1.0, "no difference shown"), (2.0, "slower")],
    ids=["faster", "same", "slower"],
)
def test_only_what_is_not_faster_than_the_best_on_its_runtime_is_told(int8_ms: float, verdict: str | None) -> None:
    rows = [
        row("a.onnx", "fp32", 0.1, "onnxruntime-cuda"),
        row("a.engine", "fp32", 4.0),
        row("h.engine", "fp16", 1.0),
        row("i.engine", "int8", int8_ms),
    ]
    facts = {("i.engine", "tensorrt"): ["conversions take 25% of the time"]}
    expected = [] if verdict is None else [("i.engine", "h.engine", verdict)]
    assert [(n.artifact, n.than, n.verdict) for n in not_faster(rows, facts)] == expected
    assert not_faster(rows, {}) == []


def test_the_report_says_it_in_one_line_for_all_batch_sizes() -> None:
    one = NotFaster("x/i.engine", "tensorrt", 1, "x/h.engine", "tensorrt", "slower", ["a", "b"])
    here = {"cpu": "A CPU", "cores": 2, "cpu_flags": ["avx2"], "gpu": None, "load": 0.5}
    report = BenchReport(here, "flowers/val", "0", [], 5, 20.0, None, [row("x/i.engine", "int8", 1.0)], [])
    assert not any("not faster" in line for line in notes(report))
    told = dataclasses.replace(report, not_faster=[one, dataclasses.replace(one, batch=8, facts=["b", "c"])])
    assert [line for line in notes(told) if "not faster" in line] == [
        "INT8 is not faster: i.engine on tensorrt, batch 1, 8, against h.engine on tensorrt. What is known: a; b; c."
    ]
