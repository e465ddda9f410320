"""Latency, measured so that the comparison is fair: the candidates take turns, warm-up is excluded.

The boundary is the same for every runtime: a float32 batch in host memory goes in, logits in host memory come out,
and the call returns only when they are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_WARMUP_SECONDS = 0.3
_WARMUP_CALLS = 3
_CALLS_PER_TURN = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call over all timed calls; percentiles interpolate linearly.

    ``ci95`` is the distribution-free 95 % confidence interval of the median (order statistics).
    """

    p50: float
    p90: float
    p99: float
    mean: float
    ci95: tuple[float, float]
    calls: int


def measure(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    min_calls: int,
    progress: Callable[[float], None] = lambda share: None,
) -> list[npt.NDArray[np.float64]]:
    """Time every call until each has had ``seconds`` and ``min_calls``; returns milliseconds per call, in call order.

    The candidates run in rounds of a few calls each, so that a drift of the machine meets all of them. The first call
    of each turn is not timed: it pays for what the candidate before it left in the caches and thread pools.
    """
    for call in calls:
        _warm_up(call)
    samples: list[list[float]] = [[] for _ in calls]
    spent = [0.0 for _ in calls]
    while True:
        shares = [min(spent[i] / seconds, len(samples[i]) / min_calls) for i in range(len(calls))]
        progress(min(shares, default=1.0))
        if min(shares, default=1.0) >= 1.0:
            return [np.asarray(sample) for sample in samples]
        for index, call in enumerate(calls):
            if shares[index] >= 1.0:
                continue
            call()
            for _ in range(_CALLS_PER_TURN):
                started = time.perf_counter_ns()
                call()
                elapsed = time.perf_counter_ns() - started
                samples[index].append(elapsed / 1e6)
                spent[index] += elapsed / 1e9


def _warm_up(call: Callable[[], object]) -> None:
    until = time.perf_counter() + _WARMUP_SECONDS
    done = 0
    while done < _WARMUP_CALLS or time.perf_counter() < until:
        call()
        done += 1


def summarize(samples_ms: npt.NDArray[np.float64]) -> Latency:
    """Statistics of the raw samples of one candidate."""
    from scipy.stats import binom

    ordered = np.sort(samples_ms)
    low, high = (int(rank) for rank in binom.interval(0.95, len(ordered), 0.5))
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return Latency(
        p50=float(p50),
        p90=float(p90),
        p99=float(p99),
        mean=float(np.mean(samples_ms)),
        ci95=(float(ordered[max(low - 1, 0)]), float(ordered[min(high, len(ordered) - 1)])),
        calls=len(samples_ms),
    )
