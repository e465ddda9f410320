"""Engines in the commands, and what the simulated driver itself sees; run by tests/unit/runners/test_tensorrt.py."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

import alexdeploy
from alexdeploy import doctor
from alexdeploy.cli import main
from alexdeploy.cuda.device import Device
from alexdeploy.cuda.open import open_device
from alexdeploy.errors import GateError, UnavailableError
from alexdeploy.machine import Gpu, current_gpu, free_memory_bytes
from tests.simulated_cuda import engine_double
from tests.simulated_cuda.conftest import BINDING, write_engine


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert not stop.value.code


def test_bench_runs_engines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_engine(folder / "model.engine")
    options = ["--data", "pictures", "--batch", "1,6", "--seconds", "0.01", "--json"]
    run("bench", "model.onnx", "model.engine", *options)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["runtime"], row["batch"], row["status"]) for row in rows if row["artifact"] == "model.engine"} == {
        ("tensorrt", 1, "ok"),
        ("tensorrt", 6, "ok"),
    }
    assert all(row["agreement"] == 1.0 for row in rows)


def test_predict_and_classifier_run_engines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_engine(folder / "model.engine")
    pictures = sorted((folder / "pictures").rglob("*.png"))
    answers = {}
    for name in ("model.onnx", "model.engine"):
        with alexdeploy.Classifier(folder / name) as classifier:
            answers[name] = classifier(pictures)
    assert [label for label, _ in answers["model.engine"]] == [label for label, _ in answers["model.onnx"]]
    run("predict", "model.engine", "pictures", "--json")
    assert answers["model.engine"][0][0] in capsys.readouterr().out


def test_an_engine_without_its_sidecar_runs_only_on_trust(folder: Path) -> None:
    path = write_engine(folder / "model.engine")
    path.with_name("model.engine.json").unlink()
    with pytest.raises(GateError, match="sidecar"):
        alexdeploy.load(path)
    with alexdeploy.load(path, trust=True) as runner:
        assert runner.classes == 4


def test_the_doctor_copies_to_the_device_and_back() -> None:
    said = doctor._cuda()
    assert said.startswith("Simulated GPU (compute capability 8.6), copies right through ")


@pytest.fixture
def device() -> Device:
    return open_device()


def test_the_binding_is_the_one_meant(device: Device) -> None:
    assert device.binding == BINDING.removesuffix(" alone")


def test_work_without_a_current_context_fails(device: Device) -> None:
    with pytest.raises(Exception, match=r"(?i)context"):
        device.allocate(64)


def test_fresh_memory_is_poisoned_and_copies_wait_for_a_synchronisation(device: Device) -> None:
    with device.current():
        memory, host, stream = device.allocate(64), device.pinned((16,), np.float32), device.stream()
        host.array[:] = 1
        stream.download(host.array, memory.pointer)
        assert (host.array == 1).all()
        stream.synchronize()
        assert np.isnan(host.array).all()
        for thing in (memory, host, stream):
            thing.release()


def test_a_copy_past_the_end_is_refused(device: Device) -> None:
    with device.current():
        memory, host, stream = device.allocate(60), device.pinned((16,), np.float32), device.stream()
    with pytest.raises(UnavailableError, match=r"(?i)invalid"), device.current():
        stream.upload(memory.pointer, host.array)
    with device.current():
        for thing in (memory, host, stream):
            thing.release()


def test_misuse_that_a_driver_cannot_report_is_counted(device: Device) -> None:
    library = engine_double.simulator_library()
    before = library.sim_violations()
    with device.current():
        memory, host, stream = device.allocate(64), device.pinned((16,), np.float32), device.stream()
        past_the_end = engine_double._Kernel(lambda end: ctypes.memset(end, 0, 1))
        library.sim_launch(stream.handle, past_the_end, memory.pointer + 64)
        stream.synchronize()
        memory.release()
        assert library.sim_violations() == before + 1, "written past the end"
        other = device.allocate(64)
        stream.upload(other.pointer, host.array)
        for thing in (other, host):
            thing.release()
        stream.synchronize()
        assert library.sim_violations() == before + 2, "freed while a copy was under way"
        stream.release()
    library.sim_forgive(2)


def test_the_driver_is_asked_without_any_binding(sim: ctypes.CDLL) -> None:
    depth = sim.sim_depth()
    assert current_gpu() == Gpu("Simulated GPU", "8.6", "13.0")
    assert free_memory_bytes() == 8 << 30
    assert sim.sim_depth() == depth
