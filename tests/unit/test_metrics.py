from __future__ import annotations

import numpy as np
import pytest

from alexdeploy.metrics import agreement, relative_error, topk_accuracy

LOGITS = np.array([[9, 5, 1, 0], [0, 1, 5, 9], [5, 9, 1, 0], [1, 0, 9, 5]], dtype=np.float32)
LABELS = np.array([0, 2, 2, 3])


def test_relative_error_is_the_largest_difference_over_the_largest_reference() -> None:
    assert relative_error(np.array([1.0, -3.0]), np.array([1.5, -4.0])) == 0.25


def test_half_precision_is_compared_without_overflow() -> None:
    assert relative_error(np.array([60000], np.float16), np.array([-60000], np.float16)) == 2.0


@pytest.mark.filterwarnings("ignore:invalid value")  # inf - inf
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
