"""Rounding weights so that what the layer gives changes least, instead of each weight to the nearest integer.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023, after
the Optimal Brain Quantizer of E. Frantar and D. Alistarh, NeurIPS 2022: column by column the weights are rounded, and
what the rounding of one column does to the layer's output is made up for by the columns not yet rounded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alexdeploy.graph.qdq import INT8_MAX

DAMPING = 0.01  # of the mean variance, added to each, as in the paper
_STEP = 64  # columns between two updates of all those behind them
_ROWS = 512  # at once, so that memory does not grow with their number

Floats = npt.NDArray[np.float64]


def round_by_error(
    rows: npt.NDArray[np.floating], scales: npt.NDArray[np.float32], covariance: npt.NDArray[np.floating]
) -> npt.NDArray[np.int8]:
    """Integers q in [-127, 127] for which (rows - scales · q) · x varies little over the inputs x.

    The columns are taken in the order of falling variance. With the covariance factored as U·D·Uᵀ, U upper triangular
    with ones on its diagonal, the k-th is rounded from w_k + Σ_{i<k} (w_i - s·q_i)·U_ik: the same integers as GPTQ's
    updates by the inverse of the covariance (J. Chee et al., "QuIP", NeurIPS 2023, theorem 6), without the inverse.

    Args:
        rows: (n, K) weights.
        scales: (n,) the step of each row.
        covariance: (K, K) of the inputs, finite.

    Returns:
        (n, K).
    """
    variance = np.maximum(np.diag(covariance), 0).astype(np.float64)
    order = np.argsort(-variance, kind="stable")
    factor = _factor(covariance[np.ix_(order, order)].astype(np.float64), DAMPING * variance.mean())
    result = np.empty(rows.shape, np.int8)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        result[part, order] = _rounded(rows[part, order].astype(np.float64), scales[part].astype(np.float64), factor)
    return result


def _factor(covariance: Floats, damping: float) -> Floats:
    """U of U·D·Uᵀ. Where rounding left the covariance with a negative eigenvalue, with ten times the damping."""
    damping += float(np.finfo(np.float32).tiny)
    diagonal = np.diag(covariance).copy()
    while True:
        covariance[np.diag_indices_from(covariance)] = diagonal + damping
        try:
            factor = np.linalg.cholesky(covariance[::-1, ::-1])[::-1, ::-1]  # upper triangular
        except np.linalg.LinAlgError:
            damping *= 10
        else:
            return np.asarray(factor / np.diag(factor))


def _rounded(weights: Floats, step: Floats, factor: Floats) -> Floats:
    """The levels of some rows, columns in the order of the factor."""
    levels, errors = np.empty_like(weights), np.zeros_like(weights)
    for start in range(0, len(factor), _STEP):
        stop = min(start + _STEP, len(factor))
        wanted = weights[:, start:stop] + errors[:, :start] @ factor[:start, start:stop]
        for k in range(start, stop):
            moved = wanted[:, k - start] + errors[:, start:k] @ factor[start:k, k]
            levels[:, k] = np.clip(np.rint(moved / step), -INT8_MAX, INT8_MAX)
            errors[:, k] = weights[:, k] - levels[:, k] * step
    return levels
