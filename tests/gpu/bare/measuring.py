"""Figures of the real device. On the simulated driver the same code runs and its figures are left out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cuda.bindings import driver

from alexdeploy import machine
from alexdeploy.cuda.open import open_device
from alexdeploy.cuda.with_cuda_python import check
from alexdeploy.runners.tensorrt import TensorRTRunner
from tests.gpu.bare import double
from tests.gpu.bare.scenario import MOST, Figures, Place, ask, scenario
from tests.helpers.graphs import images
from tests.simulated_cuda.inside_runner import OnDevice

_SPIN = 100_000_000  # clock cycles


@scenario()
def event_against_wall_clock(place: Place) -> Figures:
    """A kernel of 50 ms and more takes as long by CUDA events as by the clock on the wall."""
    device = open_device()
    with device.current(), contextlib.ExitStack() as held:
        stream = device.stream()
        held.callback(stream.release)
        start, end = (check(driver.cuEventCreate(0)) for _ in range(2))
        for event in (start, end):
            held.callback(driver.cuEventDestroy, event)
        double.spin(stream.handle, 1000)
        stream.synchronize()
        began = time.perf_counter()
        check(driver.cuEventRecord(start, stream.handle))
        double.spin(stream.handle, _SPIN)
        check(driver.cuEventRecord(end, stream.handle))
        stream.synchronize()
        wall_ms = 1000 * (time.perf_counter() - began)
        event_ms = check(driver.cuEventElapsedTime(start, end))
    least = 0.0 if place.simulated else 0.8 * wall_ms  # a busy host looks at its watch too late
    assert least < event_ms <= wall_ms + 0.1, f"{event_ms:.3f} ms by events, {wall_ms:.3f} ms on the wall"
    return {"event ms": round(event_ms, 3), "wall clock ms": round(wall_ms, 3)}


@scenario(both=True)
def cost_of_a_call(place: Place) -> Figures:
    """Microseconds of pushing a context, of a call as a graph and enqueued, host to host and on the device."""
    device = open_device()

    def push_and_pop() -> None:
        with device.current():
            pass

    figures: Figures = {"push and pop us": _microseconds(push_and_pop)}
    began = time.perf_counter()
    with TensorRTRunner(place.engine, contexts=1) as runner:
        figures["load ms"] = round(1000 * (time.perf_counter() - began), 2)
        for call in ("first", "second"):  # the first loads kernels, the second captures
            began = time.perf_counter()
            ask(runner, 1)
            figures[f"{call} call ms"] = round(1000 * (time.perf_counter() - began), 2)
        batch = images(1)
        figures["infer, replayed us"] = _microseconds(lambda: runner.infer(batch))
        figures["on the device, replayed us"] = _microseconds(runner.device_call(batch))
        with device.current(), _arrays(device) as (source, target):
            stream = source.stream
            figures["infer_on_device with a stream, until it returns us"] = _microseconds(
                lambda: runner.infer_on_device(source, target, stream.handle), after=stream.synchronize
            )
    with TensorRTRunner(place.engine, contexts=1, graphs=False) as runner:
        figures["infer, enqueued us"] = _microseconds(lambda: runner.infer(batch))
        figures["on the device, enqueued us"] = _microseconds(runner.device_call(batch))
    return figures


@scenario(both=True)
def pinned_copies(place: Place) -> Figures:
    """Copies between pinned and device memory give back what was put in; GB/s of 64 MiB each way."""
    device, nbytes = open_device(), (64 << 20) // (64 if place.simulated else 1)
    figures: Figures = {}
    with device.current():
        memory, host, stream = device.allocate(nbytes), device.pinned((nbytes,), np.uint8), device.stream()
        host.array[...] = pattern = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
        ways: dict[str, Callable[[], None]] = {
            "H2D": lambda: stream.upload(memory.pointer, host.array),
            "D2H": lambda: stream.download(host.array, memory.pointer),
        }
        for way, copy in ways.items():
            best_s = np.inf
            for _ in range(10):
                began = time.perf_counter()
                copy()
                stream.synchronize()
                best_s = min(best_s, time.perf_counter() - began)
            figures[f"{way} GB/s"] = round(nbytes / best_s / 1e9, 2)
            if way == "H2D":
                host.array[...] = 0
        assert np.array_equal(host.array, pattern), "what was copied came back changed"
        for thing in (memory, host, stream):
            thing.release()
    return figures


@scenario()
def free_memory_question(place: Place) -> Figures:  # noqa: ARG001
    """Milliseconds of asking for the free memory while the primary context is held by somebody."""
    device = open_device()
    with device.current():
        pass
    return {"ms": round(_microseconds(machine.free_memory_bytes, calls=20) / 1000, 3)}


@scenario()
def parts_of_a_call(place: Place) -> Figures:
    """Copy in, compute and copy out by CUDA events, as bench has them, together within the time on the wall."""
    with TensorRTRunner(place.engine, contexts=1) as runner:
        batch = images(MOST)
        times = runner.gpu_times(batch, 0.2)
        assert times is not None
        wall_us = _microseconds(lambda: runner.infer(batch))
    parts = {name: np.median(getattr(times.split, f"{name}_ms")) for name in ("h2d", "compute", "d2h")}
    assert times.split.graph, "no graph was replayed"
    assert place.simulated or 0 < 1000 * sum(parts.values()) <= 2 * wall_us, f"{parts} ms, {wall_us} us on the wall"
    figures = {f"{name} us": round(1000 * float(value), 2) for name, value in parts.items()}
    return {**figures, "host to host us": wall_us, "batches per s by how many in flight": str(times.batches_per_s)}


@scenario()
def captured_before_the_first_call(place: Place) -> None:
    """`warm_up` runs and captures before the service opens: the first calls enqueue nothing."""
    with TensorRTRunner(place.engine, contexts=1, warm_up=(1, MOST)) as runner:
        before = double.enqueued
        for count in (1, MOST, 1):
            ask(runner, count)
        assert double.enqueued == before, f"{double.enqueued - before} of the first 3 calls were enqueued"


@scenario()
def without_any_graph(place: Place) -> None:
    """`graphs=False` enqueues each call, and its answers are right."""
    with TensorRTRunner(place.engine, contexts=1, graphs=False) as runner:
        before = double.enqueued
        for seed in range(5):
            ask(runner, 2, seed)
        assert double.enqueued == before + 5, f"{double.enqueued - before} of 5 calls were enqueued"


@contextlib.contextmanager
def _arrays(device: Any) -> Iterator[tuple[OnDevice, OnDevice]]:
    source, target = OnDevice(device, images(1)), OnDevice(device, np.zeros((1, 4), np.float32))
    try:
        yield source, target
    finally:
        source.release()
        target.release()


def _microseconds(call: Callable[[], object], calls: int = 200, after: Callable[[], object] = lambda: None) -> float:
    """Median of so many calls; ``after`` is called behind each and not counted."""
    for _ in range(10):
        call()
        after()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
        after()
    return round(1e6 * float(np.median(times)), 1)
