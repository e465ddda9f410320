"""The server scenario of MLPerf: the highest rate of single images, arriving at random, that keeps a latency bound.

Arrivals (Poisson, seeded), latencies, the percentile and the verdict are MLCommons LoadGen's. A run is valid when
LoadGen's early-stopping rule holds: enough queries to say that 99 % are within the bound, with 99 % confidence.
"""

from __future__ import annotations

import math
import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alexdeploy.arrays import Batch
from alexdeploy.bench.waiting import work
from alexdeploy.optional import require
from alexdeploy.runners.base import Runner

_LOWEST_SHARE = 0.1
_FIRST_SHARE = 0.5
_CLOSE_ENOUGH = 1.05
_QUERIES = 1000  # LoadGen's early stopping needs at least 662 for a 99th percentile
_SEED = 20260101


@dataclass(frozen=True)
class Probe:
    """One LoadGen run: images offered per second, 99th percentile of latency in ms, its verdict."""

    rate_per_s: float
    p99_ms: float
    queries: int
    valid: bool


@dataclass(frozen=True)
class Server:
    """``rate_per_s`` is the highest rate with a valid run; None where no run was valid. Waiting images run together.

    ``searched`` is False where time ran out before the next rate to try was within 5 %; the true one may be higher.
    """

    bound_ms: float
    max_batch: int
    rate_per_s: float | None
    probes: list[Probe]
    searched: bool


def serve(
    runner: Runner,
    images: Batch,
    *,
    bound_ms: float,
    capacity_per_s: float,
    seconds: float,
    progress: Callable[[float], None] = lambda share: None,
) -> Server:
    """Search the highest rate between a tenth of ``capacity_per_s`` and all of it, by bisection, to 5 %.

    Args:
        runner: gets up to ``len(images)`` images at a time, whatever is waiting.
        images: (N, *input), as the runner takes them; they are sent in turn.
        bound_ms: for the 99th percentile, from arrival to answer.
        capacity_per_s: images per second without waiting.
        seconds: for the whole search; one run of 1,000 queries is made even if that takes longer.
        progress: called with the share that is done.

    Raises:
        UnavailableError: LoadGen is not installed.
    """
    loadgen = require("mlperf_loadgen")
    low, high = _LOWEST_SHARE * capacity_per_s, capacity_per_s
    rate = _FIRST_SHARE * capacity_per_s
    probes: list[Probe] = []
    started = time.perf_counter()
    while not probes or (time.perf_counter() - started + _QUERIES / rate < seconds and high / low > _CLOSE_ENOUGH):
        progress(min((time.perf_counter() - started) / seconds, 1.0))
        probes.append(_probe(loadgen, runner, images, bound_ms, rate))
        low, high = (rate, high) if probes[-1].valid else (low, rate)
        rate = math.sqrt(low * high)
    best = max((probe.rate_per_s for probe in probes if probe.valid), default=None)
    return Server(bound_ms, len(images), best, probes, high / low <= _CLOSE_ENOUGH)


def _probe(loadgen: Any, runner: Runner, images: Batch, bound_ms: float, rate: float) -> Probe:
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    errors: list[Exception] = []
    answer = partial(_answer, loadgen, runner, images, errors)
    worker = threading.Thread(target=work, args=(waiting, len(images), answer), daemon=True)
    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.Server, loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(bound_ms * 1e6)
    settings.server_target_latency_percentile = 0.99
    settings.min_duration_ms, settings.min_query_count = 0, _QUERIES
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = _SEED
    with tempfile.TemporaryDirectory() as folder:
        logs = loadgen.LogSettings()
        output = loadgen.LogOutputSettings()
        output.outdir = folder
        logs.log_output, logs.enable_trace = output, False
        system = loadgen.ConstructSUT(partial(_put_all, waiting), lambda: None)
        library = loadgen.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)
        worker.start()
        try:
            loadgen.StartTestWithLogSettings(system, library, settings, logs)
        finally:
            waiting.put(None)
            worker.join()
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(system)
        summary = Path(folder, "mlperf_log_summary.txt").read_text(encoding="utf-8")
        detail = Path(folder, "mlperf_log_detail.txt").read_text(encoding="utf-8")
    if errors:
        raise errors[0]
    return _read(summary, detail, rate)


def _put_all(waiting: queue.SimpleQueue[Any], samples: list[Any]) -> None:
    for sample in samples:
        waiting.put(sample)


def _answer(loadgen: Any, runner: Runner, images: Batch, errors: list[Exception], samples: list[Any]) -> None:
    try:
        runner.infer(images[[sample.index for sample in samples]])
    except Exception as error:  # LoadGen waits for every answer, so a failure must not end the worker
        errors.append(error)
    loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in samples])


def _read(summary: str, detail: str, rate: float) -> Probe:
    percentile = re.search(r"99\.00 percentile latency \(ns\)\s*:\s*(\d+)", summary)
    queries = re.search(r'"key": "result_query_count", "value": (\d+)', detail)
    return Probe(
        rate_per_s=rate,
        p99_ms=int(percentile[1]) / 1e6 if percentile else math.nan,
        queries=int(queries[1]) if queries else 0,
        valid="Result is : VALID" in summary,
    )
