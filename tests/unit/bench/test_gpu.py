"""The bench's figures of a GPU, with doubles: no GPU is here, and so no figure of one."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest

from alexdeploy.arrays import Batch
from alexdeploy.bench import baseline, gpu_state, run
from alexdeploy.bench.gpu_state import GpuState, GpuWatch, ask_nvidia_smi
from alexdeploy.bench.report import charts
from alexdeploy.bench.report.gpu import commands, gpu_columns, gpu_notes
from alexdeploy.bench.report.page import write_html, write_markdown
from alexdeploy.bench.results import BenchReport
from alexdeploy.cli import main
from alexdeploy.engine.timing import GpuTimes, SplitTimes
from alexdeploy.errors import InputError, UnavailableError
from alexdeploy.machine import GpuIds
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.unit.bench.test_run import NAMES, _quick, bench, floats, images  # noqa: F401

NVIDIA_SMI = """#!/bin/sh
case "$*" in
*loop-ms*) while true; do
    told=$(cat "$FAKE_SMI/now")
    echo "$(date '+%Y/%m/%d %H:%M:%S.%3N'), $told"
    sleep 0.01
done ;;
*) echo 0x0000000000000000 ;;
esac
"""


def times(enqueue_ms: float) -> GpuTimes:
    split = SplitTimes(np.full(20, 0.125), np.full(20, 0.5), np.full(20, 0.25), np.full(20, enqueue_ms), graph=True)
    return GpuTimes(split, {1: 100.0, 2: 150.0}, "trtexec --loadEngine=a.engine")


class OnGpu(OnnxRuntimeRunner):
    """ONNX Runtime on the CPU, which says that it is on a GPU."""

    on_gpu = True
    tf32: bool | None = False
    enqueue_ms = 0.4

    def gpu_times(self, batch: Batch, seconds: float) -> GpuTimes | None:
        assert len(batch) == 1
        assert 0 <= seconds <= 1
        return times(self.enqueue_ms)


class WithoutRoom(OnGpu):
    def gpu_times(self, batch: Batch, seconds: float) -> GpuTimes | None:  # noqa: ARG002
        raise UnavailableError("CUDA: out of memory")


def report_of(runner: type[OnGpu], path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchReport:
    monkeypatch.setattr("alexdeploy.runners.onnxruntime.OnnxRuntimeRunner", runner)
    return bench(path, on=images(NAMES, [0] * 4))


def test_a_row_on_a_gpu_has_times_by_events_and_no_limit_of_the_cpu(
    floats: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = report_of(OnGpu, floats, monkeypatch)
    (row,) = report.rows
    assert (row.limit, report.machine, row.tf32) == (None, None, "off")
    assert row.gpu is not None
    assert [latency.p50 for latency in (row.gpu.h2d_ms, row.gpu.compute_ms, row.gpu.d2h_ms)] == [0.125, 0.5, 0.25]
    assert [(flight.batches, flight.images_per_s) for flight in row.gpu.in_flight] == [(1, 100.0), (2, 150.0)]
    assert not row.gpu.enqueue_bound
    cells = {column.header: column.cells for column in gpu_columns(report, {})}
    assert [cells[name] for name in ("batch", "compute", "enqueue", "images/s", "×2")] == [
        ["1"],
        ["0.5"],
        ["0.4"],
        ["100"],
        ["150"],
    ]
    assert commands(report) == ["trtexec --loadEngine=a.engine"]
    monkeypatch.setattr(charts, "figures", lambda report: [])
    write_html(report, tmp_path / "x.html")
    write_markdown(report, tmp_path / "x.md")
    page, markdown = (tmp_path / "x.html").read_text(), (tmp_path / "x.md").read_text()
    assert "<th>compute</th>" in page
    assert "<td>0.125</td><td>0.5</td><td>0.25</td><td>0.4</td><td>100</td><td>150</td>" in page
    assert "| 0.125 | 0.5 | 0.25 | 0.4 | 100 | 150 |" in markdown
    assert "```\ntrtexec --loadEngine=a.engine\n```" in markdown
    assert "<pre>trtexec --loadEngine=a.engine</pre>" in page
    told = " ".join(gpu_notes(report))
    assert "FP32 on the GPU: without TF32 in every row." in told
    assert "WARNING" not in told


def test_a_row_that_is_bound_by_the_host_or_computes_in_tf32_is_warned_of(
    floats: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OnGpu, "enqueue_ms", 0.45)
    monkeypatch.setattr(OnGpu, "tf32", True)
    told = gpu_notes(report_of(OnGpu, floats, monkeypatch))
    assert any("bound by the host: floats.onnx on onnxruntime-cpu, batch 1 (0.45 ms to submit" in line for line in told)
    assert any("not alike in all rows. TF32: on of floats.onnx on onnxruntime-cpu; off" in line for line in told)


def test_without_room_for_it_the_row_says_why(floats: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    report = report_of(WithoutRoom, floats, monkeypatch)
    (row,) = report.rows
    assert (row.status, row.gpu, gpu_columns(report, {})) == ("ok", None, [])
    assert any(line.endswith("batch 1: no times by CUDA events: CUDA: out of memory") for line in gpu_notes(report))


def test_a_report_without_a_gpu_says_nothing_of_one(floats: Path) -> None:  # noqa: F811
    report = bench(floats, on=images(NAMES, [0] * 4))
    assert (gpu_notes(report), gpu_columns(report, {}), commands(report), report.gpu_states) == ([], [], [], [])
    assert report.rows[0].tf32 is None


def test_the_command_turns_tf32_off_where_the_provider_has_no_option(
    floats: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime's TensorRT provider builds with TF32 otherwise (microsoft/onnxruntime#26029)."""
    for asked, value in (("onnxruntime-cpu", None), ("onnxruntime-tensorrt", "0")):
        monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "TF32" not in name})
        with pytest.raises(SystemExit):
            main(["bench", str(floats), "--data", "digits", "--runtime", asked, "--baseline", "absent.json"])
        assert os.environ.get("NVIDIA_TF32_OVERRIDE") == value


@pytest.fixture
def now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fake nvidia-smi tells, again and again."""
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SMI", str(tmp_path))
    return tmp_path / "now"


def two_more(watch: GpuWatch) -> None:
    """Wait for samples."""
    before, until = len(watch._samples), time.monotonic() + 20
    while len(watch._samples) < before + 2:
        assert time.monotonic() < until, "no samples"
        time.sleep(0.005)


def test_each_group_has_the_state_of_its_own_time(now: Path) -> None:
    """Idle samples do not count as clocks; what the card does not tell stays open."""
    told = {
        ("host", 1): ["1980, 6251, 60.5, 55, 0x0", "1665, 6251, 71.2, 60, 0x2"],
        ("host", 8): ["1410, 6251, 72.4, 84, 0x0000000000000024", "210, 405, 20.0, 50, 0x1"],
        ("device", 8): ["[N/A], [N/A], [N/A], [N/A], [N/A]"],
    }
    now.write_text("1, 1, 999, 999, 0xff")
    with GpuWatch("GPU-0") as watch:
        for (boundary, batch), lines in told.items():
            for line in lines:
                now.write_text(line)
                two_more(watch)  # the first may have been read before
                with watch.during(boundary, batch):
                    two_more(watch)
        now.write_text("1, 1, 999, 999, 0xff")
    first, second, third, fourth, fifth = watch.states
    assert (first.sm_mhz, second.sm_mhz, second.power_w, second.slowed_by) == ((1980, 1980), (1665, 1665), 71.2, ())
    assert (third.sm_mhz, third.slowed_by) == ((1410, 1410), ("sw_power_cap", "sw_thermal_slowdown"))
    assert (fourth.sm_mhz, fourth.temperature_c) == (None, 50)
    assert (fifth.samples > 0, fifth.sm_mhz, fifth.power_w) == (True, None, None)


def test_the_process_that_watches_ends_with_it(now: Path) -> None:
    now.write_text("1980, 6251, 60.5, 55, 0x0")
    with pytest.raises(KeyError), GpuWatch("GPU-0") as watch:
        raise KeyError
    assert watch._process is not None
    assert watch._process.returncode is not None


def test_without_nvidia_smi_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuWatch("GPU-0") as watch, watch.during("host", 1):
        pass
    assert watch.states == []
    assert ask_nvidia_smi("GPU-0", ["name"]) == {}


def test_a_card_that_was_slowed_or_changed_its_clock_is_warned_of(
    floats: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = [
        GpuState("host", 1, 5, (1980.0, 1980.0), (6251.0, 6251.0), 60.0, 55.0, ()),
        GpuState("end_to_end", 1, 5, (1410.0, 1980.0), (6251.0, 6251.0), 72.4, 84.0, ("sw_power_cap",)),
        GpuState("gpu", 1, 0, None, None, None, None, ()),
    ]
    told = gpu_notes(dataclasses.replace(report_of(OnGpu, floats, monkeypatch), gpu_states=states))
    assert "WARNING: the GPU was slowed down during end to end batch 1 (sw_power_cap)." in told
    assert any("the SM clock varied during end to end batch 1 (1410–1980 MHz);" in line for line in told)
    assert any(
        "(10 samples by nvidia-smi): SM 1410–1980 MHz, memory 6251 MHz, at most 72 W, at most 84 °C" in line
        for line in told
    )


def test_the_card_watched_is_the_one_that_runs(floats: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked = []

    def ask(card: str, fields: object) -> dict[str, str]:  # noqa: ARG001
        asked.append(card)
        return {}

    monkeypatch.setattr(run, "gpu_ids", lambda ordinal: GpuIds("MIG-1", "GPU-2"))
    monkeypatch.setattr(gpu_state, "ask_nvidia_smi", ask)
    report_of(OnGpu, floats, monkeypatch)
    assert {*asked} == {"GPU-2"}


def test_a_baseline_of_another_card_of_that_model_will_do(
    floats: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its clocks at rest, which were compared too, are never the same twice."""
    then = bench(floats, on=images(NAMES, [0] * 4))
    was = {"name": "NVIDIA L4", "clocks.sm": "210 MHz"}
    here = {**then.environment, "gpu": {"name": "NVIDIA L4", "uuid": "GPU-1", "clocks.max.sm": "2040 MHz"}}
    monkeypatch.setattr(baseline, "environment", lambda ordinal: here)
    baseline.check_comparable(dataclasses.replace(then, environment={**here, "gpu": was}), [floats], [1])
    for other in ({"name": "NVIDIA A10"}, None):
        with pytest.raises(InputError, match=r"measured with gpu (NVIDIA A10|None), here it is NVIDIA L4"):
            baseline.check_comparable(dataclasses.replace(then, environment={**here, "gpu": other}), [floats], [1])
