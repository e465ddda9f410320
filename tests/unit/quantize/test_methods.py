from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from alexdeploy.quantize import methods
from alexdeploy.quantize.observer import ActivationObserver

Values = npt.NDArray[np.float32]


def _values(kind: str) -> Values:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(60_000)
    drawn: dict[str, npt.NDArray[np.float64]] = {
        "normal": normal * 3,
        "relu": np.maximum(normal, 0),
        "outliers": np.append(rng.laplace(size=30_000), [60.0, 75.0, -91.0]),
        "heavy-tail": rng.standard_t(2.5, size=30_000),
        "uniform": rng.uniform(-0.9, 0.9, size=30_000),
        "few": rng.exponential(size=40),
        "constant": np.full(100, 0.7),
    }
    return drawn[kind].astype(np.float32).reshape(-1, 1)


KINDS = ["normal", "relu", "outliers", "heavy-tail", "uniform", "few", "constant"]


def _observer(values: Values) -> ActivationObserver:
    observer = ActivationObserver("conv1")
    observer.update(values)
    return observer


def _entropy_by_the_book(counts: list[float], width: float) -> float:
    """The slides of GTC 2017 in loops: P, Q and their divergence for every number of bins kept."""
    counts = [counts[1], *counts[1:]]
    least, best = math.inf, 0
    for kept in range(128, 2049):
        p = counts[:kept]
        p[kept - 1] += sum(counts[kept:])
        q = [0.0] * kept
        for level in range(128):
            inside = range(level * kept // 128, (level + 1) * kept // 128)
            filled = [i for i in inside if p[i] > 0]
            for i in filled:
                q[i] = sum(counts[j] for j in inside) / len(filled)
        if any(p[i] > 0 and q[i] == 0 for i in range(kept)):
            continue
        p_sum, q_sum = sum(p), sum(q)
        divergence = math.fsum(
            p[i] / p_sum * math.log((p[i] / p_sum) / (q[i] / q_sum)) for i in range(kept) if p[i] > 0
        )
        if divergence < least:
            least, best = divergence, kept
    return (best + 0.5) * width


@pytest.mark.parametrize("kind", ["relu", "outliers", "heavy-tail", "few"])
def test_entropy_is_the_published_algorithm(kind: str) -> None:
    observer = _observer(_values(kind))
    threshold = _entropy_by_the_book([float(count) for count in observer.counts], observer.limit / 2048)
    assert methods.entropy(observer) == pytest.approx(min(threshold, observer.amax), rel=1e-12)


def test_entropy_clips_outliers() -> None:
    observer = _observer(_values("outliers"))
    assert methods.entropy(observer) < observer.amax / 4


def test_the_zeros_of_a_relu_do_not_move_the_entropy_threshold() -> None:
    values = _values("relu")
    with_more_zeros = np.append(values, np.zeros((500_000, 1), np.float32), axis=0)
    assert methods.entropy(_observer(with_more_zeros)) == methods.entropy(_observer(values))


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_the_exact_maximum(kind: str) -> None:
    values = _values(kind)
    assert methods.minmax(_observer(values)) == float(np.abs(values).max())


@pytest.mark.parametrize("share", [50.0, 90.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_percentile_is_within_a_bin_above_that_of_the_raw_values(kind: str, share: float) -> None:
    values = _values(kind)
    observer = _observer(values)
    raw = float(np.percentile(np.abs(values).astype(np.float64), share, method="inverted_cdf"))
    assert raw <= methods.percentile(observer, share) <= raw + observer.limit / 2048


def _error(values: Values, amax: float) -> float:
    """Mean squared error of rounding to int8 with scale amax/127 and clipping."""
    magnitude, scale = np.abs(values).astype(np.float64), amax / 127
    return float(np.mean((np.minimum(np.round(magnitude / scale), 127) * scale - magnitude) ** 2))


@pytest.mark.parametrize("kind", ["normal", "relu", "outliers", "heavy-tail", "uniform"])
def test_mse_is_as_good_as_the_best_of_a_brute_force_search(kind: str) -> None:
    values = _values(kind)
    observer = _observer(values)
    best = min(_error(values, observer.amax * i / 1000) for i in range(1, 1001))
    assert _error(values, methods.mse(observer)) <= 1.02 * best


@pytest.mark.parametrize("method", sorted(methods.METHODS))
@pytest.mark.parametrize("kind", KINDS)
def test_no_range_is_above_the_largest_value(kind: str, method: str) -> None:
    observer = _observer(_values(kind))
    assert 0 < methods.METHODS[method](observer) <= observer.amax


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_ranges_scale_with_the_values(method: str) -> None:
    values = _values("heavy-tail")
    once, eight_times = _observer(values), _observer(values * np.float32(8))
    assert methods.METHODS[method](eight_times) == 8 * methods.METHODS[method](once)


def test_ranges_holds_every_method() -> None:
    observer = _observer(_values("normal"))
    expected = {
        "minmax": methods.minmax(observer),
        "entropy": methods.entropy(observer),
        "percentile": methods.percentile(observer, 99.99),
        "mse": methods.mse(observer),
    }
    assert methods.ranges(observer) == expected


@pytest.mark.parametrize("share", [50.1, 99.0, 99.9, 100.0])
def test_the_share_of_the_percentile_changes_no_other_range(share: float) -> None:
    observer = _observer(_values("heavy-tail"))
    default = methods.ranges(observer)
    assert methods.ranges(observer, share) == {**default, "percentile": methods.percentile(observer, share)}


def test_a_larger_share_never_gives_a_smaller_range() -> None:
    observer = _observer(_values("heavy-tail"))
    found = [methods.ranges(observer, share)["percentile"] for share in np.linspace(50.5, 100, 100)]
    assert found == sorted(found)
    assert (found[0] < found[-1], found[-1]) == (True, observer.amax)


def test_a_tensor_that_is_always_zero_has_zero_ranges() -> None:
    ranges = methods.ranges(_observer(np.zeros((4, 9), np.float32)))
    assert ranges == {"minmax": 0.0, "entropy": 0.0, "percentile": 0.0, "mse": 0.0}


def test_the_methods_leave_the_histogram_as_it_was() -> None:
    observer = _observer(_values("relu"))
    before = observer.counts.copy()
    methods.ranges(observer)
    np.testing.assert_array_equal(observer.counts, before)


@pytest.mark.parametrize("size", [1.0, 0.7, 3.0])
def test_entropy_clips_nothing_where_all_values_have_one_size(size: float) -> None:
    assert methods.entropy(_observer(np.array([[0, size, -size, size]], np.float32))) == np.float32(size)
