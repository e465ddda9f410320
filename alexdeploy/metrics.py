"""Numbers that say how far two sets of outputs are apart. Pure NumPy; every function takes the reference second."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alexdeploy.specs import Precision

FloatArray = npt.NDArray[np.floating]

PARITY_TOLERANCE = 1e-5
HALF_TOLERANCE = 2e-3  # of a graph that computes in FP16, which rounds to 5e-4
# of bfloat16, which rounds to 4e-3, and of Q/DQ: where a value lies halfway between two levels, its last bit decides
# which one it gets (alexnet-half in INT8: 5e-3 when its inputs move by 1e-5, 0 when they move by 1e-6)
COARSE_TOLERANCE = 2e-2


def rerun_tolerance(precision: Precision) -> float:
    """Relative error that two runs of one file may have, on machines of different kinds."""
    if precision.quantized or precision.bf16:
        return COARSE_TOLERANCE
    return HALF_TOLERANCE if precision.fp16 else PARITY_TOLERANCE


def relative_error(actual: FloatArray, reference: FloatArray) -> float:
    """max|actual - reference| / max|reference| (0 for two all-zero arrays); inf when a value is not finite."""
    with np.errstate(invalid="ignore"):  # infinity less infinity, which is found below
        difference = float(np.max(np.abs(actual.astype(np.float64) - reference.astype(np.float64)), initial=0.0))
    scale = float(np.max(np.abs(reference), initial=0.0))
    if not np.isfinite(difference) or not np.isfinite(scale):
        return float("inf")
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")


def softmax(logits: FloatArray) -> FloatArray:
    """(N, classes) logits → probabilities of the same shape and type."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: FloatArray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def agreement(actual: FloatArray, reference: FloatArray) -> float:
    """Share of rows of (N, classes) logits whose largest entry is at the same class."""
    return float(np.mean(np.argmax(actual, axis=1) == np.argmax(reference, axis=1)))


def topk_accuracy(logits: FloatArray, labels: npt.NDArray[np.integer], k: int) -> float:
    """Share of rows of (N, classes) logits whose label is among the ``k`` largest; ``k`` is capped at the classes."""
    k = min(k, logits.shape[1])
    best = np.argpartition(logits, -k, axis=1)[:, -k:]
    return float(np.mean(np.any(best == labels[:, None], axis=1)))


def sqnr_db(actual: FloatArray, reference: FloatArray) -> float:
    """Signal-to-quantization-noise ratio, 10·log10(Σ reference² / Σ (actual - reference)²); inf for no difference."""
    exact = reference.astype(np.float64)
    noise = float(np.sum((actual.astype(np.float64) - exact) ** 2))
    signal = float(np.sum(exact**2))
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")
