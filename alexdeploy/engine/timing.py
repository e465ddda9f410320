"""How long an engine takes on the device, by CUDA events, and how many batches pass with several of them in flight.

The words are trtexec's: H2D, compute and D2H are intervals between events on the stream; enqueue is the host's time to
submit the engine; throughput is batches over the time from the first submission to the last result.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch
from alexdeploy.cuda.device import Device
from alexdeploy.engine.execution import Execution
from alexdeploy.errors import UnavailableError

IN_FLIGHT = (1, 2, 4)
MIN_CALLS = 20
_WARMUP_CALLS = 3  # the first initialises, the second may capture a graph
_ENQUEUE_BOUND = 0.8  # trtexec warns from there on


@dataclass(frozen=True)
class SplitTimes:
    """One batch at a time; milliseconds of each call, (calls,). ``graph``: a CUDA graph of ours was replayed."""

    h2d_ms: npt.NDArray[np.float64]
    compute_ms: npt.NDArray[np.float64]
    d2h_ms: npt.NDArray[np.float64]
    enqueue_ms: npt.NDArray[np.float64]
    graph: bool


@dataclass(frozen=True)
class GpuTimes:
    """One engine at one batch size.

    Attributes:
        split: one batch at a time.
        batches_per_s: by how many are in flight; only 1 where the device has no room for more.
        command: that measures the same with NVIDIA's own program, one batch at a time.
    """

    split: SplitTimes
    batches_per_s: dict[int, float]
    command: str


def is_enqueue_bound(enqueue_ms: float, compute_ms: float) -> bool:
    """True if the device may wait for the host: the compute time then includes gaps (trtexec's rule)."""
    return enqueue_ms > _ENQUEUE_BOUND * compute_ms


def gpu_times(
    device: Device, open_execution: Callable[[], Execution], batch: Batch, seconds: float
) -> tuple[SplitTimes, dict[int, float]]:
    """Half of ``seconds`` for the split, half for the batches per second with 1, 2 and 4 in flight.

    Args:
        device: its context is current.
        open_execution: called for each of them; all are released at the end.
        batch: at most the engine's largest.
        seconds: warm-up not included.

    Raises:
        UnavailableError, DeviceLostError: CUDA or TensorRT failed, or there is no room for a single execution.
    """
    rates: dict[int, float] = {}
    with contextlib.ExitStack() as stack:
        executions: list[Execution] = []
        shape = _open_one_more(executions, open_execution, batch, stack)
        split = split_times(device, executions[0], shape, seconds / 2)
        for count in IN_FLIGHT:
            try:
                while len(executions) < count:
                    _open_one_more(executions, open_execution, batch, stack)
            except UnavailableError:  # no room for so many
                break
            rates[count] = batches_per_s(executions, shape, seconds / 2 / len(IN_FLIGHT))
    return split, rates


def _open_one_more(
    executions: list[Execution], open_execution: Callable[[], Execution], batch: Batch, stack: contextlib.ExitStack
) -> tuple[int, ...]:
    execution = open_execution()
    stack.callback(execution.release)
    shape = execution.load(batch)
    execution.synchronize()
    executions.append(execution)
    return shape


def split_times(device: Device, execution: Execution, shape: tuple[int, ...], seconds: float) -> SplitTimes:
    """Copy in, compute, copy out, each between two events, for ``seconds`` and at least ``MIN_CALLS`` calls.

    Args:
        device: its context is current.
        execution: loaded with a batch of ``shape``; nobody else uses it.
        shape: of the engine's input.
        seconds: warm-up not included.

    Raises:
        UnavailableError, DeviceLostError: CUDA or TensorRT failed.
    """
    rows: list[tuple[float, ...]] = []
    with contextlib.ExitStack() as stack:
        events = []
        for _ in range(4):
            events.append(device.event())
            stack.callback(events[-1].release)
        start, copied, computed, done = events
        for _ in range(_WARMUP_CALLS):
            _enqueue(execution, shape)
            execution.synchronize()
        until = time.perf_counter() + seconds
        stream = execution.stream.handle
        while len(rows) < MIN_CALLS or time.perf_counter() < until:
            start.record(stream)
            execution.upload(shape)
            copied.record(stream)
            before = time.perf_counter_ns()
            execution.launch(shape)
            enqueue_ms = (time.perf_counter_ns() - before) / 1e6
            computed.record(stream)
            execution.download(shape)
            done.record(stream)
            execution.synchronize()
            intervals = (copied.ms_since(start), computed.ms_since(copied), done.ms_since(computed))
            rows.append((*intervals, enqueue_ms))
    h2d, compute, d2h, enqueue = np.array(rows).T
    return SplitTimes(h2d, compute, d2h, enqueue, execution.replays(shape))


def batches_per_s(executions: Sequence[Execution], shape: tuple[int, ...], seconds: float) -> float:
    """Batches per second with one in flight on each execution, copies included; this thread feeds them in turn.

    A copy of one runs while another computes. Host memory was filled before, as trtexec does it: the time to prepare
    images is not in it.

    Raises:
        UnavailableError, DeviceLostError: CUDA or TensorRT failed.
    """
    for execution in executions:
        for _ in range(_WARMUP_CALLS):
            _enqueue(execution, shape)
            execution.synchronize()
    finished = 0
    started = time.perf_counter()
    for execution in executions:
        _enqueue(execution, shape)
    while finished < MIN_CALLS or time.perf_counter() < started + seconds:
        for execution in executions:
            execution.synchronize()
            _enqueue(execution, shape)
            finished += 1
    for execution in executions:
        execution.synchronize()
        finished += 1
    return finished / (time.perf_counter() - started)


def _enqueue(execution: Execution, shape: tuple[int, ...]) -> None:
    execution.upload(shape)
    execution.launch(shape)
    execution.download(shape)
