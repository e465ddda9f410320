"""Engines in the commands, and what the simulated driver itself sees; run by tests/unit/runners/test_tensorrt.py."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import driver

import alexdeploy
from alexdeploy import doctor
from alexdeploy.cli import main
from alexdeploy.cuda.device import Device
from alexdeploy.cuda.open import open_device
from alexdeploy.errors import GateError, UnavailableError
from alexdeploy.machine import Gpu, current_gpu, free_memory_bytes, why_no_cuda
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


def test_the_host_cannot_read_device_memory(device: Device) -> None:
    reading, writing = os.pipe()
    libc = ctypes.CDLL(None, use_errno=True)
    with device.current():
        memory, host = device.allocate(64), device.pinned((16,), np.float32)
        for pointer, size in ((host.array.ctypes.data, 8), (memory.pointer, -1)):
            assert libc.write(writing, ctypes.c_void_p(pointer), 8) == size
        assert ctypes.get_errno() == errno.EFAULT
        memory.release()
        host.release()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("spoiler", ["cuCtxSynchronize", "cuMemAlloc", "cuMemFree", "cuStreamSynchronize"])
def test_what_a_capture_forbids_spoils_it(device: Device, spoiler: str) -> None:
    with device.current():
        memory, stream = device.allocate(64), device.stream()
        calls = {
            "cuCtxSynchronize": driver.cuCtxSynchronize,
            "cuMemAlloc": lambda: driver.cuMemAlloc(64),
            "cuMemFree": lambda: driver.cuMemFree(memory.pointer),
            "cuStreamSynchronize": lambda: driver.cuStreamSynchronize(stream.handle),
        }
        assert driver.cuStreamBeginCapture(stream.handle, 1)[0] == 0
        assert calls[spoiler]()[0] == driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        status, graph = driver.cuStreamEndCapture(stream.handle)
        assert (status, graph) == (driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None)
        memory.release()
        stream.release()


def test_the_two_devices_are_apart(device: Device) -> None:
    second = open_device(1)
    with second.current():
        memory, there = second.allocate(64), second.stream()
    with device.current():
        host, stream = device.pinned((16,), np.float32), device.stream()
        assert (device.ordinal_of(memory.pointer), device.ordinal_of(host.array.ctypes.data)) == (1, None)
    wrong: list[Callable[[], None]] = [lambda: stream.upload(memory.pointer, host.array), there.synchronize]
    for call in wrong:
        with pytest.raises(UnavailableError, match=r"(?i)invalid"), device.current():
            call()
    with device.current():
        host.release()
        stream.release()
    with second.current():
        memory.release()
        there.release()


def test_a_primary_context_is_not_given_up_with_memory_in_it(sim: ctypes.CDLL) -> None:
    before = sim.sim_violations()
    device, context = driver.CUdevice(1), driver.cuDevicePrimaryCtxRetain(1)[1]
    others = sim.sim_references(1) - 1
    driver.cuCtxPushCurrent(context)
    _, pointer = driver.cuMemAlloc(64)
    for _ in range(1 + others):
        driver.cuDevicePrimaryCtxRelease(device)
    assert sim.sim_violations() == before + 1
    assert driver.cuMemAlloc(64)[0] == driver.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED
    for _ in range(others):
        driver.cuDevicePrimaryCtxRetain(device)
    driver.cuDevicePrimaryCtxRetain(device)
    driver.cuMemFree(pointer)
    driver.cuCtxPopCurrent()
    driver.cuDevicePrimaryCtxRelease(device)
    sim.sim_forgive(2)


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
    depth, references = sim.sim_depth(), [sim.sim_references(ordinal) for ordinal in (0, 1)]
    assert [current_gpu(0), current_gpu(1)] == [
        Gpu("Simulated GPU", "8.6", "13.0"),
        Gpu("Simulated GPU B", "8.6", "13.0"),
    ]
    assert current_gpu(2) is None
    assert why_no_cuda(2) == "no CUDA device 2 (the driver has 2, counted from 0)"
    assert free_memory_bytes(1) == 8 << 30
    assert free_memory_bytes(2) is None
    assert sim.sim_depth() == depth
    assert [sim.sim_references(ordinal) for ordinal in (0, 1)] == references
