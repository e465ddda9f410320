"""Time taken in rounds: in each every candidate has one turn, in an order drawn anew, so that drift meets all alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

MIN_ROUNDS = 10
_TURN_SECONDS = 0.02
_MAX_CALLS_PER_TURN = 50
_WARMUP_CALLS = 3
_MAX_WARMUP_SECONDS = 1.0
_STEADY = 0.02

Call = Callable[[], object]
Rounds = npt.NDArray[np.float64]


def measure(
    calls: Sequence[Call],
    *,
    seconds: float,
    min_rounds: int = MIN_ROUNDS,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Rounds]:
    """Milliseconds of every timed call, (rounds, calls per turn) for each candidate; row r of all is one round.

    ``seconds`` is for everything, warm-up included; ``min_rounds`` are taken even if that is longer. A turn is one
    untimed call, which pays for what the candidate before it left in caches and thread pools, and then as many timed
    ones as fill about 20 ms, the same number for all. Calls that alone take longer need no untimed one.
    """
    started = time.perf_counter()
    warm_up_seconds = min(_MAX_WARMUP_SECONDS, 0.2 * seconds / len(calls))
    typical_ms = [_warm_up(call, warm_up_seconds) for call in calls]
    turn_calls = _TURN_SECONDS * 1e3 / max(statistics.geometric_mean(typical_ms), 1e-6)
    timed = min(max(math.ceil(turn_calls), 1), _MAX_CALLS_PER_TURN)
    random = np.random.default_rng(seed)
    turns: list[list[list[float]]] = [[] for _ in calls]
    with no_garbage_collection():
        while True:
            share = min((time.perf_counter() - started) / seconds, len(turns[0]) / min_rounds)
            progress(min(share, 1.0))
            if share >= 1.0:
                # 0.1 µs is what the report stores, so that its percentiles can be computed again from it
                return [np.round(turn, 4) for turn in turns]
            for index in random.permutation(len(calls)):
                settle = typical_ms[index] < _TURN_SECONDS * 1e3
                turns[index].append(_turn(calls[index], timed, settle))


def _turn(call: Call, timed: int, settle: bool) -> list[float]:
    if settle:
        call()
    taken_ms = []
    for _ in range(timed):
        started = time.perf_counter_ns()
        call()
        taken_ms.append((time.perf_counter_ns() - started) / 1e6)
    return taken_ms


def _warm_up(call: Call, seconds: float) -> float:
    """Call until it no longer gets faster, or for ``seconds``; returns the last typical time in ms."""
    started = time.perf_counter()
    before = math.inf
    while True:
        typical = statistics.median(_turn(call, _WARMUP_CALLS, settle=False))
        steady = typical > before * (1 - _STEADY) and time.perf_counter() - started > seconds / 4
        if steady or time.perf_counter() - started > seconds:
            return typical
        before = typical


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """While it lasts, no call pays for the garbage of those before it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
