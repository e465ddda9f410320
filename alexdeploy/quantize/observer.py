"""What is remembered of an activation while calibrating: a constant amount, whatever the number of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alexdeploy.errors import InputError

BINS = 2048


class ActivationObserver:
    """A histogram of |x| over ``BINS`` equal bins from 0 to ``limit``, its exact maximum, and the samples seen.

    ``limit`` is the smallest power of two that holds every value so far. When a larger value arrives it doubles and
    neighbouring bins merge; with powers of two that is exact, so the histogram depends neither on the order of the
    samples nor on how they were batched.

    Attributes:
        name: the tensor, for messages.
        counts: int64 (BINS,), values per bin.
        limit: upper edge of the last bin; 0 before the first non-zero value.
        amax: largest |x| so far, exact.
        samples: images seen so far.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.limit = 0.0
        self.amax = 0.0
        self.samples = 0
        self._zeros = 0  # values seen while limit is still 0

    def update(self, batch: npt.NDArray[np.floating]) -> None:
        """Add a batch whose first axis is the sample.

        Raises:
            InputError: NaN or Inf, naming tensor and sample.
        """
        magnitude = np.abs(batch, dtype=np.float32)
        largest = float(magnitude.max(initial=0.0))
        if not np.isfinite(largest):
            self._refuse(magnitude)
        self.samples += len(batch)
        self.amax = max(self.amax, largest)
        if self.amax == 0.0:
            self._zeros += magnitude.size
            return
        self._grow(largest)
        self._count(magnitude)

    def _count(self, magnitude: npt.NDArray[np.float32]) -> None:
        magnitude *= np.float32(BINS / self.limit)
        bins = magnitude.astype(np.int32).reshape(-1)
        np.minimum(bins, BINS - 1, out=bins)
        self.counts += np.bincount(bins, minlength=BINS)

    def _grow(self, largest: float) -> None:
        if self.limit == 0.0:
            self.limit = float(2.0 ** np.ceil(np.log2(largest)))
            self.counts[0] += self._zeros
        while largest > self.limit:
            merged = self.counts.reshape(BINS // 2, 2).sum(axis=1)
            self.counts[: BINS // 2] = merged
            self.counts[BINS // 2 :] = 0
            self.limit *= 2

    def _refuse(self, magnitude: npt.NDArray[np.float32]) -> None:
        finite = np.isfinite(magnitude.reshape(len(magnitude), -1)).all(axis=1)
        sample = self.samples + int(np.argmin(finite))
        raise InputError(
            f"calibration: tensor '{self.name}' holds NaN or Inf at sample {sample}; "
            "check that image and the model's weights"
        )
