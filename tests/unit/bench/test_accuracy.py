from __future__ import annotations

import math

import numpy as np
import pytest

from alexdeploy.bench.accuracy import judge, mcnemar


def logits_for(answers: list[int], classes: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.eye(classes, dtype=np.float32)[answers]


def test_precision_recall_and_confusion_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    found = judge("a", "r", logits_for([0, 0, 1, 1, 0, 0], 3), labels, None)
    assert found.confusion == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert found.precision == pytest.approx([2 / 4, 1 / 2, 0])
    assert found.recall == pytest.approx([2 / 3, 1 / 2, 0])
    assert found.wrong == [2, 4, 5]
    assert found.mcnemar is None


def test_a_matrix_of_many_classes_is_left_out() -> None:
    found = judge("a", "r", logits_for([0], 101), np.array([0]), [])
    assert found.confusion is None
    assert len(found.recall) == 101


@pytest.mark.parametrize(("lost", "won"), [(1, 0), (5, 0), (8, 2), (3, 3), (2, 8)])
def test_mcnemar_counts_what_only_one_gets_right(lost: int, won: int) -> None:
    """P(X >= lost) of lost + won fair coins, term by term; images that both get wrong do not matter."""
    both = list(range(100, 120))
    found = mcnemar(both + list(range(lost)), both + list(range(50, 50 + won)))
    assert (found.only_reference_right, found.only_this_right) == (lost, won)
    n = lost + won
    assert found.p_worse == pytest.approx(sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n)


def test_no_difference_at_all_is_no_evidence() -> None:
    assert mcnemar([1, 2], [1, 2]).p_worse == 1.0
