"""What the chain concludes from its benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from alexdeploy import pipeline
from alexdeploy.bench.intervals import Latency
from alexdeploy.bench.results import BenchReport, NotFaster, Row
from alexdeploy.engine.record import EngineRecord, write_engine
from alexdeploy.machine import Gpu
from alexdeploy.pipeline import PipelineReport

Runtime = Literal["onnxruntime-cpu", "openvino", "tensorrt-rtx"]


def row(artifact: str, runtime: Runtime, precision: str, ms: float, batch: int = 8) -> Row:
    """A row whose calls all took ``ms``."""
    return Row(
        artifact=artifact,
        runtime=runtime,
        precision=precision,
        batch=batch,
        size_bytes=1,
        status="ok",
        latency_ms=Latency(p50=ms, p90=ms, p99=ms, mean=ms, ci95=(ms, ms), calls=60),
        images_per_s=1000 * batch / ms,
        agreement=0.75,
        samples_ms={"host": [[ms] * 3] * 20},
    )


def report(*rows: Row) -> PipelineReport:
    environment = {"cpu": "", "cores": 1, "cpu_flags": [], "load": 0.0, "gpu": None}
    bench = BenchReport(environment, "digits/val", "", [], 359, 1.0, None, list(rows), [])
    return PipelineReport([], bench, {"onnx-int8": Path("int8.onnx")})


ROWS = (
    row("float.onnx", "onnxruntime-cpu", "fp32", 9.0),
    row("float.onnx", "openvino", "fp32", 6.0),
    row("int8.onnx", "onnxruntime-cpu", "int8", 1.0),
    row("own.onnx", "onnxruntime-cpu", "int8", 4.0),
    row("ov.onnx", "openvino", "int8", 3.0),
    row("ov.onnx", "openvino", "int8", 0.5, batch=1),
)


def test_the_gain_is_that_of_the_fastest_int8_row_over_fp32_on_the_same_runtime() -> None:
    best, other = report(*ROWS).gains
    assert (best.runtime, best.batch, best.agreement) == ("openvino", 8, 0.75)
    assert best.ratio.value == pytest.approx(6.0 / 3.0)
    assert other.runtime == "onnxruntime-cpu"


def test_tensorrts_graph_is_left_out_of_the_comparison_but_not_of_the_report() -> None:
    made = report(*ROWS)
    assert [row.artifact for row in made.comparison.rows if row.precision == "int8"] == [
        "own.onnx",
        "ov.onnx",
        "ov.onnx",
    ]
    assert made.tensorrt_graph is made.bench.rows[2]
    for row in (made.tensorrt_graph, ROWS[0]):
        made.bench.not_faster.append(
            NotFaster(row.artifact, row.runtime, 8, "float.onnx", "openvino", "slower", ["its copies take longer"])
        )
    assert [told.artifact for told in made.comparison.not_faster] == [ROWS[0].artifact]


def test_without_fp32_on_the_same_runtime_there_is_no_gain() -> None:
    assert report(*ROWS[2:5]).gains == []
    skipped = replace(
        ROWS[0], runtime="tensorrt-rtx", status="skipped", latency_ms=None, images_per_s=None, samples_ms={}
    )
    assert report(skipped, row("int8.engine", "tensorrt-rtx", "int8", 1.0)).gains == []


@pytest.mark.parametrize("cuda", [False, True])
def test_fp32_is_timed_on_every_runtime_that_int8_is(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is CUDA the float graph's usual runtime is another than the INT8 graph's, and no gain is left."""
    monkeypatch.setattr(pipeline, "cuda_is_here", lambda: cuda)
    made = {name: Path(name) for name in ("onnx", "onnx-int8-onnxruntime")}
    more = made | {"onnx-int8-openvino": Path("onnx-int8-openvino")}
    on_gpu = {"onnxruntime-cuda"} if cuda else set()
    assert {*pipeline._runtimes(made)[Path("onnx")]} == {"onnxruntime-cpu", *on_gpu}
    assert {*pipeline._runtimes(more)[Path("onnx")]} == {"onnxruntime-cpu", "openvino", *on_gpu}
    assert pipeline._runtimes(more)[Path("onnx-int8-openvino")] == ("openvino",)


def test_an_engine_is_kept_only_for_the_gpu_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu("NVIDIA L4", "8.9", "13.0"), Gpu("NVIDIA A100", "8.0", "13.0")]
    monkeypatch.setattr(pipeline, "current_gpu", lambda ordinal: gpus[ordinal])
    monkeypatch.setattr(pipeline, "load_library", lambda builder: SimpleNamespace(name="tensorrt"))
    record = EngineRecord(builder="tensorrt", version="10.16.1.11", gpu=gpus[0])
    write_engine(tmp_path / "net-fp32.engine", b"a plan", record, parents=(), options={})
    recipe: Any = SimpleNamespace(network=SimpleNamespace(name="net"))
    images: Any = SimpleNamespace(fingerprint="")
    kept = {}
    for device in (None, "cuda", "cuda:0", "cuda:1"):
        chain = pipeline._Chain(recipe, images, images, tmp_path, 1, "tensorrt", device, "")
        kept[device] = chain._engine("fp32").is_finished()
    assert kept == {None: True, "cuda": True, "cuda:0": True, "cuda:1": False}
