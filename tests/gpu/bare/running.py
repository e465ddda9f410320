"""The runner on the device: right answers whatever happens around it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver

from alexdeploy import machine
from alexdeploy.cuda.open import open_device
from alexdeploy.cuda.with_cuda_python import check as check_status
from alexdeploy.errors import AlexdeployError, UsageError
from alexdeploy.runners.tensorrt import TensorRTRunner
from tests.gpu.bare import double
from tests.gpu.bare.scenario import MOST, Figures, NotRun, Place, ask, check, scenario, wanted
from tests.helpers.graphs import images
from tests.simulated_cuda.engine_double import simulator_library
from tests.simulated_cuda.inside_runner import Exported, OnDevice

_JOIN_S = 60.0
_BUSY = 100_000_000  # clock cycles; see double.spin


@scenario(both=True)
def every_batch_size(place: Place) -> None:
    """Batches below, at and above the profile's largest, again and again, are answered as ONNX Runtime does."""
    with TensorRTRunner(place.engine) as runner:
        for index, size in enumerate((1, MOST, MOST + 1, 3 * MOST, 2, 1, 3, MOST, 2, 3 * MOST, 1) * 3):
            ask(runner, size, seed=index)


@scenario(both=True)
def replay(place: Place) -> None:
    """From the second call on a batch size is a graph: nothing is enqueued, and new input gives new answers."""
    with TensorRTRunner(place.engine, contexts=1) as runner:
        for seed in range(3):
            ask(runner, 2, seed)
        before = double.enqueued
        for seed in range(20):
            ask(runner, 2, seed)
        assert double.enqueued == before, f"{double.enqueued - before} of 20 calls were enqueued and not replayed"


@scenario(both=True)
def eight_threads(place: Place) -> None:
    """Eight threads and two contexts: 8 x 50 calls, every answer right."""
    answers = {(count, seed): wanted(count, seed) for count in (1, 2, MOST, MOST + 1) for seed in range(8)}

    def work(seed: int) -> None:
        for call in range(50):
            count = (1, 2, MOST, MOST + 1)[call % 4]
            np.testing.assert_allclose(
                runner.infer(images(count, seed=seed)), answers[count, seed], rtol=1e-4, atol=1e-4
            )

    with TensorRTRunner(place.engine) as runner:
        _in_threads(work, 8)


@scenario(both=True)
def close_under_load(place: Place) -> None:
    """A runner that is closed while eight threads call it: each gets right answers, then the word that it is closed."""
    answered = [0] * 8

    def work(seed: int) -> None:
        with contextlib.suppress(UsageError):
            while True:
                ask(runner, 1 + seed % MOST, seed)
                answered[seed] += 1

    def close() -> None:
        deadline = time.monotonic() + _JOIN_S / 2
        while min(answered) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        runner.close()

    runner = TensorRTRunner(place.engine)
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    _in_threads(work, 8)
    closing.join(_JOIN_S)
    assert min(answered) > 0, f"calls by thread before it was closed: {answered}"
    with contextlib.suppress(UsageError):
        runner.infer(images(1))
        raise AssertionError("a closed runner answered")


@scenario(both=True)
def load_and_close(place: Place) -> Figures:
    """Twenty runners one after the other leave as much free memory as the first two."""

    def once() -> int:
        with TensorRTRunner(place.engine) as runner:
            for _ in range(3):
                ask(runner, 2)
        free = machine.free_memory_bytes()
        assert free is not None
        return free

    before = [once() for _ in range(2)][-1]
    after = [once() for _ in range(18)][-1]
    assert before - after <= 2 << 20, f"{before - after} bytes of device memory are gone"
    return {"bytes gone": before - after}


@scenario(both=True)
def order_with_a_busy_stream(place: Place) -> None:
    """Input that is still under way on another stream is waited for: by DLPack, by __cuda_array_interface__, by stream.

    Where the order is not told the answer is wrong, so a missing wait would be seen.
    """
    device = open_device()
    with TensorRTRunner(place.engine, contexts=1) as runner, device.current():
        ask(runner, 3)  # CUDA loads a kernel with its first launch, and may wait for the device then

        def late(*, tell: bool = True) -> OnDevice:
            """Images of seed 5 at once, those of seed 1 when a busy stream gets there."""
            array = OnDevice(device, images(3, seed=5), tell_stream=tell)
            array.stream.synchronize()
            double.spin(array.stream.handle, _BUSY)
            array._source.array[...] = images(3)
            array.stream.upload(array._memory.pointer, array._source.array)
            return array

        target, reader = OnDevice(device, np.zeros((3, 4), np.float32)), device.stream()
        target.stream.synchronize()
        ways: dict[str, Callable[[OnDevice], None]] = {
            "__cuda_array_interface__": lambda source: runner.infer_on_device(source, target),
            "DLPack": lambda source: runner.infer_on_device(Exported(source), Exported(target)),
        }
        for infer in ways.values():
            source = late()
            infer(source)
            check(target.read(reader), 3)
            _release(source)
        source = late()
        runner.infer_on_device(source, target, stream=source.stream.handle)
        check(target.read(source.stream), 3)  # ordered by the stream alone
        _release(source)
        source = late(tell=False)
        runner.infer_on_device(source, target)
        assert not np.allclose(target.read(reader), wanted(3), atol=1e-3), "without an order it was right by chance"
        _release(source)
        _release(target)
        reader.release()


@scenario(both=True)
def second_device(place: Place) -> None:
    """Two devices in one process: a runner on each, called in turn, and each by its own threads."""
    with double.primary_context():
        count = check_status(driver.cuDeviceGetCount())
    if count < 2:
        raise NotRun("this machine has one CUDA device")
    runners = [
        TensorRTRunner(place.engine, ordinal=index, trust=index > 0) for index in range(2)
    ]  # built for the first
    with runners[0], runners[1]:
        for seed in range(12):
            ask(runners[seed % 2], 1 + seed % 5, seed)

        def work(index: int) -> None:
            for seed in range(20):
                ask(runners[index % 2], 1 + seed % 3, seed)

        _in_threads(work, 8)


@scenario()
def default_stream_is_not_waited_for(place: Place) -> None:
    """A busy default stream does not hold up a call: our streams are non-blocking."""
    device = open_device()
    with TensorRTRunner(place.engine, contexts=1) as runner:
        for _ in range(3):
            ask(runner, 2)
        with device.current():
            double.spin(0, 4 * _BUSY)
            before = driver.cuStreamQuery(0)[0]
        ask(runner, 2)
        with device.current():
            after = driver.cuStreamQuery(0)[0]
            driver.cuCtxSynchronize()
    busy = driver.CUresult.CUDA_ERROR_NOT_READY
    assert (before, after) == (busy, busy), f"the default stream was {before.name} before the call, {after.name} after"


@scenario()
def synchronised_during_a_capture(place: Place) -> Figures:
    """Another thread waits for the whole device while a graph is captured: right answers, and a graph in the end."""
    return _disturbed(place, lambda: driver.cuCtxSynchronize()[0].name)


@scenario()
def allocated_during_a_capture(place: Place) -> Figures:
    """Another thread allocates device memory while a graph is captured: right answers, and a graph in the end."""

    def allocate() -> str:
        status, pointer = driver.cuMemAlloc(1 << 20)
        if status == driver.CUresult.CUDA_SUCCESS:
            driver.cuMemFree(pointer)
        return str(status.name)

    return _disturbed(place, allocate)


@scenario()
def worked_during_a_capture(place: Place) -> Figures:
    """Another thread launches on the default stream during a capture: right answers, and a graph in the end."""

    def work() -> str:
        try:
            double.spin(0, 1000)
        except AlexdeployError as error:
            return str(error)
        return "CUDA_SUCCESS"

    return _disturbed(place, work)


@scenario(both=True, alone=True)
def device_fault(place: Place) -> Figures:
    """After a kernel wrote where it may not, every call fails at once with a clear error; the process ends well."""
    runner = TensorRTRunner(place.engine, contexts=1)
    for _ in range(3):
        ask(runner, 2)
    with contextlib.suppress(AlexdeployError), open_device().current():
        _break_the_device(place)
    said = []
    for _ in range(4):
        started = time.perf_counter()
        try:
            runner.infer(images(2))
        except AlexdeployError as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            raise AssertionError("a call after the fault gave an answer")
        assert time.perf_counter() - started < 1.0, "a call after the fault took over a second"
    assert all(line.startswith("DeviceLostError") for line in said), said
    with contextlib.suppress(AlexdeployError):
        runner.close()
    return {"said": said[-1]}


_left_open: list[TensorRTRunner] = []


@scenario(both=True, alone=True, silent=True)
def exit_with_an_open_runner(place: Place) -> None:
    """A process that ends with a runner unclosed ends well and says nothing."""
    runner = TensorRTRunner(place.engine)
    for _ in range(3):
        ask(runner, 2)
    _left_open.append(runner)


def _break_the_device(place: Place) -> None:
    if place.simulated:
        simulator_library().sim_poison(0, 700)  # CUDA_ERROR_ILLEGAL_ADDRESS
    else:
        double.launch("write_behind", 0, 0, 0, 0, 0xDEAD0000, count=0, threads=1)
        driver.cuCtxSynchronize()


def _disturbed(place: Place, intrude: Callable[[], str]) -> Figures:
    """A new batch size while another thread does something inside the second enqueueing of it, the captured one."""
    said: list[str] = []
    enqueued = 0

    def other_thread() -> None:
        with double.primary_context():
            said.append(intrude())

    def callback() -> None:
        nonlocal enqueued
        enqueued += 1
        if enqueued == 2:
            thread = threading.Thread(target=other_thread)
            thread.start()
            thread.join(_JOIN_S)
            assert not thread.is_alive(), "the other thread hangs"

    refused: list[str] = []
    with TensorRTRunner(place.engine, contexts=1) as runner:
        double.during_enqueue.append(callback)
        try:
            for seed in range(8):
                try:
                    ask(runner, 3, seed)
                except AlexdeployError as error:
                    refused.append(str(error))
        finally:
            double.during_enqueue.remove(callback)
        assert len(said) == 1, "the other thread was not started during the capture"
        assert len(refused) <= 1, refused
        before = double.enqueued
        for seed in range(3):
            ask(runner, 3, seed)
        assert double.enqueued == before, f"no graph came of it; the other thread was told {said[0]}"
    return {"the other thread": said[0], "calls refused": refused}


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """``work(0)`` … in threads; the first failure is raised."""
    failures: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_JOIN_S)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def _release(array: Any) -> None:
    array.release()
