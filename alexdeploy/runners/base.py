"""The interface of every runner: open once, ``infer`` many times, ``close``."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, TypeVar
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch, Logits
from alexdeploy.errors import InputError, UsageError
from alexdeploy.specs import TensorSpec, find_logits

if TYPE_CHECKING:
    from alexdeploy.engine.timing import GpuTimes

_Self = TypeVar("_Self", bound="Runner")

IMAGE_TYPES = ("float32", "float16", "uint8")
CLOSED = "the runner is closed; load the file again"
_FORKED = (
    "the model was loaded before this process was forked, and its threads and connections stayed behind; load it in "
    "each process (gunicorn without preload, multiprocessing with 'spawn')"
)
_EXPONENT_16 = 0x7C00  # the bits of a float16 that are all set in infinity and NaN alone
_PIECE = 1 << 18  # values
_COPIED = "a loaded model cannot be copied or pickled; load the file where it is needed, in each process"


class Runner(ABC):
    """A classifier on one runtime.

    It belongs to the process that loaded it: it can be neither copied nor pickled, and in a process that was forked
    later every call is refused, since it could wait for ever for threads, or locks, of the other. (ONNX Runtime on the
    CPU with one thread has no other threads, and yet 5 of 600 children waited that were forked beside calls.)

    Attributes:
        runtime: its name on the command line, such as ``onnxruntime-cpu``.
        input: name, shape (batch first) and dtype that ``infer`` takes.
        classes: columns of the result; None where they are not fixed.
        on_gpu: whether it computes on a GPU.
        layer_types: by layer of ``layer_times_ms``, once that was called, the runtime's name of its operation; empty
            where it does not tell.
        tf32: whether a GPU may compute FP32 as TF32; None where that is not known.
    """

    runtime: str
    input: TensorSpec
    classes: int | None
    on_gpu: bool = False
    layer_types: Mapping[str, str] = MappingProxyType({})
    tf32: bool | None = False
    _process: int

    def __new__(cls: type[_Self], *_: Any, **__: Any) -> _Self:
        runner = super().__new__(cls)
        runner._process = os.getpid()
        _LOADED.add(runner)
        return runner

    @abstractmethod
    def infer(self, batch: Batch) -> npt.NDArray[np.float32]:
        """(N, *input) of the input's type → (N, classes) float32; the caller owns both arrays.

        Raises:
            UsageError: wrong shape or dtype, NaN or infinity in it, or the runner is closed. On a GPU the values are
                not looked at, which would take as long as the copy to the device.
        """

    def device_call(self, batch: Batch) -> Callable[[], object]:
        """A call on ``batch`` in the runtime's own memory, without host copies, that returns when the result is there.

        A runtime on the CPU computes where the batch already lies, so its whole ``infer`` is that call.

        Raises:
            UsageError: wrong shape or dtype.
        """
        self.check_batch(batch)
        return partial(self.infer, batch)

    def layer_times_ms(self, batch: Batch) -> dict[str, float]:  # noqa: ARG002
        """Median time of each of the runtime's own (fused) layers, in order; empty where it does not tell."""
        return {}

    def gpu_times(self, batch: Batch, seconds: float) -> GpuTimes | None:  # noqa: ARG002
        """Times on the device by CUDA events, in about ``seconds``; None where the runtime has no such measurement.

        Raises:
            UsageError: wrong shape or dtype.
            UnavailableError: CUDA failed.
        """
        return None

    def close(self) -> None:
        """Release what the runtime holds, at once or when the calls under way have ended. Calling it twice is fine.

        Every later call is a UsageError. In a process that was forked later it does nothing.
        """
        if os.getpid() == self._process:
            self._release()

    def _release(self) -> None:  # noqa: B027 (there may be nothing to release)
        """``close``, in the process that loaded it."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UsageError(_COPIED)

    @property
    def frozen_batch(self) -> int | None:
        """The only batch size that the model takes by itself; None where it is dynamic."""
        size = self.input.shape[0]
        return size if isinstance(size, int) and size != -1 else None

    @property
    def batch_types(self) -> tuple[str, ...]:
        """Types of a batch that ``infer`` takes: the input's, and others that it converts."""
        return (self.input.dtype,)

    def check_batch(self, batch: Batch) -> None:
        """Refuse what is not a batch of this runner's images; dynamic dimensions accept any size."""
        self.check_process()
        if not isinstance(batch, np.ndarray) or np.ma.is_masked(batch):  # no runtime knows of a mask
            raise UsageError(f"{self.runtime}: got a {type(batch).__name__}; expected a NumPy array")
        expected = [dim if isinstance(dim, int) and dim != -1 else None for dim in self.input.shape[1:]]
        fits = batch.ndim == len(self.input.shape) and all(
            dim in (None, found) for dim, found in zip(expected, batch.shape[1:], strict=True)
        )
        if batch.dtype not in self.batch_types or not fits or not len(batch):
            raise UsageError(
                f"{self.runtime}: got a batch of shape {batch.shape} and type {batch.dtype}; "
                f"expected (N, {', '.join(map(str, self.input.shape[1:]))}) {self.input.dtype}"
            )
        # pooling and ReLU lose a NaN: the answer would be finite
        if batch.dtype.kind == "f" and not self.on_gpu and not _all_finite(batch):
            index, image = next((i, image) for i, image in enumerate(batch) if not np.isfinite(image).all())
            kind = "NaN" if np.isnan(image).any() else "infinity"
            raise UsageError(f"{self.runtime}: image {index} of the batch holds {kind}; check where it is made")

    def check_process(self) -> None:
        """Refuse a process that was forked from the one that loaded the model."""
        if os.getpid() != self._process:
            raise UsageError(_FORKED)


_LOADED: WeakSet[Runner] = WeakSet()


def _keep_what_the_parent_loaded() -> None:
    """Never release it: a destructor would wait for threads that a child does not have, at the latest when it ends."""
    for runner in [*_LOADED]:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runner))


if hasattr(os, "register_at_fork"):  # where there is a fork
    os.register_at_fork(after_in_child=_keep_what_the_parent_loaded)


PROFILE_WARMUP, PROFILE_RUNS = 3, 10


def _all_finite(batch: Batch) -> bool:
    """Looked at in pieces that stay in the cache; small images in few calls."""
    pixels = np.asarray(batch)
    step = max(1, _PIECE // max(1, pixels[0].size))
    return all(_is_finite(pixels[start : start + step]) for start in range(0, len(pixels), step))


def _is_finite(piece: Batch) -> bool:
    if piece.dtype == np.float16:  # NumPy computes with it in software: a tenth of the time by its exponents
        return not piece.size or bool((piece.view(np.uint16) & _EXPONENT_16).max() < _EXPONENT_16)
    return bool(np.isfinite(piece).all())


def medians_ms(times_ms: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By layer the median over ``PROFILE_RUNS`` runs, those before them left out."""
    return {name: float(np.median(found[PROFILE_WARMUP:])) for name, found in times_ms.items()}


def one_row_each(scores: npt.NDArray[np.floating]) -> Logits:
    """(N, classes) float32; of a fully convolutional network's (N, classes, h, w) the mean over the map."""
    scores = np.asarray(scores, np.float32)
    return scores.mean(axis=(2, 3)) if scores.ndim == 4 else scores


def logits_among(outputs: Sequence[TensorSpec], origin: str) -> TensorSpec:
    """See ``specs.find_logits``.

    Raises:
        InputError: it is not clear which one.
    """
    found = find_logits(outputs)
    if found is None:
        raise InputError(
            f"{origin}: has the outputs {', '.join(map(str, outputs))}; adopt it with the one that holds the `logits` "
            "(alexdeploy adopt)"
        )
    return found


def check_input(inputs: Sequence[TensorSpec], origin: str) -> TensorSpec:
    """The only input, of a type that images have.

    Raises:
        InputError: another number or type of inputs.
    """
    found = ", ".join(map(str, inputs)) or "none"
    if len(inputs) != 1:
        raise InputError(
            f"{origin}: expected one input, found {found}; adopt it with `constants` for all but the image "
            "(alexdeploy adopt)"
        )
    if inputs[0].dtype not in IMAGE_TYPES:
        raise InputError(f"{origin}: takes {found}; expected {', '.join(IMAGE_TYPES)} images")
    return inputs[0]


def frozen_pieces(batch: Batch, size: int) -> list[Batch]:
    """The batch in pieces of just ``size``, for a model whose batch is frozen; the last one is filled with zeros."""
    padded = np.concatenate([batch, np.zeros((-len(batch) % size, *batch.shape[1:]), batch.dtype)])
    return np.split(padded, len(padded) // size)
