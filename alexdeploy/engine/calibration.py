"""TensorRT 10's own INT8 calibration, for engines whose types TensorRT chooses itself (weakly typed, "implicit").

NVIDIA deprecated it in 10.1 and removed it in 11; Q/DQ in the graph is the way that works everywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from alexdeploy.arrays import Batch
from alexdeploy.cuda.open import open_device
from alexdeploy.engine.versions import Library
from alexdeploy.errors import GateError

Batches = Iterator[Batch]


class Calibration:
    """Feeds an ``IInt8EntropyCalibrator2`` and remembers what went wrong, which TensorRT takes for the end of the data.

    Use it in a ``with`` statement around the build; ``calibrator`` is what the builder's config takes.

    Args:
        library: TensorRT 10.
        ordinal: of the CUDA device.
        shape, dtype: of every batch, n images as the network's input.
        batches: arrays of that shape and type, preprocessed; empty when ``cache`` holds the ranges.
        images: how many images ``batches`` has given in all; asked at the end.
        fp16: whether TensorRT may choose FP16 too.
        cache: calibration cache that TensorRT wrote before; b"" to calibrate.

    Attributes:
        batch: images in each batch.
        seen: images that TensorRT has taken.
        error: what went wrong while it was fed.
        written: the cache that TensorRT wrote, b"" before it did.
    """

    def __init__(
        self,
        library: Library,
        shape: tuple[int, ...],
        batches: Batches,
        images: Callable[[], int],
        *,
        dtype: str = "float32",
        ordinal: int = 0,
        fp16: bool = False,
        cache: bytes = b"",
    ) -> None:
        self.seen, self.written, self.fp16, self.batch = 0, b"", fp16, shape[0]
        self._shape, self._dtype, self._batches, self._images, self._cache = shape, dtype, batches, images, cache
        self.error: BaseException | None = None
        self._device = open_device(ordinal)
        self._release = contextlib.ExitStack()
        self.calibrator = _calibrator(library, self)

    def __enter__(self) -> Calibration:
        try:
            with self._device.current(), contextlib.ExitStack() as stack:
                self._stream = self._device.stream()
                stack.callback(self._stream.release)
                self._pinned = self._device.pinned(self._shape, np.dtype(self._dtype))
                stack.callback(self._pinned.release)
                self._memory = self._device.allocate(self._pinned.array.nbytes)
                stack.callback(self._memory.release)
                self._release = stack.pop_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._device.current():
            self._release.close()

    def check(self) -> None:
        """After a build: raise ``error``.

        Raises:
            GateError: TensorRT stopped before it had seen every image.
        """
        if self.error is not None:
            raise self.error
        if not self._cache and self.seen != self._images():
            raise GateError(f"TensorRT calibrated on {self.seen} of {self._images()} images; the engine is not written")

    def next_batch(self) -> list[int] | None:
        """The device address of the next batch, valid until the next call; None at the end."""
        if self._cache:
            self.error = GateError(
                "TensorRT did not take the calibration cache (another version or calibrator wrote it); "
                "calibrate on images instead"
            )
            return None
        try:
            batch = next(self._batches, None)
            if batch is None:
                return None
            if batch.shape != self._shape or batch.dtype != self._dtype:
                found, expected = f"{batch.shape} {batch.dtype}", f"{self._shape} {self._dtype}"
                raise ValueError(f"a calibration batch is {found}, expected {expected}")
            with self._device.current():
                self._pinned.array[...] = batch
                self._stream.upload(self._memory.pointer, self._pinned.array)
                self._stream.synchronize()
        except BaseException as error:
            self.error = error
            return None
        self.seen += len(batch)
        return [self._memory.pointer]


def _calibrator(library: Library, feed: Calibration) -> Any:
    base: Any = library.module.IInt8EntropyCalibrator2

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return feed._shape[0]

        def get_batch(self, names: list[str]) -> list[int] | None:  # noqa: ARG002 (one input)
            return feed.next_batch()

        def read_calibration_cache(self) -> bytes | None:
            return feed._cache or None

        def write_calibration_cache(self, cache: Any) -> None:
            feed.written = bytes(cache)

    return Calibrator()
