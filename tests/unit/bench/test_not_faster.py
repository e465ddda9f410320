"""Why INT8 is not faster: facts from simulated engine records, and from what ONNX Runtime really runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from alexdeploy import files
from alexdeploy.bench import not_faster as module
from alexdeploy.bench.candidates import Candidate
from alexdeploy.bench.intervals import summarize
from alexdeploy.bench.not_faster import facts_of, networks_of, not_faster
from alexdeploy.bench.report.table import notes
from alexdeploy.bench.results import BenchReport, NotFaster, Row
from alexdeploy.engine.kernels import Kernel
from alexdeploy.engine.record import EngineRecord, write_engine
from alexdeploy.graph.model import save_onnx
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.runners.artifact import CheckpointArtifact, EngineArtifact, OnnxArtifact
from alexdeploy.specs import Precision
from tests.helpers.graphs import conv_lrn_gemm, make_model

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
        candidate.runner = runner
        candidate.layers_ms = runner.layer_times_ms(np.zeros((1, 3, 8, 8), np.float32))
        candidate.layer_types = dict(runner.layer_types)
    assert candidate.layer_types.keys() == candidate.layers_ms.keys()
    found = facts_of(candidate)
    nodes = {node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"}
    assert nodes == {"conv1"}
    assert any(fact.startswith("1 of 2 layers are float in the graph (conv1; ") for fact in found)
    told = [fact for fact in found if "computed in float" in fact]
    assert len(told) <= 1
    assert not any("conv1" in fact for fact in told), "that the graph has it in float says it already"
    assert any("VNNI" in fact for fact in found) is not exact
    runner.on_gpu = True
    assert not any("VNNI" in fact for fact in facts_of(candidate)), "this machine's CPU does not run it"


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
        row("small.engine", "fp16", 0.2),
    ]
    networks = {"a.onnx": 0, "a.engine": 0, "h.engine": 0, "i.engine": 0, "small.engine": 1}
    facts = {("i.engine", "tensorrt"): ["conversions take 25% of the time"]}
    expected = [] if verdict is None else [("i.engine", "h.engine", verdict)]
    assert [(n.artifact, n.than, n.verdict) for n in not_faster(rows, facts, networks)] == expected
    assert not_faster(rows, {}, networks) == []
    assert not_faster(rows, facts, {**networks, "i.engine": 2}) == [], "beside another network it says nothing"


def saved(graph: onnx.ModelProto, path: Path, *parents: Path) -> Candidate:
    files.write_artifact(path, graph.SerializeToString(), "onnx", parents=tuple(map(files.parent, parents)))
    return Candidate(OnnxArtifact(path), "onnxruntime-cpu")


def built(path: Path, *parents: Path) -> Candidate:
    write_engine(path, b"ftrt" + path.name.encode(), RECORD, parents=tuple(map(files.parent, parents)), options={})
    return Candidate(EngineArtifact(path, trust=True), "tensorrt")


def test_networks_are_told_apart_by_multiplications_and_by_what_files_were_made_from(tmp_path: Path) -> None:
    def path(name: str) -> Path:
        return tmp_path / name

    nodes = [
        onnx.helper.make_node("Flatten", ["input"], ["flat"], "flat"),
        onnx.helper.make_node("Gemm", ["flat", "w"], ["logits"], "fc2"),
    ]
    small = make_model(nodes, {"w": np.ones((192, 4), np.float32)}, rank=2)
    found = [
        built(path("h.engine"), saved(conv_lrn_gemm(), path("a.onnx")).artifact.path),
        built(path("i.engine"), saved(conv_lrn_gemm(1), path("int8.onnx"), path("a.onnx")).artifact.path),
        built(path("s.engine"), saved(small, path("small.onnx")).artifact.path),
        built(path("u.engine"), saved(conv_lrn_gemm(2), path("gone.onnx"), path("a.onnx")).artifact.path),
        *(Candidate(OnnxArtifact(path(name)), "onnxruntime-cpu") for name in ("int8.onnx", "small.onnx", "a.onnx")),
    ]
    for candidates in (found, found[::-1]):
        groups: dict[int, set[str]] = {}
        for name, number in networks_of(candidates).items():
            groups.setdefault(number, set()).add(Path(name).name)
        assert sorted(map(sorted, groups.values())) == [
            ["a.onnx", "h.engine", "i.engine", "int8.onnx"],
            ["s.engine", "small.onnx"],
            ["u.engine"],  # of a file that is not there, and whose own parents are not known
        ]
    path("int8.onnx").write_bytes(conv_lrn_gemm(3).SerializeToString())
    changed = Candidate(OnnxArtifact(path("int8.onnx")), "onnxruntime-cpu")
    assert len({*networks_of([found[1], changed]).values()}) == 2, "its sidecar is of another file"
    path("w.pth").write_bytes(b"weights")
    files.write_artifact(path("t.pth"), b"t", "checkpoint", parents=(files.parent(path("w.pth")),))
    trained = CheckpointArtifact(path("t.pth"))
    assert module._lineage(trained) == {trained.digest}, "it may have learned from another network's weights"


def test_the_report_says_it_in_one_line_for_all_batch_sizes() -> None:
    one = NotFaster("x/i.engine", "tensorrt", 1, "x/h.engine", "tensorrt", "slower", ["a", "b"])
    here = {"cpu": "A CPU", "cores": 2, "cpu_flags": ["avx2"], "gpu": None, "load": 0.5}
    report = BenchReport(here, "flowers/val", "0", [], 5, 20.0, None, [row("x/i.engine", "int8", 1.0)], [])
    assert not any("INT8" in line for line in notes(report))
    same = dataclasses.replace(one, batch=64, verdict="no difference shown")
    told = dataclasses.replace(report, not_faster=[one, dataclasses.replace(one, batch=8, facts=["b", "c"]), same])
    assert [line for line in notes(told) if "INT8" in line] == [
        "INT8: i.engine on tensorrt is slower than h.engine on tensorrt at batch 1, 8, and is not shown to be faster "
        "than h.engine on tensorrt at batch 64. What is known: a; b; c."
    ]
