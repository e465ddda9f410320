from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from alexdeploy.errors import InputError
from alexdeploy.quantize.observer import ActivationObserver

Batch = npt.NDArray[np.float32]


def _observe(*batches: Batch) -> ActivationObserver:
    observer = ActivationObserver("conv1")
    for batch in batches:
        observer.update(batch)
    return observer


def _activations(kind: str = "signed") -> Batch:
    """Twelve samples of rising magnitude, so that the limit doubles several times on the way."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((12, 3, 5, 7)) * np.geomspace(0.01, 40, 12).reshape(-1, 1, 1, 1)
    return (np.maximum(values, 0) if kind == "relu" else values).astype(np.float32)


@pytest.mark.parametrize("kind", ["signed", "relu"])
@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e20])
def test_the_histogram_is_that_of_all_batches_at_once(kind: str, factor: float) -> None:
    values = _activations(kind) * np.float32(factor)
    observer = _observe(*np.array_split(values, 5))
    expected, _ = np.histogram(np.abs(values).astype(np.float64), bins=2048, range=(0, observer.limit))
    np.testing.assert_array_equal(observer.counts, expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_large_batch_is_counted_to_its_last_value(channels_last: bool) -> None:
    values = np.random.default_rng(0).standard_normal((3, 13, 53, 59)).astype(np.float32)
    observer = _observe(np.moveaxis(values, 1, -1) if channels_last else values)
    expected, _ = np.histogram(np.abs(values).astype(np.float64), bins=2048, range=(0, observer.limit))
    np.testing.assert_array_equal(observer.counts, expected)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_neither_order_nor_batching_changes_a_bit(batch_size: int, seed: int | None) -> None:
    values = _activations("relu")
    order = np.arange(12) if seed is None else np.random.default_rng(seed).permutation(12)
    observer = _observe(*(values[order[i : i + batch_size]] for i in range(0, 12, batch_size)))
    reference = _observe(values)
    np.testing.assert_array_equal(observer.counts, reference.counts)
    assert (observer.limit, observer.amax, observer.samples) == (reference.limit, reference.amax, 12)


@pytest.mark.parametrize("first", [1.0, 0.25, 4.0])
def test_a_power_of_two_lands_in_the_same_bin_before_and_after_a_larger_value(first: float) -> None:
    small, large = np.array([[[first]], [[first * 1.5]]], np.float32)
    np.testing.assert_array_equal(_observe(small, large).counts, _observe(large, small).counts)


@pytest.mark.parametrize("amplified", range(4))
def test_every_batch_counts(amplified: int) -> None:
    batches = np.array_split(_activations(), 4)
    batches[amplified] = batches[amplified] * np.float32(1e4)
    assert _observe(*batches).amax == float(np.abs(batches[amplified]).max())


@pytest.mark.parametrize("value", [0.3, -0.7, 1.0, -64.0, 1e-30, 3e38])
def test_the_maximum_is_exact_and_the_limit_is_the_power_of_two_that_holds_it(value: float) -> None:
    observer = _observe(np.array([[0.0, value]], np.float32))
    assert observer.amax == abs(float(np.float32(value)))
    assert math.frexp(observer.limit)[0] == 0.5
    assert observer.amax <= observer.limit <= 2 * observer.amax


@pytest.mark.parametrize("value", [1e-36, 1e-37, 1e-44])
def test_values_near_the_smallest_float_are_counted(value: float) -> None:
    observer = _observe(np.array([[0.0, value]], np.float32))
    assert (observer.counts.sum(), observer.amax) == (2, float(np.float32(value)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_reported_with_tensor_and_sample(bad: float) -> None:
    observer = _observe(np.ones((3, 4), np.float32), np.ones((2, 4), np.float32))
    batch = np.ones((4, 4), np.float32)
    batch[2, 1] = bad
    with pytest.raises(InputError, match=r"tensor 'conv1' holds NaN or Inf at sample 7\b"):
        observer.update(batch)


def test_a_tensor_that_is_always_zero_has_no_range_but_was_seen() -> None:
    observer = _observe(np.zeros((3, 8), np.float32), np.zeros((2, 8), np.float32))
    assert (observer.amax, observer.limit, observer.samples) == (0.0, 0.0, 5)


def test_zeros_before_the_first_value_are_counted() -> None:
    zeros, ones = np.zeros((3, 8), np.float32), np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(_observe(zeros, zeros, ones).counts, _observe(ones, zeros, zeros).counts)
    assert _observe(zeros, zeros, ones).counts[0] == 48


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_give_the_histogram_of_their_float32_values(dtype: type[np.floating]) -> None:
    values = _activations().astype(dtype)
    observer = ActivationObserver("a")
    observer.update(values)
    np.testing.assert_array_equal(observer.counts, _observe(values.astype(np.float32)).counts)


def test_the_batch_is_left_as_it_was() -> None:
    values = _activations()
    _observe(values)
    np.testing.assert_array_equal(values, _activations())


def test_threads_that_bring_rising_values_at_the_same_time_count_each_once() -> None:
    values = np.random.default_rng(0).standard_normal((64, 20_000)).astype(np.float32)
    values *= np.geomspace(0.01, 40, 64, dtype=np.float32).reshape(-1, 1)
    observer = ActivationObserver("conv1")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(observer.update, np.array_split(values, 32)))
    np.testing.assert_array_equal(observer.counts, _observe(values).counts)
    assert observer.values == values.size
