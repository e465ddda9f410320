"""Targets under loads, round by round: in each, every target has every load once, in an order drawn anew.

So drift meets all alike, and a target is compared with another within rounds. Every answer is compared with the one
that is expected, outside the time that is measured: a server that mixes up its answers is not fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from threading import Barrier
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch, Logits
from alexdeploy.bench import traffic
from alexdeploy.bench.intervals import paired_ratio, percentile, percentile_ratio, typical
from alexdeploy.bench.load_results import LoadRow, Served, Target
from alexdeploy.bench.measure import MIN_ROUNDS, no_garbage_collection
from alexdeploy.bench.traffic import Ask, Load, Slice
from alexdeploy.errors import UnavailableError
from alexdeploy.metrics import relative_error
from alexdeploy.specs import Progress

if TYPE_CHECKING:
    from alexdeploy.runners.kserve import Counters

REFERENCE: Target = "queued"
_LEAST_REQUESTS, _LEAST_ARRIVALS = 20, 50  # per slice
_LONGEST_SLICE_S = 1.0
# Seconds of latency gained per second, in the median slice: 10 % more arrive than are answered. Behind a single server
# with constant service times this calls 2 % of series overloaded at 95 % of what it can do, none at 90 %, and 98 % at
# 120 % (Lindley's recursion, 10 slices of 50 arrivals, 60 series each).
_GROWTH = 0.1

CountersOf = Callable[[], "Counters | None"]


@dataclass(frozen=True)
class Expected:
    """Images, (N, *input), with their right answers, (N, classes), and the largest relative error of one."""

    images: Batch
    logits: Logits
    bound: float


@dataclass(frozen=True)
class _Taken:
    """A slice without its answers. ``growth`` is that of latency, in seconds per second."""

    latencies_ms: npt.NDArray[np.float64]
    images_per_s: float
    growth: float
    unsent: int


@dataclass
class _Series:
    """All slices of one target under one load; none is added after one in which a request failed."""

    target: Target
    load: Load
    taken: list[_Taken] = field(default_factory=list)
    counted: list[Counters] = field(default_factory=list)
    requests: int = 0
    failures: int = 0
    problem: str = ""  # of the first

    def add(self, slice_: Slice, expected: Expected) -> None:
        sent = [*slice_.early, *slice_.requests]
        problems = [problem for request in sent if (problem := problem_of(request, expected))]
        self.requests += len(sent)
        self.failures += len(problems)
        self.problem = self.problem or next(iter(problems), "")
        due = np.array([request.due_s for request in slice_.requests])
        latencies_s = np.array([request.ended_s for request in slice_.requests]) - due
        growth = float(np.polyfit(due, latencies_s, 1)[0]) if len(due) > 2 and self.load.rate_per_s else 0.0
        rate = slice_.completed / slice_.seconds
        self.taken.append(_Taken(np.round(1000 * latencies_s, 4), round(rate, 4), growth, slice_.unsent))


def take_rounds(
    targets: Mapping[Target, Ask],
    loads: Sequence[Load],
    expected: Expected,
    *,
    seconds: float,
    one_image_s: float,
    counters: CountersOf = lambda: None,
    seed: int = 0,
    progress: Progress = lambda what, share: None,
) -> tuple[list[LoadRow], int]:
    """A row for every load and target, in their order, and the number of rounds.

    Args:
        targets: what answers a batch of one image; with ``queued``, which the others are compared with.
        loads: closed and open ones.
        expected: the images to send, in turn, and what is right.
        seconds: for everything; ten rounds are taken even if that is longer.
        one_image_s: that the slowest target takes for one image alone; slices are long enough for 20 of them.
        counters: of the server.
        seed: of the arrivals and of the order.
        progress: called with what is being done and the share of it that is.
    """
    series = [_Series(target, load) for load in loads for target in targets]
    longest = min(seconds / (MIN_ROUNDS * len(series)), _LONGEST_SLICE_S)
    lengths = {load: max(longest, _least_seconds(load, one_image_s)) for load in loads}
    random = np.random.default_rng(seed)
    started, rounds = time.perf_counter(), 0
    threads = max(load.in_flight or traffic.SENDERS for load in loads)
    with ThreadPoolExecutor(threads) as pool:
        _connect(pool, threads, counters)
        while True:
            share = min((time.perf_counter() - started) / seconds, rounds / MIN_ROUNDS)
            progress("load", min(share, 1.0))
            if share >= 1.0 or all(one.failures for one in series):
                break
            for index in random.permutation(len(series)):
                one = series[index]
                if one.failures:
                    continue
                before = _read(counters) if one.target == "server" else None
                with no_garbage_collection():
                    taken = _take(pool, one, targets[one.target], expected.images, lengths[one.load], (seed, rounds))
                after = _read(counters) if before is not None else None
                if before is not None and after is not None and min(astuple(after - before)) >= 0:
                    one.counted.append(after - before)  # less than before: a version was unloaded
                if taken.requests or taken.unsent:  # else nothing was due, by chance, for no target
                    one.add(taken, expected)
            rounds += 1
    return [_row(one, _reference(one, series)) for one in series], rounds


def least_seconds(loads: Sequence[Load]) -> float:
    """What all rounds of the three targets take at least; of requests in flight that is not known before."""
    return MIN_ROUNDS * len(get_args(Target)) * sum(_least_seconds(load, 0.0) for load in loads)


def _least_seconds(load: Load, one_image_s: float) -> float:
    if load.rate_per_s is not None:
        return _LEAST_ARRIVALS / load.rate_per_s
    return max(_LEAST_REQUESTS, 2 * (load.in_flight or 1)) * one_image_s


def _take(pool: Executor, one: _Series, ask: Ask, images: Batch, seconds: float, seed: tuple[int, ...]) -> Slice:
    rate = one.load.rate_per_s
    if rate is None:
        return traffic.keep_in_flight(pool, ask, images, one.load.in_flight or 1, seconds)
    due = traffic.arrivals(rate, seconds, (*seed, round(1000 * rate)))  # the same ones for every target
    return traffic.send_when_due(pool, ask, images, due.tolist(), seconds)


def _connect(pool: Executor, threads: int, counters: CountersOf) -> None:
    """One small question from each thread, so that none opens its connection while it is timed."""
    all_here = Barrier(threads)

    def run() -> None:
        all_here.wait()
        _read(counters)

    try:
        begun = [pool.submit(run) for _ in range(threads)]
    except BaseException as error:
        all_here.abort()  # else those that are here wait for ever
        if isinstance(error, RuntimeError):
            raise UnavailableError(f"no {threads} threads can be started ({error}); give fewer `in_flight`") from error
        raise
    for done in begun:
        done.result()


def _read(counters: CountersOf) -> Counters | None:
    try:
        return counters()
    except UnavailableError:  # the server is gone: its requests tell
        return None


def problem_of(request: traffic.Request, expected: Expected) -> str | None:
    """Why a request failed, in words: its error, or whose answer it got instead; None where it did not."""
    if request.answer is None:
        return request.error
    right = expected.logits[request.image][None]
    if request.answer.shape == right.shape and relative_error(request.answer, right) <= expected.bound:
        return None
    others = [relative_error(request.answer, one[None]) <= expected.bound for one in expected.logits]
    whose = f"that of image {others.index(True)}" if any(others) else "that of none of the images"
    return f"the answer to image {request.image} is {whose}"


def _reference(one: _Series, series: Sequence[_Series]) -> _Series | None:
    """The queued runner under the same load; None for itself."""
    found = next((other for other in series if other.load == one.load and other.target == REFERENCE), None)
    return None if found is one else found


def _row(one: _Series, reference: _Series | None) -> LoadRow:
    row = LoadRow(
        target=one.target,
        load=one.load,
        status="ok",
        requests=one.requests,
        failures=one.failures,
        unsent=sum(taken.unsent for taken in one.taken),
        served=_served(one.counted),
        samples_ms=[taken.latencies_ms.tolist() for taken in one.taken],
        rates_per_s=[taken.images_per_s for taken in one.taken],
    )
    if one.failures:
        reason = f"{one.failures} of {one.requests} requests failed, the first: {one.problem}"
        return replace(row, status="failed", reason=reason)
    rate = typical(np.array(row.rates_per_s))
    if _is_overloaded(one):
        reason = f"overloaded: offered {one.load.rate_per_s:g}/s, answered {rate.value:.1f}/s"
        return replace(row, status="overloaded", reason=reason, images_per_s=rate)
    return replace(row, images_per_s=rate, **_latencies(one), **_ratios(one, reference))


def _is_overloaded(one: _Series) -> bool:
    """Whether arrivals waited ever longer: one that is late by chance is not so in most rounds."""
    growth = float(np.median([taken.growth for taken in one.taken]))
    return growth > _GROWTH or any(taken.unsent for taken in one.taken)


def _latencies(one: _Series) -> dict[str, Any]:
    rounds = _samples(one)
    return {f"p{percent}_ms": percentile(rounds, percent) for percent in (50, 90, 99)}


def _ratios(one: _Series, reference: _Series | None) -> dict[str, Any]:
    if reference is None or reference.failures or _is_overloaded(reference):
        return {}
    ratios = {"p99_ratio": percentile_ratio(_samples(one), _samples(reference), 99)}
    if one.load.rate_per_s is None:  # else both answered what arrived
        mine, theirs = ([1 / np.array([taken.images_per_s]) for taken in each.taken] for each in (one, reference))
        ratios["rate_ratio"] = paired_ratio(mine, theirs)
    return ratios


def _samples(one: _Series) -> list[npt.NDArray[np.float64]]:
    return [taken.latencies_ms for taken in one.taken]


def _served(counted: Sequence[Counters]) -> Served | None:
    executions = sum(each.executions for each in counted)
    requests = sum(each.requests for each in counted)
    if not executions or not requests:
        return None
    inferences = sum(each.inferences for each in counted)
    queue_ns, compute_ns = (sum(getattr(each, name) for each in counted) for name in ("queue_ns", "compute_ns"))
    return Served(
        inferences=inferences,
        executions=executions,
        mean_batch=inferences / executions,
        queue_ms=queue_ns / requests / 1e6,
        compute_ms=compute_ns / requests / 1e6,
    )
