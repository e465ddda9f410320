"""Percentiles of the raw samples, and intervals from a bootstrap over blocks of rounds.

Calls within a turn, and turns close in time, are not independent, so whole blocks of rounds are drawn, never calls.
Blocks are doubled until neighbours are uncorrelated (batch means, as for the output of a simulation). Percentile
intervals are too short for few blocks; they are expanded as Hesterberg proposes (What Teachers Should Know About the
Bootstrap, 2015, section 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Samples = Iterable[Floats]  # the samples of each round, as many as there were; an array (rounds, calls) is one too
Verdict = Literal["faster", "slower", "no difference shown", "too noisy"]

SAME = 0.01  # a second copy of one file in memory, or the same process started again, can be this much off
_NOISY_SPAN = 1.10
_MAX_BLOCKS, _MIN_BLOCKS = 40, 10
_MAX_CORRELATION = 0.1
_RESAMPLES = 2000
_TRIM = 0.2


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call over all timed calls; percentiles interpolate linearly.

    ``ci95`` is the 95 % confidence interval of the median, by bootstrap over blocks of rounds.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    ci95: tuple[float, float]
    calls: int


@dataclass(frozen=True)
class Ratio:
    """Speed relative to the reference; above 1 is faster.

    ``ci99`` is its 99 % confidence interval: a table asks many such questions at once. ``faster`` and ``slower`` are
    said only where the interval lies beyond 1 by more than ``SAME``; else it is ``too noisy`` where it spans over 10 %.
    """

    value: float
    ci99: tuple[float, float]
    verdict: Verdict

    @property
    def is_shown(self) -> bool:
        """True if the samples support a figure."""
        return self.verdict in ("faster", "slower")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval, by bootstrap over blocks of rounds."""

    value: float
    ci95: tuple[float, float]


def summarize(rounds: Samples) -> Latency:
    """Statistics of the raw samples of one candidate, in ms."""
    rounds = [*rounds]
    values = np.concatenate(rounds)
    median = percentile(rounds, 50)
    p90, p99 = (float(value) for value in np.percentile(values, [90, 99]))
    return Latency(median.value, p90, p99, float(values.mean()), median.ci95, values.size)


def percentile(rounds: Samples, percent: float) -> Estimate:
    """Over all samples of all rounds, which may differ in length; interpolates linearly."""
    rounds = [*rounds]
    values = np.concatenate(rounds)
    blocks = len(independent_blocks(_medians(rounds)))
    of_draw = _percentile_of_draws(rounds, blocks, percent)
    estimates = np.array([of_draw(draw) for draw in _draws(blocks, _resamples(values.size))])
    low, high = _expanded_percentiles(estimates, blocks, 0.95)
    value = float(np.percentile(values, percent))
    return Estimate(value, (min(low, value), max(high, value)))


def typical(values: Floats) -> Estimate:
    """The mean of one figure per round, without the highest and the lowest fifth of its blocks."""
    blocks = independent_blocks(values)
    estimates = _trimmed_mean(blocks[_draws(len(blocks), _RESAMPLES)])
    low, high = _expanded_percentiles(estimates, len(blocks), 0.95)
    value = float(_trimmed_mean(blocks))
    return Estimate(value, (min(low, value), max(high, value)))


def paired_ratio(candidate: Samples, reference: Samples) -> Ratio:
    """Reference time over candidate time, round by round; both must come from one ``measure``."""
    logs = np.log(_medians(reference)) - np.log(_medians(candidate))
    blocks = independent_blocks(logs)
    estimates = _trimmed_mean(blocks[_draws(len(blocks), _RESAMPLES)])
    return _ratio(float(_trimmed_mean(blocks)), estimates, len(blocks))


def percentile_ratio(candidate: Samples, reference: Samples, percent: float) -> Ratio:
    """A percentile of the reference's time over that of the candidate's, each over all samples; rounds are pairs."""
    candidate, reference = [*candidate], [*reference]
    blocks = len(independent_blocks(np.log(_medians(reference)) - np.log(_medians(candidate))))
    new, old = (_percentile_of_draws(rounds, blocks, percent) for rounds in (candidate, reference))
    draws = _draws(blocks, _resamples(sum(map(len, (*candidate, *reference)))))
    estimates = np.array([np.log(old(draw)) - np.log(new(draw)) for draw in draws])
    value = np.log(np.percentile(np.concatenate(reference), percent))
    value -= np.log(np.percentile(np.concatenate(candidate), percent))
    return _ratio(float(value), estimates, blocks)


def unpaired_ratio(candidate: Samples, reference: Samples) -> Ratio:
    """As ``paired_ratio``, of two that did not run in the same rounds."""
    new, old = (independent_blocks(np.log(_medians(rounds))) for rounds in (candidate, reference))
    drawn_new = _trimmed_mean(new[_draws(len(new), _RESAMPLES)])
    drawn_old = _trimmed_mean(old[_draws(len(old), _RESAMPLES, seed=1)])
    return _ratio(float(_trimmed_mean(old) - _trimmed_mean(new)), drawn_old - drawn_new, min(len(new), len(old)))


def independent_blocks(values: Floats) -> Floats:
    """Medians of up to 40 runs of neighbouring values; fewer (down to 10) where neighbours are alike."""
    count = min(_MAX_BLOCKS, len(values))
    while True:
        blocks = np.array([np.median(part) for part in np.array_split(values, count)])
        if count // 2 < _MIN_BLOCKS or _lag_correlation(blocks) <= _MAX_CORRELATION:
            return blocks
        count //= 2


def _medians(rounds: Samples) -> Floats:
    return np.array([np.median(samples) for samples in rounds])


def _percentile_of_draws(rounds: list[Floats], blocks: int, percent: float) -> Callable[[npt.NDArray[np.int64]], float]:
    """Tells the percentile of a sample that is made of drawn blocks: a weighted one, without building the sample."""
    parts = [np.concatenate([rounds[i] for i in part]) for part in np.array_split(np.arange(len(rounds)), blocks)]
    values = np.concatenate(parts)
    order = np.argsort(values)
    block_of = np.repeat(np.arange(blocks), [part.size for part in parts])[order]

    def of(draw: npt.NDArray[np.int64]) -> float:
        cumulative = np.cumsum(np.bincount(draw, minlength=blocks)[block_of])
        return float(values[order[np.searchsorted(cumulative, cumulative[-1] * (percent / 100))]])

    return of


def _resamples(samples: int) -> int:
    return min(1000, max(200, 20_000_000 // samples))


def _lag_correlation(values: Floats) -> float:
    centred = values - values.mean()
    power = float(np.sum(centred**2))
    return float(np.sum(centred[1:] * centred[:-1])) / power if power else 0.0


def _draws(count: int, resamples: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(count, size=(resamples, count))


def _trimmed_mean(values: Floats) -> Floats:
    """Mean over the last axis without the lowest and the highest fifth."""
    cut = int(_TRIM * values.shape[-1])
    kept: Floats = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return kept


def _expanded_percentiles(estimates: Floats, blocks: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import norm, t

    if blocks < 2:
        return float(estimates.min()), float(estimates.max())
    quantile = t.ppf((1 - confidence) / 2, blocks - 1) * np.sqrt(blocks / (blocks - 1))
    tail = float(norm.cdf(quantile))
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def _ratio(log_ratio: float, estimates: Floats, blocks: int) -> Ratio:
    low, high = (float(np.exp(edge)) for edge in _expanded_percentiles(estimates, blocks, 0.99))
    value = float(np.exp(log_ratio))
    low, high = min(low, value), max(high, value)
    verdict: Verdict
    if low > 1 + SAME:
        verdict = "faster"
    elif high < 1 / (1 + SAME):
        verdict = "slower"
    else:
        verdict = "too noisy" if high / low > _NOISY_SPAN else "no difference shown"
    return Ratio(value, (low, high), verdict)
