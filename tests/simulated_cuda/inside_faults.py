"""Captures, faults, two devices and the end of a process; run by tests/unit/runners/test_tensorrt.py."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

import alexdeploy
from alexdeploy.cli import main
from alexdeploy.cuda import with_cuda_python
from alexdeploy.cuda.open import open_device
from alexdeploy.errors import AlexdeployError, DeviceLostError, GateError, InputError, UnavailableError, UsageError
from alexdeploy.runners.tensorrt import TensorRTRunner
from alexdeploy.specs import BuilderName
from tests.helpers.graphs import images
from tests.simulated_cuda import engine_double
from tests.simulated_cuda.conftest import BINDING, PROFILE, expected, write_engine
from tests.simulated_cuda.inside_runner import Exported, OnDevice

MOST = PROFILE[2]
NOT_PERMITTED = 900  # CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
Execute = Callable[[engine_double.IExecutionContext, int], bool]


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Execute], Execute]], None]:
    """Puts something around every enqueue of TensorRT."""

    def around(wrap: Callable[[Execute], Execute]) -> None:
        wrapped = wrap(engine_double.IExecutionContext.execute_async_v3)
        monkeypatch.setattr(engine_double.IExecutionContext, "execute_async_v3", wrapped)

    return around


def in_threads(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def synchronize_the_device(sim: ctypes.CDLL) -> int:
    """``torch.cuda.synchronize()`` on a thread of its own; its status."""
    found: list[int] = []

    def work() -> None:
        with open_device().current():
            found.append(sim.cuCtxSynchronize())

    in_threads(work)
    return found[0]


# ---- captures ----


def test_a_capture_that_another_thread_spoils_is_tried_again(
    sim: ctypes.CDLL, tmp_path: Path, execute: Callable[[Callable[[Execute], Execute]], None]
) -> None:
    batch = images(3)
    statuses: list[int] = []

    def wrap(original: Execute) -> Execute:
        def spoiled(context: engine_double.IExecutionContext, stream: int) -> bool:
            enqueued = original(context, stream)
            if sim.sim_capturing() and len(statuses) < 2:
                statuses.append(synchronize_the_device(sim))
            return enqueued

        return spoiled

    execute(wrap)
    with TensorRTRunner(write_engine(tmp_path / "model.engine"), contexts=1) as runner:
        graphs = []
        for _ in range(5):
            np.testing.assert_array_equal(runner.infer(batch), expected(batch))
            with runner._pool.lend() as execution:
                graphs.append(execution._prepared[3, 3, 8, 8].graph is not None)
    assert statuses == [NOT_PERMITTED] * 2
    assert graphs == [False, False, False, True, True]


def test_answers_are_right_while_another_thread_synchronizes_the_device(sim: ctypes.CDLL, tmp_path: Path) -> None:
    stop = threading.Event()
    statuses: set[int] = set()
    wrong: list[tuple[int, int]] = []

    def synchronize() -> None:
        with open_device().current():
            while not stop.is_set():
                statuses.add(sim.cuCtxSynchronize())

    def infer(thread: int) -> None:
        for size in (1, 2, 3, 4, 5, 1, 2, 3, 4, 5) * 3:
            batch = images(size, seed=thread)
            if not np.array_equal(runner.infer(batch), expected(batch)):
                wrong.append((thread, size))

    other = threading.Thread(target=synchronize)
    other.start()
    with TensorRTRunner(write_engine(tmp_path / "model.engine")) as runner:
        in_threads(*(lambda thread=thread: infer(thread) for thread in range(3)))
    stop.set()
    other.join()
    assert wrong == []
    assert statuses <= {0, NOT_PERMITTED}


def test_after_warm_up_nothing_is_captured_or_allocated(
    sim: ctypes.CDLL, engine: Path, builder: BuilderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    with alexdeploy.load(engine, contexts=3, warm_up=(1, MOST + 2)) as runner:
        assert isinstance(runner, TensorRTRunner)
        monkeypatch.setattr(with_cuda_python, "capture", None)  # calling it would fail
        allocated = sim.sim_allocated()
        with contextlib.ExitStack() as lent:
            executions = [lent.enter_context(runner._pool.lend()) for _ in range(3)]
            for execution in executions:
                has_graph = {shape[0]: prepared.graph is not None for shape, prepared in execution._prepared.items()}
                assert has_graph == ({} if builder == "tensorrt-rtx" else {1: True, 2: True, MOST: True})
        for size in (1, MOST + 2):
            np.testing.assert_array_equal(runner.infer(images(size)), expected(images(size)))
        assert sim.sim_allocated() == allocated
    with pytest.raises(UsageError, match=r"`warm_up` \(0,\): expected batch sizes from 1 on"):
        alexdeploy.load(engine, warm_up=(0,))
    for warm_up in (8, "8", (1.5,), None):
        with pytest.raises(UsageError, match=r"`warm_up` .*: expected batch sizes from 1 on"):
            alexdeploy.load(engine, warm_up=warm_up)
    for contexts in (0, -1, 1.5, "2", None):
        with pytest.raises(UsageError, match=r"`contexts` .*: expected a whole number from 1 on"):
            alexdeploy.load(engine, contexts=contexts)


def test_without_graphs_nothing_is_captured(
    engine: Path, builder: BuilderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[engine_double.IRuntimeConfig] = []

    def create_runtime_config(_: engine_double.ICudaEngine) -> engine_double.IRuntimeConfig:
        configs.append(engine_double.IRuntimeConfig())
        return configs[-1]

    monkeypatch.setattr(engine_double.ICudaEngine, "create_runtime_config", create_runtime_config)
    monkeypatch.setattr(with_cuda_python, "capture", None)
    with alexdeploy.load(engine, graphs=False) as runner:
        for size in (1, MOST, 1, MOST, 1, MOST):
            np.testing.assert_array_equal(runner.infer(images(size)), expected(images(size)))
    assert {config.cuda_graph_strategy for config in configs} == (
        {engine_double.CudaGraphStrategy.DISABLED} if builder == "tensorrt-rtx" else set()
    )


def test_an_enqueue_that_raises_in_a_capture_leaves_no_graph(sim: ctypes.CDLL) -> None:
    device = open_device()

    def enqueue() -> bool:
        raise KeyboardInterrupt

    with device.current():
        stream = device.stream()
        live = sim.sim_live()
        with pytest.raises(KeyboardInterrupt):
            stream.capture(enqueue)
        assert sim.sim_live() == live
        stream.synchronize()  # it captures no more
        stream.release()


# ---- faults of the device ----


@pytest.fixture
def poison(sim: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """The next kernel on device 0 ends in a fault with that code."""
    compute = engine_double._compute

    def arm(code: int) -> None:
        def faulty(number: int) -> None:
            compute(number)
            if engine_double._registered[number][0]._device == 0:
                sim.sim_poison(0, code)

        monkeypatch.setattr(engine_double, "_kernel", engine_double._Kernel(faulty))

    yield arm
    sim.sim_heal(0)
    sim.sim_switch_anyway(0)


@pytest.mark.parametrize(
    ("code", "words", "anyway"),
    [
        (700, "illegal memory access", 0),
        (719, "launch failure", 0),
        pytest.param(214, "ECC", 1, marks=pytest.mark.skipif(BINDING == "pycuda", reason="PyCUDA cannot release then")),
    ],
)
def test_after_a_fault_every_call_says_at_once_that_the_device_is_lost(
    sim: ctypes.CDLL, tmp_path: Path, poison: Callable[[int], None], code: int, words: str, anyway: int
) -> None:
    path = write_engine(tmp_path / "model.engine")
    with (
        TensorRTRunner(write_engine(tmp_path / "1.engine", ordinal=1), ordinal=1) as other,
        TensorRTRunner(path) as runner,
    ):
        assert runner.infer(images(2)).shape == (2, 4)
        poison(code)
        sim.sim_switch_anyway(anyway)
        with pytest.raises(DeviceLostError, match=f"{words}.*end it and start it again"):
            runner.infer(images(2))
        calls = sim.sim_calls()
        for _ in range(3):
            with pytest.raises(DeviceLostError, match=words):
                runner.infer(images(1))
        assert sim.sim_calls() == calls, "the driver is not asked any more"
        with pytest.raises(DeviceLostError, match=words):
            TensorRTRunner(path)
        np.testing.assert_array_equal(other.infer(images(3)), expected(images(3)))
    with pytest.raises(UsageError, match="closed"):
        runner.infer(images(1))


@pytest.mark.usefixtures("poison")
def test_a_fault_that_tensorrt_meets_first_is_told_as_such(sim: ctypes.CDLL, tmp_path: Path) -> None:
    with TensorRTRunner(write_engine(tmp_path / "model.engine"), contexts=1) as runner:
        with runner._pool.lend() as execution:
            kind = type(execution)
        for method in (kind.load, kind.launch):  # before the copy, and between it and the engine

            def poisoned(self: Any, argument: Any, method: Any = method) -> Any:
                sim.sim_poison(0, 700)
                return method(self, argument)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kind, method.__name__, poisoned)
                with pytest.raises(DeviceLostError, match="illegal memory access"):
                    runner.infer(images(2))
            sim.sim_heal(0)
            runner._pool._lost = ""


@pytest.mark.usefixtures("poison")
def test_threads_that_wait_for_a_lost_device_are_told(tmp_path: Path, sim: ctypes.CDLL) -> None:
    told: list[str] = []

    def work() -> None:
        try:
            while True:
                runner.infer(images(2))
        except AlexdeployError as error:
            told.append(type(error).__name__)

    with TensorRTRunner(write_engine(tmp_path / "model.engine"), contexts=1) as runner:
        timer = threading.Timer(0.1, sim.sim_poison, (0, 719))
        timer.start()
        in_threads(*[work] * 8)
        timer.join()
    assert told == ["DeviceLostError"] * 8
    assert sim.sim_live() == 0


def test_the_command_line_ends_with_a_code_of_its_own(
    folder: Path, poison: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_engine(folder / "model.engine")
    poison(700)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "model.engine", "pictures"])
    assert stop.value.code == 6
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "start it again" in line


# ---- two devices ----


def test_two_devices_in_one_process(sim: ctypes.CDLL, tmp_path: Path, builder: BuilderName) -> None:
    paths = [write_engine(tmp_path / f"{ordinal}.engine", builder, ordinal=ordinal) for ordinal in (0, 1)]
    wrong: list[str] = []
    with contextlib.ExitStack() as opened:
        runners = [opened.enter_context(alexdeploy.load(path, device=f"cuda:{n}")) for n, path in enumerate(paths)]

        def work(thread: int) -> None:
            runner = runners[thread % 2]
            for call in range(30):
                batch = images(1 + call % (MOST + 1), seed=thread)
                if not np.array_equal(runner.infer(batch), expected(batch)):
                    wrong.append(f"thread {thread}, call {call}")
            if sim.sim_depth():
                wrong.append(f"thread {thread} was left with a context")

        in_threads(*(lambda thread=thread: work(thread) for thread in range(4)))
        runners[1].device_call(images(2))()
        for ordinal, runner in enumerate(runners):
            assert isinstance(runner, TensorRTRunner)
            with runner._pool.lend() as execution:
                assert sim.sim_device_of(execution._scratch.pointer, 1) == ordinal
    assert wrong == []


def test_arrays_must_lie_on_the_device_of_the_runner(tmp_path: Path) -> None:
    batch, devices = images(3), [open_device(0), open_device(1)]
    runners = [TensorRTRunner(write_engine(tmp_path / f"{n}.engine", ordinal=n), ordinal=n, contexts=1) for n in (0, 1)]
    arrays: list[list[OnDevice]] = []
    for device in devices:
        with device.current():
            arrays.append([OnDevice(device, batch), OnDevice(device, np.zeros((3, 4), np.float32))])
    for n, runner in enumerate(runners):
        source, target = arrays[n]
        runner.infer_on_device(source, target)
        with devices[n].current():
            np.testing.assert_array_equal(target.read(target.stream), expected(batch))
        exported = Exported(arrays[1 - n][0])
        exported._tensor.device_id = 1 - n
        for elsewhere in (arrays[1 - n][0], exported):
            with pytest.raises(UsageError, match=f"batch is on CUDA device {1 - n}; the engine runs on device {n}"):
                runner.infer_on_device(elsewhere, target)
        told = source.__cuda_array_interface__
        source.__cuda_array_interface__ = {**told, "data": (4096, False)}
        with pytest.raises(UsageError, match="batch is in no memory that CUDA knows"):
            runner.infer_on_device(source, target)
        source.__cuda_array_interface__ = told
    for device, made in zip(devices, arrays, strict=True):
        with device.current():
            for array in made:
                array.release()
    for runner in runners:
        runner.close()


def test_a_device_that_is_not_meant_or_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_engine(folder / "model.engine")
    with pytest.raises(GateError, match=r"built for Simulated GPU \(.*here is Simulated GPU B"):
        alexdeploy.load("model.engine", device="cuda:1")
    with alexdeploy.load("model.engine", device="cuda:1", trust=True) as runner:
        np.testing.assert_array_equal(runner.infer(images(2)), expected(images(2)))
    with pytest.raises(UnavailableError, match=r"no CUDA device 2 \(the driver has 2, counted from 0\)"):
        alexdeploy.load("model.engine", device="cuda:2", trust=True)
    for device in ("cuda:x", "1", "cpu", "cuda:-1", "cuda:"):
        with pytest.raises(UsageError, match=f"`device` {device}: expected cuda or cuda:N"):
            alexdeploy.load("model.engine", device=device)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "model.engine", "pictures", "--device", "cuda:1"])
    assert stop.value.code == GateError.exit_code
    write_engine(folder / "model.engine", ordinal=1)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "model.engine", "pictures", "--device", "cuda:1", "--json"])
    assert not stop.value.code, capsys.readouterr().err


# ---- the application's context ----


@pytest.mark.parametrize("anyway", [0, 1], ids=["undone", "done all the same"])
@pytest.mark.parametrize("own", [0, 1], ids=["the runner's", "another"])
def test_whatever_fails_the_applications_context_stays(sim: ctypes.CDLL, tmp_path: Path, own: int, anyway: int) -> None:
    path = write_engine(tmp_path / "model.engine")
    with TensorRTRunner(path, contexts=1) as opening:
        opening.infer(images(1))  # opens the device
    application = driver.cuDevicePrimaryCtxRetain(own)[1]
    driver.cuCtxPushCurrent(application)
    sim.sim_switch_anyway(anyway)
    failed: set[str] = set()
    for call in range(1, 100):
        sim.sim_fail_at(call)
        with contextlib.suppress(UnavailableError), TensorRTRunner(path, contexts=1) as runner:
            for _ in range(2):
                runner.infer(images(1))
        name = sim.sim_failed().decode()
        sim.sim_fail_at(-1)
        assert int(driver.cuCtxGetCurrent()[1]) == int(application), f"after {name} failed"
        assert sim.sim_live() == 0, f"after {name} failed"
        if BINDING == "pycuda" and not own:  # which cannot tell its own push from the application's
            while sim.sim_depth() > 1:
                driver.cuCtxPopCurrent()
        assert sim.sim_depth() == 1, f"after {name} failed"
        if not name:
            break
        failed.add(name)
    sim.sim_switch_anyway(0)
    driver.cuCtxPopCurrent()
    driver.cuDevicePrimaryCtxRelease(driver.CUdevice(own))
    if own == 1 or BINDING == "pycuda":
        assert {"cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"} <= failed
    assert "cuStreamSynchronize" in failed


# ---- what TensorRT says and wants ----


def test_what_infer_shapes_raises_is_told(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TensorRTRunner(engine) as runner:

        def raising(_: engine_double.IExecutionContext) -> list[str]:
            raise RuntimeError("shape inference failed")

        with monkeypatch.context() as patch:
            patch.setattr(engine_double.IExecutionContext, "infer_shapes", raising)
            with pytest.raises(UnavailableError, match=r"was refused \(RuntimeError: shape inference failed\)"):
                runner.infer(images(2))
        np.testing.assert_array_equal(runner.infer(images(2)), expected(images(2)))


@pytest.mark.parametrize("what", ["location", "format"])
def test_an_engine_with_a_layout_of_its_own_is_refused(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"location": engine_double.TensorLocation.HOST, "format": engine_double.TensorFormat.CHW16}[what]
    monkeypatch.setattr(engine_double.ICudaEngine, f"get_tensor_{what}", lambda *_: other)
    with pytest.raises(InputError, match=f"'input' lies on the .*{other.name}.*expected DEVICE and LINEAR"):
        TensorRTRunner(write_engine(tmp_path / "model.engine"))


# ---- the end ----


def test_closing_under_load(sim: ctypes.CDLL, tmp_path: Path) -> None:
    ends: list[str] = []

    def work() -> None:
        try:
            while True:
                batch = images(3)
                if not np.array_equal(runner.infer(batch), answer):
                    ends.append("wrong answer")
        except UsageError as error:
            ends.append(str(error))

    answer = expected(images(3))
    runner = TensorRTRunner(write_engine(tmp_path / "model.engine"))
    timer = threading.Timer(0.15, runner.close)
    timer.start()
    in_threads(*[work] * 8)
    timer.join()
    assert set(ends) == {"the runner is closed; load the file again"}
    assert (len(ends), sim.sim_live()) == (8, 0)


def test_a_runner_that_nobody_closes_is_released_with_it(sim: ctypes.CDLL, engine: Path) -> None:
    runner = TensorRTRunner(engine)
    call = runner.device_call(images(2))
    runner.infer(images(2))
    assert sim.sim_live() > 0
    del runner
    call()  # which still needs it
    del call
    gc.collect()
    assert sim.sim_live() == 0


AT_THE_END = """
import os, sys, threading, time
from pathlib import Path
from tests.helpers.graphs import images
from tests.simulated_cuda import conftest, engine_double
from alexdeploy.runners.tensorrt import TensorRTRunner

for name, version in conftest.VERSIONS.items():
    engine_double.install(name.replace("-", "_"), version)
runners = [
    TensorRTRunner(conftest.write_engine(Path(sys.argv[1], f"{n}.engine"), ordinal=n), ordinal=n) for n in (0, 1)
]

def work():
    try:
        while True:
            runners[1].infer(images(3))
    except Exception as error:
        os.write(1, f"{error}\\n".encode())  # in one piece, and without a lock at the end

for runner in runners:
    runner.infer(images(2))
for daemon in (True, True):
    threading.Thread(target=work, daemon=daemon).start()
time.sleep(0.1)
assert engine_double.problems() == []
"""


def test_a_process_that_closes_nothing_ends_without_leaks_and_complaints(tmp_path: Path) -> None:
    environment = {**os.environ, "SIM_REPORT": "1", "SIMULATED_BINDING": BINDING}
    ended = subprocess.run(
        [sys.executable, "-c", AT_THE_END, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "simulated CUDA: at the end 0 live, references 0 and 0, 0 violations\n"
    assert set(ended.stdout.splitlines()) <= {"the runner is closed; load the file again"}
