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

Floats = npt.NDArray[np.float64]


def round_by_error(rows: Floats, scales: npt.NDArray[np.float32], covariance: npt.NDArray[np.floating]) -> Floats:
    """Integers q in [-127, 127] for which (rows - scales · q) · x varies little over the inputs x.

    The columns are taken in the order of falling variance. With the covariance factored as U·D·Uᵀ, U upper triangular
    with ones on its diagonal, the k-th is rounded from w_k + Σ_{i<k} (w_i - s·q_i)·U_ik: the same integers as GPTQ's
    updates by the inverse of the covariance (J. Chee et al., "QuIP", NeurIPS 2023, theorem 6), without the inverse.

    Args:
        rows: (n, K) weights.
        scales: (n,) the step of each row.
        covariance: (K, K) of the inputs.

    Returns:
        (n, K), whole numbers.
    """
    variance = np.diag(covariance).astype(np.float64)
    order = np.argsort(-variance, kind="stable")
    damped = covariance[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * variance.mean() + np.finfo(np.float32).tiny
    factor = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # upper triangular
    factor = factor / np.diag(factor)
    weights, step = rows[:, order], scales.astype(np.float64)
    levels, errors = np.empty_like(weights), np.zeros_like(weights)
    for start in range(0, len(order), _STEP):
        stop = min(start + _STEP, len(order))
        wanted = weights[:, start:stop] + errors[:, :start] @ factor[:start, start:stop]
        for k in range(start, stop):
            moved = wanted[:, k - start] + errors[:, start:k] @ factor[start:k, k]
            levels[:, k] = np.clip(np.rint(moved / step), -INT8_MAX, INT8_MAX)
            errors[:, k] = weights[:, k] - levels[:, k] * step
    result = np.empty_like(levels)
    result[:, order] = levels
    return result
