from __future__ import annotations

import numpy as np
import pytest

from alexdeploy.graph.qdq import quantize_weight
from alexdeploy.quantize.rounding import DAMPING, round_by_error
from tests.helpers.graphs import Array


def literal_gptq(rows: Array, scales: Array, covariance: Array) -> Array:
    """Algorithm 1 of the paper without its blocks: the inverse is updated by Gaussian elimination at each column."""
    order = np.argsort(-np.diag(covariance), kind="stable")
    inverse = np.linalg.inv(
        covariance[np.ix_(order, order)] + DAMPING * np.diag(covariance).mean() * np.eye(len(order))
    )
    weights, levels = rows[:, order].copy(), np.zeros_like(rows)
    for k in range(len(order)):
        level = np.clip(np.rint(weights[:, k] / scales), -127, 127)
        levels[:, order[k]] = level
        error = (weights[:, k] - level * scales) / inverse[k, k]
        weights[:, k:] -= np.outer(error, inverse[k, k:])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return levels


def correlated(inputs: int, seed: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    samples = random.standard_normal((400, 12)) @ random.standard_normal((12, inputs))
    samples += 0.3 * random.standard_normal((400, inputs))
    return random.standard_normal((7, inputs)), np.cov(samples.T)


@pytest.mark.parametrize("inputs", [5, 64, 150])
def test_the_integers_are_those_of_the_paper(inputs: int) -> None:
    rows, covariance = correlated(inputs, inputs)
    _, scales = quantize_weight(rows, 0)
    expected = literal_gptq(rows, scales.astype(np.float64), covariance)
    np.testing.assert_array_equal(round_by_error(rows, scales, covariance), expected)


def test_the_output_varies_less_than_with_each_weight_rounded_to_the_nearest() -> None:
    rows, covariance = correlated(80, 3)
    levels, scales = quantize_weight(rows, 0)

    def error(found: Array) -> float:
        left = rows - found * scales[:, None].astype(np.float64)
        return float(np.einsum("ok,kl,ol->", left, covariance, left))

    assert error(round_by_error(rows, scales, covariance)) < 0.25 * error(levels)


def test_inputs_that_never_vary_are_rounded_to_the_nearest() -> None:
    rows = np.random.default_rng(1).standard_normal((3, 6))
    levels, scales = quantize_weight(rows, 0)
    np.testing.assert_array_equal(round_by_error(rows, scales, np.zeros((6, 6))), levels)


def test_no_level_leaves_int8_however_much_there_is_to_make_up_for() -> None:
    rows = np.array([[1.0, 1.0, 1.0, 1.0]])
    covariance = np.full((4, 4), 1.0) + 1e-6 * np.eye(4)
    found = round_by_error(rows, np.array([1 / 127.4], np.float32), covariance)
    assert np.abs(found).max() == 127


def test_a_covariance_that_rounding_left_indefinite_is_damped_until_it_is_not() -> None:
    rows, covariance = correlated(40, 4)
    values, vectors = np.linalg.eigh(covariance)
    broken = covariance - (values[0] + 5 * DAMPING * np.diag(covariance).mean()) * np.outer(
        vectors[:, 0], vectors[:, 0]
    )
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(broken + DAMPING * np.diag(broken).mean() * np.eye(40))
    levels, scales = quantize_weight(rows, 0)
    found = round_by_error(rows, scales, broken)

    def error(rounded: Array) -> float:
        left = rows - rounded * scales[:, None].astype(np.float64)
        return float(np.einsum("ok,kl,ol->", left, covariance, left))

    assert error(found) < 0.5 * error(levels)


def test_rows_are_rounded_alike_however_many_there_are() -> None:
    _, covariance = correlated(70, 5)
    rows = np.random.default_rng(2).standard_normal((1100, 70))
    _, scales = quantize_weight(rows, 0)
    whole = round_by_error(rows, scales, covariance)
    some = [0, 511, 512, 1023, 1024, 1099]
    np.testing.assert_array_equal(whole[some], round_by_error(rows[some], scales[some], covariance))
