"""From a histogram of |x| to the largest magnitude that INT8 should represent (amax; scale = amax/127).

Pure NumPy. Every method reads the same observer, so one pass over the data serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from alexdeploy.quantize.observer import BINS, ActivationObserver

LEVELS = 128  # non-negative int8 levels
PERCENTILE = 99.99
_MSE_CANDIDATES = 256

Floats = npt.NDArray[np.float64]


def minmax(observer: ActivationObserver) -> float:
    """The largest |x| seen: nothing is clipped."""
    return observer.amax


def percentile(observer: ActivationObserver, share: float = PERCENTILE) -> float:
    """The upper edge of the bin that holds the ``share``-th percentile of |x|; never above the largest |x|."""
    cumulative = np.cumsum(observer.counts)
    kept = int(np.searchsorted(cumulative, share / 100 * cumulative[-1]))
    return min((kept + 1) * _width(observer), observer.amax)


def entropy(observer: ActivationObserver) -> float:
    """The threshold whose 128-level version diverges least (KL) from the clipped histogram.

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017: for each i from 128 to 2048, P is the first i bins with all
    outliers added to the last of them, Q the same bins *without* the outliers merged into 128 levels and spread back
    over P's non-empty bins; the threshold is (i + 0.5) bin widths. Never above the largest |x|. As in NVIDIA's
    pytorch-quantization the first bin counts like the second: the zeros of a ReLU are exact at any scale, and would
    otherwise outweigh everything else.
    """
    counts = observer.counts.astype(np.float64)
    counts[0] = counts[1]
    kept = np.arange(LEVELS, BINS + 1)
    divergences = _divergences(counts, kept)
    if np.isinf(divergences).all():  # all in one bin: nothing tells where to clip
        return observer.amax
    best = int(kept[np.argmin(divergences)])
    return min((best + 0.5) * _width(observer), observer.amax)


def _divergences(counts: Floats, kept: npt.NDArray[np.int64]) -> Floats:
    """KL(P‖Q) of the first ``kept`` bins against their 128-level version, for every entry of ``kept`` at once.

    Inf where Q is empty and P is not, and for a single non-empty bin, which is always like itself. With c the counts,
    S and m the sum and the number of non-empty bins of a level: KL = Σ P·log P - Σ over levels of P·log(S/m/ΣS).
    """
    below = np.append(0.0, np.cumsum(counts))
    filled = np.append(0, np.cumsum(counts > 0))
    last, outliers = counts[kept - 1], below[-1] - below[kept]
    edges = np.arange(LEVELS + 1)[None, :] * kept[:, None] // LEVELS
    sums = np.diff(below[edges], axis=1)
    # an outlier makes the last bin of P non-empty whatever was counted in it
    members = np.diff(filled[edges], axis=1)
    members[:, -1] += (last == 0) & (outliers > 0)
    reference = sums.copy()  # P summed over each level
    reference[:, -1] += outliers
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(sums / members / below[kept][:, None])
        cross = np.where(reference > 0, reference * log_q, 0.0).sum(axis=1)
    entropies = np.append(0.0, np.cumsum(_x_log_x(counts)))[kept] - _x_log_x(last) + _x_log_x(last + outliers)
    total = below[-1]
    divergence = (entropies - cross) / total - np.log(total)
    return np.where(members.sum(axis=1) < 2, np.inf, divergence)


def _x_log_x(x: Floats) -> Floats:
    return x * np.log(np.where(x > 0, x, 1.0))


def mse(observer: ActivationObserver) -> float:
    """The threshold with the least mean squared error of rounding and clipping, values taken at bin centres."""
    width = _width(observer)
    centres = (np.arange(BINS) + 0.5) * width
    weights = observer.counts.astype(np.float64)
    candidates = observer.amax * np.arange(1, _MSE_CANDIDATES + 1) / _MSE_CANDIDATES
    scales = candidates[:, None] / (LEVELS - 1)
    restored = np.minimum(np.rint(centres / scales), LEVELS - 1) * scales
    errors = ((restored - centres) ** 2) @ weights
    return float(candidates[int(np.argmin(errors))])


def _width(observer: ActivationObserver) -> float:
    return observer.limit / BINS


METHODS: dict[str, Callable[[ActivationObserver], float]] = {
    "minmax": minmax,
    "entropy": entropy,
    "percentile": percentile,
    "mse": mse,
}


def ranges(observer: ActivationObserver, share: float = PERCENTILE) -> dict[str, float]:
    """The amax by method, ``percentile`` at ``share``; all zero for a tensor that was always zero."""
    if observer.amax == 0.0:
        return dict.fromkeys(METHODS, 0.0)
    return {name: method(observer) for name, method in METHODS.items()} | {"percentile": percentile(observer, share)}
