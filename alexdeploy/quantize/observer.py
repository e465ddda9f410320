"""The statistics of one activation during calibration, in constant memory for any number of images."""

from __future__ import annotations

import math
from threading import Lock

import numpy as np
import numpy.typing as npt

from alexdeploy.errors import InputError

BINS = 2048
_BLOCK = 1 << 15
_SMALLEST_LIMIT = 2.0**-100  # so that BINS / limit is a float32


class ActivationObserver:
    """A histogram of |x| over ``BINS`` equal bins from 0 to ``limit``, its exact maximum, and the samples seen.

    ``limit`` is the smallest power of two above every value so far. When a larger value arrives it doubles and
    neighbouring bins merge; with powers of two that is exact, so the histogram depends neither on the order of the
    samples nor on how they were batched, nor on which thread brings them.

    Attributes:
        name: the tensor, for messages.
        counts: int64 (BINS,), values per bin.
        limit: upper edge of the last bin; 0 before the first non-zero value.
        amax: largest |x| so far, exact.
        minimum: smallest x so far, exact; 0 when none is negative.
        samples: images seen so far.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.limit = 0.0
        self.amax = 0.0
        self.minimum = 0.0
        self.samples = 0
        self._zeros = 0  # values seen while limit is still 0
        self._lock = Lock()

    @property
    def values(self) -> int:
        """Values seen so far, of all samples."""
        return self._zeros if self.limit == 0.0 else int(self.counts.sum())

    def update(self, batch: npt.NDArray[np.floating], first: int | None = None, *, samples: int | None = None) -> None:
        """Add what a batch of images gave.

        Args:
            batch: the tensor, of any shape; its first axis runs over the samples, or over equal parts of them.
            first: the number of its first sample, when out of order.
            samples: how many there are, where that is not the length of the first axis.

        Raises:
            InputError: NaN or Inf, naming tensor and sample.
        """
        samples = len(batch) if samples is None else samples
        low, high = (float(batch.min()), float(batch.max())) if batch.size else (0.0, 0.0)
        largest = max(high, -low)
        if not np.isfinite(largest):
            self._refuse(batch, self.samples if first is None else first, samples)
        with self._lock:
            self.samples += samples
            self.amax = max(self.amax, largest)
            self.minimum = min(self.minimum, low)
            if self.amax == 0.0:
                self._zeros += batch.size
                return
            self._grow(largest)
            limit = self.limit
        counts = _histogram(batch.reshape(-1), limit, signed=low < 0)  # threads do this at the same time
        with self._lock:
            while limit < self.limit:  # another thread brought a larger value meanwhile
                counts, limit = _halved(counts), limit * 2
            self.counts += counts

    def _grow(self, largest: float) -> None:
        if self.limit == 0.0:
            self.limit = max(_SMALLEST_LIMIT, math.ldexp(1.0, math.frexp(largest)[1]))
            self.counts[0] += self._zeros
        while largest >= self.limit:
            self.counts = _halved(self.counts)
            self.limit *= 2

    def _refuse(self, batch: npt.NDArray[np.floating], first: int, samples: int) -> None:
        finite = np.isfinite(batch.reshape(len(batch), -1)).all(axis=1)
        sample = first + int(np.argmin(finite)) * samples // len(batch)
        raise InputError(
            f"calibration: tensor '{self.name}' holds NaN or Inf at sample {sample}; "
            "check that image and the model's weights"
        )


def _histogram(values: npt.NDArray[np.floating], limit: float, *, signed: bool) -> npt.NDArray[np.int64]:
    """Counts (BINS,) of |x| from 0 to ``limit``, in blocks that stay in the cache (three times as fast as whole)."""
    scaled, bins = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int64)
    counts = np.zeros(BINS, np.int64)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        into, index = scaled[: block.size], bins[: block.size]
        np.multiply(block, np.float32(BINS / limit), out=into)
        if signed:
            np.abs(into, out=into)
        np.copyto(index, into, casting="unsafe")
        counts += np.bincount(index, minlength=BINS)
    return counts


def _halved(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The histogram over twice the limit: neighbouring bins merged, the upper half empty."""
    return np.concatenate([counts.reshape(BINS // 2, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
