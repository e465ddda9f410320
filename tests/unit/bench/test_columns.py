"""The table of a bench in terminals of every usual width."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from alexdeploy.bench.intervals import Latency, Ratio
from alexdeploy.bench.report.columns import CompactTable, compact_table
from alexdeploy.bench.report.table import notes
from alexdeploy.bench.results import BenchReport, Row
from alexdeploy.cli import bench

WIDTHS = (80, 100, 120, 200)
HERE = {"cpu": "A CPU", "cores": 2, "cpu_flags": ["avx2"], "gpu": None, "load": 0.5}


def row(artifact: str, runtime: str, batch: int, *, skipped: bool) -> Row:
    if skipped:
        return Row(artifact, runtime, "int8", batch, 16_500_000, "skipped", reason="no CUDA device")
    latency = Latency(p50=123.4 * batch, p90=130.0, p99=151.2, mean=124.0, ci95=(120.1, 127.9), calls=100)
    return Row(
        artifact=artifact,
        runtime=runtime,
        precision="int8+fp16",
        batch=batch,
        size_bytes=59_500_000,
        status="ok",
        latency_ms=latency,
        device_ms=latency,
        end_to_end_ms=latency,
        images_per_s=1000 * batch / latency.p50,
        ratio=Ratio(1.23, (1.1, 1.4), "faster"),
        top1=0.8756,
        top5=0.99,
        agreement=0.9966,
    )


def report(artifacts: int, batches: Sequence[int]) -> BenchReport:
    """Long names, every third artifact skipped."""
    runtimes = ["pytorch", "onnxruntime-cpu", "onnxruntime-tensorrt"]
    rows = [
        row(f"models/flowers-of-five-kinds-{i:02}-int8.onnx", runtimes[i % 3], batch, skipped=i % 3 == 2)
        for i in range(artifacts)
        for batch in batches
    ]
    return BenchReport(HERE, "flowers/val", "0", ["a", "b"], 587, 20.0, None, rows, [])


def headers(table: CompactTable) -> list[str]:
    return [column.header for column in table.columns]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("batches", [(1,), (1, 8), (1, 8, 32), (1, 8, 32, 64)])
@pytest.mark.parametrize("artifacts", [1, 4, 10])
def test_every_figure_is_whole_and_no_line_is_too_long(
    width: int,
    batches: Sequence[int],
    artifacts: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    bench.show_bench(report(artifacts, batches))
    shown = capsys.readouterr()
    assert "…" not in shown.out
    assert max(map(len, (shown.out + shown.err).splitlines())) <= width
    for batch in batches:
        assert f"ms b{batch}" in shown.out
    assert f"flowers-of-five-kinds-{artifacts - 1:02}-int8.onnx" in shown.out


def test_batch_sizes_stand_side_by_side_and_a_skipped_artifact_comes_once() -> None:
    table = compact_table(report(4, (1, 8)), 200)
    assert table.skipped == [False, False, True, False]
    ms = next(column for column in table.columns if column.header == "ms b1")
    assert ms.cells == ("123 ±3.9", "123 ±3.9", "skipped", "123 ±3.9")
    assert next(column for column in table.columns if column.header == "ms b8").cells[2] == ""


def test_wider_terminals_show_more_and_narrow_ones_name_files_by_letter() -> None:
    shown = [compact_table(report(4, (1, 8)), width) for width in WIDTHS]
    assert len(shown[0].columns) < len(shown[-1].columns)
    assert shown[0].legend["a"].endswith("flowers-of-five-kinds-00-int8.onnx")
    assert shown[-1].legend == {}
    for table in shown:
        assert headers(table)[:3] in (["artifact", "runtime", "type"], ["", "runtime", "type"])
    assert {"top-1", "agreement"} <= {*headers(shown[1])}


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [
        (Ratio(2.0, (1.9, 2.1), "faster"), "2.00 ×"),
        (Ratio(20.99, (7.4, 67.6), "faster"), "7.4–67.6 ×"),
        (Ratio(1.02, (0.9, 1.1), "no difference shown"), "no difference shown"),
    ],
)
def test_a_speed_that_is_not_known_well_is_shown_as_its_interval(ratio: Ratio, shown: str) -> None:
    measured = dataclasses.replace(row("a.onnx", "openvino", 8, skipped=False), ratio=ratio)
    bench = BenchReport(HERE, "flowers/val", "0", ["a", "b"], 587, 20.0, None, [measured], [])
    (column,) = [column for column in compact_table(bench, 200).columns if column.header == "speed b8"]
    assert column.cells == (shown,)


def test_convolutions_with_groups_are_named_where_tensorrt_computes_them_in_int8() -> None:
    found = report(1, (1,))
    assert not any("groups" in line for line in notes(found))
    engine = dataclasses.replace(found.rows[0], runtime="tensorrt", grouped=["conv2", "conv5"])
    told = [line for line in notes(dataclasses.replace(found, rows=[*found.rows, engine])) if "groups" in line]
    assert len(told) == 1
    assert "conv2,conv5" in told[0]
    rtx = dataclasses.replace(engine, runtime="tensorrt-rtx")
    assert not any("groups" in line for line in notes(dataclasses.replace(found, rows=[rtx])))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_the_speed_is_there_at_every_width_however_long_its_verdict(width: int, precision: str) -> None:
    same = Ratio(1.02, (0.9, 1.1), "no difference shown")
    measured = [
        dataclasses.replace(row(file, "onnxruntime-cpu", batch, skipped=False), precision=precision, ratio=ratio)
        for file, ratio in (("floats.onnx", None), ("integers.onnx", same))
        for batch in (1, 8)
    ]
    table = compact_table(BenchReport(HERE, "flowers/val", "0", ["a", "b"], 587, 20.0, None, measured, []), width)
    assert {"top-1", "speed b8"} <= {*headers(table)}
    (column,) = [column for column in table.columns if column.header == "speed b8"]
    assert column.cells == (("ref", "no diff.") if width == 80 else ("1.00 × (ref)", "no difference shown"))
