from __future__ import annotations

import numpy as np
import pytest

from alexdeploy.metrics import agreement, relative_error, rerun_tolerance, topk_accuracy
from alexdeploy.specs import Precision

LOGITS = np.array([[9, 5, 1, 0], [0, 1, 5, 9], [5, 9, 1, 0], [1, 0, 9, 5]], dtype=np.float32)
LABELS = np.array([0, 2, 2, 3])


def test_relative_error_is_the_largest_difference_over_the_largest_reference() -> None:
    assert relative_error(np.array([1.0, -3.0]), np.array([1.5, -4.0])) == 0.25


def test_half_precision_is_compared_without_overflow() -> None:
    assert relative_error(np.array([60000], np.float16), np.array([-60000], np.float16)) == 2.0


@pytest.mark.filterwarnings("error")  # of inf - inf
@pytest.mark.parametrize(
    ("actual", "reference", "expected"),
    [(0.0, 0.0, 0.0), (1.0, 0.0, np.inf), (np.nan, 1.0, np.inf), (1.0, np.nan, np.inf), (np.inf, np.inf, np.inf)],
)
def test_relative_error_of_extreme_values(actual: float, reference: float, expected: float) -> None:
    assert relative_error(np.array([actual]), np.array([reference])) == expected


def test_agreement_is_the_share_of_rows_with_the_same_top_class() -> None:
    assert agreement(LOGITS, LOGITS[[0, 1, 3, 2]]) == 0.5


@pytest.mark.parametrize(("k", "expected"), [(1, 0.25), (2, 0.75), (3, 1.0), (5, 1.0)])
def test_top_k_accuracy_counts_labels_among_the_k_largest(k: int, expected: float) -> None:
    assert topk_accuracy(LOGITS, LABELS, k) == expected


def test_what_two_runs_may_differ_by_grows_with_the_steps_between_numbers() -> None:
    found = {precision: rerun_tolerance(precision) for precision in Precision}
    steps = {Precision.FP32: 2**-24, Precision.FP16: 2**-11, Precision.BF16: 2**-8, Precision.INT8: 1 / 127}
    assert all(found[precision] > step for precision, step in steps.items())
    assert found[Precision.FP32] < found[Precision.FP16] < found[Precision.BF16] == found[Precision.INT8]
    assert found[Precision.INT8_FP16] == found[Precision.INT8]
    assert max(found.values()) < 0.05  # far less than what another network differs by
