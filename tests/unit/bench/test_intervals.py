"""The statistics on simulated samples with a known answer."""

from __future__ import annotations

import statistics
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from alexdeploy.bench.intervals import (
    SAME,
    Latency,
    Ratio,
    independent_blocks,
    paired_ratio,
    percentile,
    percentile_ratio,
    summarize,
    typical,
    unpaired_ratio,
)

Floats = npt.NDArray[np.float64]
BENCHES = 200


def samples(random: np.random.Generator, rounds: int, *, calls: int = 3, correlation: float = 0.0) -> Floats:
    """Milliseconds around 1, with a drift from round to round, 2 % noise, and one turn in 20 interrupted."""
    steps = random.normal(size=rounds + 50)
    drift = np.zeros(rounds + 50)
    for i in range(1, rounds + 50):
        drift[i] = correlation * drift[i - 1] + np.sqrt(1 - correlation**2) * steps[i]
    noise = random.normal(size=(rounds, calls)) * 0.02
    interrupted = (random.random(rounds) < 0.05) * random.exponential(0.5, rounds)
    return np.asarray(np.exp(0.01 * drift[50:, None] + noise + interrupted[:, None]))


def ratios(rounds: int, factor: float, correlation: float = 0.0) -> list[Ratio]:
    """``factor`` times as fast as the reference, in many benches."""
    random = np.random.default_rng(rounds)
    made = []
    for _ in range(BENCHES):
        candidate, reference = (samples(random, rounds, correlation=correlation) for _ in range(2))
        made.append(paired_ratio(candidate / factor, reference))
    return made


@pytest.mark.parametrize("shape", [(2, 1), (10, 1), (33, 3), (100, 10)])
def test_percentiles_and_mean_are_those_of_the_raw_samples(shape: tuple[int, int]) -> None:
    rounds = np.random.default_rng(0).lognormal(size=shape)
    raw = rounds.ravel().tolist()
    latency = summarize(rounds)
    assert latency.p50 == pytest.approx(statistics.median(raw))
    assert latency.p90 == pytest.approx(statistics.quantiles(raw, n=10, method="inclusive")[8])
    assert latency.p99 == pytest.approx(statistics.quantiles(raw, n=100, method="inclusive")[98])
    assert latency.mean == pytest.approx(statistics.fmean(raw))
    assert latency.calls == len(raw)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 1), (10, 1), (200, 4)])
def test_the_interval_of_the_median_contains_it(shape: tuple[int, int]) -> None:
    latency = summarize(np.random.default_rng(1).lognormal(size=shape))
    assert latency.ci95[0] <= latency.p50 <= latency.ci95[1]


def test_equal_samples_have_an_interval_of_no_width() -> None:
    assert summarize(np.full((20, 2), 3.0)) == Latency(3.0, 3.0, 3.0, 3.0, (3.0, 3.0), 40)
    assert paired_ratio(np.full((20, 2), 3.0), np.full((20, 2), 6.0)).ci99 == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_the_interval_of_the_median_covers_the_true_one(correlation: float) -> None:
    random = np.random.default_rng(2)
    truth = float(np.median(samples(random, 200_000)))
    covered = 0
    for _ in range(BENCHES):
        low, high = summarize(samples(random, 120, correlation=correlation)).ci95
        covered += low <= truth <= high
    assert covered / BENCHES >= 0.90  # 95 % meant; chance alone is 1.5 % (one sd)


@pytest.mark.parametrize(("rounds", "correlation"), [(10, 0.0), (20, 0.0), (100, 0.0), (200, 0.7)])
def test_the_interval_of_a_ratio_covers_the_true_one(rounds: int, correlation: float) -> None:
    covered = sum(r.ci99[0] <= 1.3 <= r.ci99[1] for r in ratios(rounds, 1.3, correlation))
    assert covered / BENCHES >= 0.96


def test_resampling_calls_instead_of_rounds_would_not_cover() -> None:
    """Why blocks are drawn: calls of one turn share its luck, so an interval from single calls is far too short."""
    from scipy.stats import bootstrap

    random = np.random.default_rng(3)
    covered = 0
    for _ in range(40):
        turns = random.normal(size=(60, 1)) * 0.02 + random.normal(size=(60, 20)) * 0.002
        covered += bool(
            np.prod(
                bootstrap((turns.ravel(),), np.mean, n_resamples=200, method="percentile", rng=0).confidence_interval
            )
            <= 0
        )
    assert covered <= 32


def test_no_difference_is_shown_where_there_is_none() -> None:
    verdicts = Counter(ratio.verdict for ratio in ratios(100, 1.0))
    assert verdicts["no difference shown"] >= 0.99 * BENCHES


@pytest.mark.parametrize(("factor", "verdict"), [(1.05, "faster"), (0.95, "slower")])
def test_five_percent_are_found(factor: float, verdict: str) -> None:
    found = ratios(100, factor)
    assert sum(ratio.verdict == verdict for ratio in found) >= 0.95 * BENCHES
    assert np.median([ratio.value for ratio in found]) == pytest.approx(factor, abs=0.005)


def test_a_difference_within_what_a_reload_changes_is_not_claimed() -> None:
    random = np.random.default_rng(4)
    reference = np.exp(random.normal(size=(400, 3)) * 0.001)
    ratio = paired_ratio(reference / (1 + SAME / 2), reference)
    assert ratio.ci99[0] > 1
    assert ratio.verdict == "no difference shown"


def test_a_wide_interval_is_called_noisy() -> None:
    random = np.random.default_rng(5)
    candidate, reference = np.exp(random.normal(size=(2, 12, 3)) * 0.5)
    assert paired_ratio(candidate, reference).verdict == "too noisy"
    assert paired_ratio(candidate, 100 * reference).verdict == "faster"


def test_drift_that_both_meet_cancels_in_pairs_only() -> None:
    random = np.random.default_rng(6)
    drift = np.linspace(1.0, 1.5, 100)[:, None]
    candidate, reference = (drift * np.exp(random.normal(size=(100, 3)) * 0.005) for _ in range(2))
    paired, unpaired = paired_ratio(candidate, reference), unpaired_ratio(candidate, reference)
    width = {r: r.ci99[1] - r.ci99[0] for r in (paired, unpaired)}
    assert width[paired] < 0.02 < 0.1 < width[unpaired]
    assert paired.verdict == "no difference shown"


def test_neighbours_that_are_alike_make_fewer_blocks() -> None:
    random = np.random.default_rng(7)
    independent = [len(independent_blocks(random.normal(size=400))) for _ in range(20)]
    assert np.median(independent) == 40
    assert len(independent_blocks(np.cumsum(random.normal(size=400)))) == 10
    assert len(independent_blocks(random.normal(size=7))) == 7


def test_the_same_bench_gives_the_same_intervals() -> None:
    rounds = samples(np.random.default_rng(8), 50)
    assert summarize(rounds) == summarize(rounds.copy())
    assert paired_ratio(rounds, rounds[::-1]) == paired_ratio(rounds.copy(), rounds[::-1])


def ragged(random: np.random.Generator, rounds: int, scale: float = 1.0) -> list[Floats]:
    """Rounds of 20 to 59 samples, log-normal with a sigma of a half; each round as a whole is off by up to some 5 %."""
    return [
        scale * np.exp(0.5 * random.normal(size=random.integers(20, 60)) + 0.05 * random.normal())
        for _ in range(rounds)
    ]


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_rounds_of_any_length_are_taken_as_one_sample(percent: float) -> None:
    rounds = ragged(np.random.default_rng(9), 12)
    estimate = percentile(rounds, percent)
    assert estimate.value == np.percentile(np.concatenate(rounds), percent)
    assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]
    assert summarize(rounds).calls == sum(map(len, rounds))


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_the_interval_of_a_percentile_covers_the_true_one(percent: float) -> None:
    random = np.random.default_rng(10)
    truth = np.percentile(np.concatenate(ragged(random, 20_000)), percent)
    found = [percentile(ragged(random, 30), percent).ci95 for _ in range(30)]
    assert np.mean([low <= truth <= high for low, high in found]) >= 0.8  # 95 % meant; chance alone is 4 % (one sd)


def test_the_ratio_of_two_percentiles_covers_the_true_one_and_says_which_is_faster() -> None:
    random = np.random.default_rng(11)
    found = [percentile_ratio(ragged(random, 30), ragged(random, 30, scale=1.5), 99) for _ in range(30)]
    assert np.mean([ratio.ci99[0] <= 1.5 <= ratio.ci99[1] for ratio in found]) >= 0.93
    assert np.median([ratio.value for ratio in found]) == pytest.approx(1.5, rel=0.05)
    assert np.mean([ratio.verdict == "faster" for ratio in found]) >= 0.7
    assert not any(ratio.verdict == "slower" for ratio in found)
    same = [percentile_ratio(ragged(random, 30), ragged(random, 30), 99) for _ in range(30)]
    assert sum(ratio.is_shown for ratio in same) <= 2


def test_the_typical_rate_leaves_out_what_is_extreme() -> None:
    rates = np.array([100.0, 101, 99, 100, 102, 98, 100, 100, 3, 900])
    estimate = typical(rates)
    assert estimate.value == pytest.approx(100, abs=1)
    assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]
    random = np.random.default_rng(12)
    found = [typical(random.normal(100, 10, 20)).ci95 for _ in range(BENCHES)]
    assert np.mean([low <= 100 <= high for low, high in found]) >= 0.9
