"""Runners on a GPU timed by CUDA events: copies and computing apart, and the rate with several batches in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alexdeploy.arrays import Batch
from alexdeploy.bench.gpu_state import GpuWatch
from alexdeploy.bench.intervals import Latency, summarize
from alexdeploy.engine.timing import GpuTimes, is_enqueue_bound
from alexdeploy.errors import UnavailableError
from alexdeploy.runners.base import Runner
from alexdeploy.specs import Progress


@dataclass(frozen=True)
class InFlight:
    """Images per second with so many batches under way at once, each in an execution context of its own."""

    batches: int
    images_per_s: float


@dataclass(frozen=True)
class GpuFigures:
    """By CUDA events, one batch at a time, in ms per batch; trtexec's words.

    Attributes:
        h2d_ms: the copy of the images from pinned host memory.
        compute_ms: the engine.
        d2h_ms: the copy of the logits to pinned host memory.
        enqueue_ms: the host's time to submit the engine.
        enqueue_bound: the host is nearly as slow as the engine, so that ``compute_ms`` may hold waiting.
        in_flight: rates with copies, host memory filled before.
        graph: a CUDA graph of ours was replayed. TensorRT-RTX replays its own.
        command: that measures the same with NVIDIA's own program.
    """

    h2d_ms: Latency
    compute_ms: Latency
    d2h_ms: Latency
    enqueue_ms: Latency
    enqueue_bound: bool
    in_flight: list[InFlight]
    graph: bool
    command: str


def time_on_gpu(
    runners: Mapping[int, Runner],
    inputs: Mapping[int, Batch],
    batches: Sequence[int],
    seconds: float,
    watch: GpuWatch,
    progress: Progress,
) -> dict[tuple[int, int], GpuFigures | str]:
    """Figures by (index of the runner, batch), or why there are none; runners without such times are left out.

    Args:
        runners: those to time, by index.
        inputs: images as each of them takes them; repeated where a batch is larger.
        batches: batch sizes.
        seconds: for all of them together.
        watch: samples the card meanwhile.
        progress: called with the share that is done.
    """
    found: dict[tuple[int, int], GpuFigures | str] = {}
    each = seconds / (len(runners) * len(batches))
    for number, batch in enumerate(batches):
        with watch.during("gpu", batch):
            for place, (index, runner) in enumerate(runners.items()):
                progress(f"CUDA events, batch {batch}", (number * len(runners) + place) / len(runners) / len(batches))
                images = np.resize(inputs[index], (batch, *inputs[index].shape[1:]))
                try:
                    times = runner.gpu_times(images, each)
                except UnavailableError as error:
                    found[index, batch] = f"no times by CUDA events: {error}"
                    continue
                if times is not None:
                    found[index, batch] = _figures(times, batch)
    return found


def _figures(times: GpuTimes, batch: int) -> GpuFigures:
    split = times.split
    h2d, compute, d2h, enqueue = (
        summarize(np.round(samples[:, None], 4))
        for samples in (split.h2d_ms, split.compute_ms, split.d2h_ms, split.enqueue_ms)
    )
    return GpuFigures(
        h2d,
        compute,
        d2h,
        enqueue,
        is_enqueue_bound(enqueue.p50, compute.p50),
        [InFlight(count, rate * batch) for count, rate in times.batches_per_s.items()],
        split.graph,
        times.command,
    )
