from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from alexdeploy.bench.measure import measure, summarize


def _skewed(count: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(count).lognormal(size=count)


@pytest.mark.parametrize("count", [2, 10, 101, 1000])
def test_the_statistics_are_those_of_the_raw_samples(count: int) -> None:
    samples = _skewed(count)
    raw = samples.tolist()
    latency = summarize(samples)
    assert latency.p50 == pytest.approx(statistics.median(raw))
    assert latency.p90 == pytest.approx(statistics.quantiles(raw, n=10, method="inclusive")[8])
    assert latency.p99 == pytest.approx(statistics.quantiles(raw, n=100, method="inclusive")[98])
    assert latency.mean == pytest.approx(statistics.fmean(raw))
    assert latency.calls == count


@pytest.mark.parametrize("count", [1, 2, 5, 10, 25, 100, 1000])
def test_the_confidence_interval_contains_the_median(count: int) -> None:
    latency = summarize(_skewed(count))
    assert latency.ci95[0] <= latency.p50 <= latency.ci95[1]


@pytest.mark.parametrize("count", [6, 10, 15, 20, 100, 995, 1000])
def test_the_confidence_interval_covers_the_median_with_95_percent_and_no_needless_width(count: int) -> None:
    """Of n samples k lie below the true median with chance C(n, k)/2^n; the interval (x_i, x_j) needs i <= k < j."""
    low, high = (round(edge) for edge in summarize(np.arange(1.0, count + 1)).ci95)  # the sample's value is its rank

    def coverage(first: int, last: int) -> float:
        return float(Fraction(sum(math.comb(count, k) for k in range(first, last)), 2**count))

    assert coverage(low, high) >= 0.95
    assert coverage(low + 1, high - 1) < 0.95


def test_the_order_of_the_samples_does_not_matter() -> None:
    samples = _skewed(50)
    assert summarize(samples[::-1].copy()) == summarize(samples)


def _runs_of(names: str, *, min_calls: int) -> tuple[list[tuple[str, int]], list[int]]:
    """The order in which ``measure`` calls the candidates, as (name, calls in a row), and the samples per candidate."""
    runs: list[tuple[str, int]] = []

    def call(name: str) -> None:
        row = runs.pop()[1] if runs and runs[-1][0] == name else 0
        runs.append((name, row + 1))

    samples = measure([lambda name=name: call(name) for name in names], seconds=1e-9, min_calls=min_calls)  # type: ignore[misc]
    return runs, [len(sample) for sample in samples]


def test_the_candidates_take_turns_after_their_warm_up() -> None:
    runs, _ = _runs_of("abc", min_calls=12)
    assert "".join(name for name, _ in runs) == "abc" + "abc" * 3


def test_the_first_call_of_a_turn_and_the_warm_up_are_not_timed() -> None:
    runs, samples = _runs_of("ab", min_calls=12)
    assert runs[2:] == [("a", 6), ("b", 6)] * 3
    assert samples == [15, 15]


@pytest.mark.parametrize("min_calls", [1, 5, 6, 23])
def test_a_candidate_gets_its_minimum_of_calls_and_less_than_a_turn_more(min_calls: int) -> None:
    _, samples = _runs_of("a", min_calls=min_calls)
    assert min_calls <= samples[0] < min_calls + 5


def test_each_candidate_gets_its_seconds() -> None:
    samples = measure([lambda: sum(range(100)), lambda: sum(range(5000))], seconds=0.01, min_calls=1)
    assert all(sample.sum() >= 10 for sample in samples)


def test_progress_rises_to_one() -> None:
    shares: list[float] = []
    measure([lambda: None], seconds=1e-9, min_calls=20, progress=shares.append)
    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_nothing_to_measure_gives_nothing() -> None:
    assert measure([], seconds=1, min_calls=1) == []


def test_a_candidate_that_fails_is_not_hidden() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure([fail], seconds=1, min_calls=1)
