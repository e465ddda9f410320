"""Times by CUDA events on the simulated driver, whose clock is known: 1 ms per MB copied, 0.5 ms per inference."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexdeploy.bench.environment import environment
from alexdeploy.bench.gpu_state import GpuWatch
from alexdeploy.engine import timing
from alexdeploy.engine.execution import Execution
from alexdeploy.errors import UnavailableError
from alexdeploy.machine import GpuIds, gpu_ids
from alexdeploy.runners import tensorrt
from alexdeploy.runners.tensorrt import TensorRTRunner
from tests.helpers.graphs import images
from tests.simulated_cuda.conftest import expected, write_engine
from tests.simulated_cuda.inside_commands import run

CARD = "GPU-73696d75-6c61-7465-6420-636172642030"  # the bytes of "simulated card 0"
SLICE = "MIG-736c6963-6520-6f66-2061-206361726430"  # of "slice of a card0"


@pytest.mark.parametrize("size", [1, 3])
def test_copies_and_the_engine_are_timed_apart(engine: Path, builder: str, size: int) -> None:
    with TensorRTRunner(engine) as runner:
        before = runner.infer(images(size))
        times = runner.gpu_times(images(size), 0.01)
        assert times is not None
        np.testing.assert_array_equal(runner.infer(images(size)), before)
    split = times.split
    assert len(split.h2d_ms) >= timing.MIN_CALLS
    np.testing.assert_allclose(split.h2d_ms, size * 3 * 8 * 8 * 4 / 1e6, rtol=1e-3)
    np.testing.assert_allclose(split.compute_ms, 0.5, rtol=1e-3)
    np.testing.assert_allclose(split.d2h_ms, size * 4 * 4 / 1e6, rtol=1e-3)
    assert (split.enqueue_ms > 0).all()
    assert split.graph == (builder == "tensorrt")
    assert times.batches_per_s.keys() == {1, 2, 4}
    assert all(rate > 0 for rate in times.batches_per_s.values())


def test_a_batch_below_the_profile_is_timed_as_it_runs_and_one_above_it_not(tmp_path: Path) -> None:
    with TensorRTRunner(write_engine(tmp_path / "fixed.engine", profile=(4, 4, 4))) as runner:
        times = runner.gpu_times(images(2), 0.001)
        assert times is not None
        np.testing.assert_allclose(times.split.h2d_ms, 4 * 3 * 8 * 8 * 4 / 1e6, rtol=1e-3)
        assert "--shapes=input:4x3x8x8" in times.command.split()
        assert runner.gpu_times(images(5), 0.001) is None


def test_as_many_are_in_flight_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each execution is waited for only when the others have work."""
    pending: set[int] = set()
    most: list[int] = []
    launch, synchronize = Execution.launch, Execution.synchronize

    def launched(self: Execution, shape: tuple[int, ...]) -> None:
        assert id(self) not in pending, "its buffers are still in use"
        launch(self, shape)
        pending.add(id(self))
        most.append(len(pending))

    def synchronized(self: Execution) -> None:
        synchronize(self)
        pending.discard(id(self))

    monkeypatch.setattr(Execution, "launch", launched)
    monkeypatch.setattr(Execution, "synchronize", synchronized)
    rates: dict[int, list[int]] = {}
    original = timing.batches_per_s

    def watched(executions: Any, shape: tuple[int, ...], seconds: float) -> float:
        most.clear()
        rate = original(executions, shape, seconds)
        rates[len(executions)] = [max(most), most.count(len(executions))]
        return rate

    monkeypatch.setattr(timing, "batches_per_s", watched)
    with TensorRTRunner(write_engine(tmp_path / "model.engine")) as runner:
        runner.gpu_times(images(2), 0.001)
    assert {count: deepest for count, (deepest, _) in rates.items()} == {1: 1, 2: 2, 4: 4}
    assert all(often >= timing.MIN_CALLS - count for count, (_, often) in rates.items())
    assert not pending


def test_where_there_is_no_room_for_more_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TensorRTRunner(write_engine(tmp_path / "model.engine")) as runner:
        left = [2]

        def opened(*arguments: Any, **options: Any) -> Execution:
            if not left[0]:
                raise UnavailableError("CUDA: out of memory")
            left[0] -= 1
            return Execution(*arguments, **options)

        monkeypatch.setattr(tensorrt, "Execution", opened)
        times = runner.gpu_times(images(2), 0.001)
        assert times is not None
        assert times.batches_per_s.keys() == {1, 2}


def test_a_failure_of_any_driver_call_leaks_nothing(
    sim: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, batch = write_engine(tmp_path / "model.engine"), images(2)
    monkeypatch.setattr(timing, "MIN_CALLS", 1)
    monkeypatch.setattr(timing, "IN_FLIGHT", (1, 2))
    failed: set[str] = set()
    with TensorRTRunner(path) as runner:
        live = sim.sim_live()
        for call in count(1):
            sim.sim_fail_at(call)
            with contextlib.suppress(UnavailableError):
                runner.gpu_times(batch, 1e-6)
            if not sim.sim_failed():
                break
            failed.add(sim.sim_failed().decode())
            sim.sim_fail_at(-1)
            assert sim.sim_live() == live, f"leak after {failed}"
        np.testing.assert_array_equal(runner.infer(batch), expected(batch))
    assert {"cuEventCreate", "cuEventRecord", "cuEventElapsedTime_v2", "cuEventDestroy_v2"} <= failed


NVIDIA_SMI = """#!/bin/sh
echo "$@" >> "$FAKE_SMI/asked"
case "$*" in
*loop-ms*) while true; do echo "$(date '+%Y/%m/%d %H:%M:%S.%3N'), $(cat "$FAKE_SMI/now")"; sleep 0.05; done ;;
*clocks_event_reasons*) exit ${NEW_NAME:-0} ;;
*clocks_throttle_reasons*) echo 0x0 ;;
*) echo '580.65.06, 2040 MHz, 72.00 W, Enabled' ;;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that writes down what it is asked and tells what stands in the file ``now``."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    (program.parent / "now").write_text("1005, 6251, 71.90, 83, 0x0000000000000044")
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SMI", str(program.parent))
    return program.parent


@pytest.mark.parametrize("mig", [False, True])
def test_the_environment_is_that_of_the_card_that_cuda_uses(
    nvidia_smi: Path, mig: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mig:
        monkeypatch.setenv("SIMULATED_MIG", "1")
    monkeypatch.setenv("NEW_NAME", "2")  # an older driver, which knows no clocks_event_reasons
    assert gpu_ids() == GpuIds(SLICE if mig else CARD, CARD)
    gpu = environment()["gpu"]
    assert (gpu["name"], gpu["uuid"]) == ("Simulated GPU", SLICE if mig else CARD)
    assert (gpu.get("card"), gpu["driver_version"]) == (CARD if mig else None, "580.65.06")
    with GpuWatch(CARD) as watch, watch.during("host", 1):
        time.sleep(0.3)
    assert [(state.samples > 0, state.slowed_by) for state in watch.states] == [
        (True, ("sw_power_cap", "hw_thermal_slowdown"))
    ]
    asked = (nvidia_smi / "asked").read_text().splitlines()
    assert all(f"--id={CARD} " in line for line in asked)
    assert "clocks_throttle_reasons.active" in asked[-1]


def test_a_bench_on_the_gpu(
    folder: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "_ENQUEUE_BOUND", 0.0)
    write_engine(folder / "model.engine")
    run("bench", "model.engine", "--data", "pictures", "--batch", "1,3", "--seconds", "0.5", "--json")
    saved = capsys.readouterr().out
    report = json.loads(saved)
    assert all(f"--id={CARD} " in line for line in (nvidia_smi / "asked").read_text().splitlines())
    states = {(state["boundary"], state["batch"]): state for state in report["gpu_states"]}
    assert states.keys() == {(name, batch) for name in ("host", "device", "end_to_end", "gpu") for batch in (1, 3)}
    sampled = [state for state in states.values() if state["samples"]]
    assert sampled
    for state in sampled:
        assert (state["sm_mhz"], state["power_w"], state["temperature_c"]) == ([1005, 1005], 71.9, 83)
    for row, batch in zip(report["rows"], (1, 3), strict=True):
        assert (row["tf32"], row["gpu"]["compute_ms"]["p50"], row["gpu"]["graph"]) == ("not known", 0.5, True)
        assert [flight["batches"] for flight in row["gpu"]["in_flight"]] == [1, 2, 4]
        assert f"trtexec --loadEngine=model.engine --shapes=input:{batch}x3x8x8" in row["gpu"]["command"]
    Path("saved.json").write_text(saved)
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        run("report", "saved.json")
        shown = capsys.readouterr()
        assert max(map(len, (shown.out + shown.err).splitlines())) <= width
        assert " ".join(shown.err.replace("\\", "").split()).endswith(report["rows"][1]["gpu"]["command"])
        told = " ".join(shown.err.split())
        assert "WARNING: bound by the host: model.engine on tensorrt, batch 1 (" in told
        assert "WARNING: the GPU was slowed down during" in told
        assert "TF32: not known of model.engine on tensorrt" in told
        assert "compute" in shown.out
        assert "×4" in shown.out
