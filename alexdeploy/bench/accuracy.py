"""Accuracy of one artifact on one runtime, and whether it is worse than the reference on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Labels

_MOST_CLASSES_SHOWN = 100


@dataclass(frozen=True)
class McNemar:
    """Images that only one of the two gets right; ``p_worse`` is the one-sided exact test that this one is worse."""

    only_reference_right: int
    only_this_right: int
    p_worse: float


@dataclass(frozen=True)
class Accuracy:
    """Beyond top-1, of one artifact on one runtime.

    ``precision`` and ``recall`` are per class, in label order; None for a class that no image is of, and a precision
    of 0 where a class was never answered.
    ``confusion[true][answered]`` counts images, and is left out above 100 classes. ``wrong`` are the positions of the
    images answered wrongly.
    """

    artifact: str
    runtime: str
    precision: list[float | None]
    recall: list[float | None]
    confusion: list[list[int]] | None
    wrong: list[int]
    mcnemar: McNemar | None


def judge(
    artifact: str, runtime: str, logits: npt.NDArray[np.float32], labels: Labels, reference_wrong: list[int] | None
) -> Accuracy:
    """Judge (N, classes) logits; ``reference_wrong`` is None for the reference itself."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = np.arange(logits.shape[1])
    answers = np.argmax(logits, axis=1)
    precision, recall, _, images = precision_recall_fscore_support(labels, answers, labels=classes, zero_division=0.0)
    confusion = (
        confusion_matrix(labels, answers, labels=classes).tolist() if len(classes) <= _MOST_CLASSES_SHOWN else None
    )
    wrong = np.flatnonzero(answers != labels).tolist()
    return Accuracy(
        artifact=artifact,
        runtime=runtime,
        precision=[float(share) if count else None for share, count in zip(precision, images, strict=True)],
        recall=[float(share) if count else None for share, count in zip(recall, images, strict=True)],
        confusion=confusion,
        wrong=wrong,
        mcnemar=mcnemar(wrong, reference_wrong) if reference_wrong is not None else None,
    )


def mcnemar(wrong: list[int], reference_wrong: list[int]) -> McNemar:
    """The exact binomial form of McNemar's test (Psychometrika 12, 1947), one-sided."""
    from scipy.stats import binomtest

    lost, won = len(set(wrong) - set(reference_wrong)), len(set(reference_wrong) - set(wrong))
    p_worse = float(binomtest(lost, lost + won, 0.5, alternative="greater").pvalue) if lost + won else 1.0
    return McNemar(lost, won, p_worse)
