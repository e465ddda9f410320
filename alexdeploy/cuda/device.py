"""A CUDA device behind one narrow interface: memory, pinned arrays, streams with copies, graphs and ordering.

PyCUDA when it is installed, else cuda-python (``cuda.bindings.driver``), which both need for graphs and ordering. Both
work in the *primary* context, the one that PyTorch, ONNX Runtime and TensorRT use, and only while ``Device.current``
has made it current on the thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the legacy default stream


@dataclass(frozen=True)
class Memory:
    """``nbytes`` of device memory at ``pointer``, 256-byte aligned, undefined until written."""

    pointer: int
    nbytes: int
    release: Callable[[], None]


@dataclass(frozen=True)
class Pinned:
    """A page-locked host array, undefined until written; it must not be touched while a copy is under way."""

    array: npt.NDArray[Any]
    release: Callable[[], None]


class Graph(ABC):
    """Recorded work, launched as one."""

    @abstractmethod
    def launch(self) -> None:
        """Enqueue it on the stream it was captured on."""

    @abstractmethod
    def release(self) -> None:
        """Free it; no launch may be under way."""


class Event(ABC):
    """A point in a stream's work, and when the device reached it."""

    @abstractmethod
    def record(self, stream: int) -> None:
        """Put it behind the work that ``stream`` (a ``CUstream``) holds now."""

    @abstractmethod
    def ms_since(self, earlier: Event) -> float:
        """The device's time from ``earlier`` to this one, to half a microsecond; both must have been reached."""

    @abstractmethod
    def release(self) -> None:
        """Destroy it."""


class Stream(ABC):
    """Work in order. Nothing is finished before ``synchronize``; ``handle`` is its ``CUstream`` as an integer."""

    handle: int

    @abstractmethod
    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Enqueue a copy of a contiguous, pinned array to device memory."""

    @abstractmethod
    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        """Enqueue a copy from device memory into a contiguous, pinned array."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything enqueued is finished; other Python threads run meanwhile."""

    @abstractmethod
    def follow(self, other: int) -> None:
        """Work enqueued from now on waits for the work that ``other`` (a ``CUstream``) holds now."""

    @abstractmethod
    def lead(self, other: int) -> None:
        """Work enqueued on ``other`` from now on waits for the work that this stream holds now."""

    @abstractmethod
    def capture(self, enqueue: Callable[[], bool]) -> Graph | None:
        """Record what ``enqueue`` puts on this stream; None when that failed, and nothing was run.

        It fails where the work cannot be captured, and where another thread spoils the capture, such as by
        ``torch.cuda.synchronize()`` (which then fails there, too); so it is worth another try.
        """

    @abstractmethod
    def release(self) -> None:
        """Destroy the stream; its work must be finished."""


class Device(ABC):
    """A CUDA device. Every method but ``current`` needs its context to be current on the calling thread.

    Every method, and those of what it makes, raises DeviceLostError after a fault of the device, which CUDA calls
    ``process must be terminated and relaunched``.

    Attributes:
        binding: the library that it goes through.
        ordinal: its number, as the driver and ``CUDA_VISIBLE_DEVICES`` count.
    """

    binding: str
    ordinal: int

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Make the primary context current on this thread for the block; nests, and costs a few microseconds.

        What was current before is so afterwards, also where CUDA reports an error on the way.

        Raises:
            UnavailableError, DeviceLostError: any CUDA call inside the block failed; the message is the driver's.
        """

    @abstractmethod
    def allocate(self, nbytes: int) -> Memory:
        """Device memory; the caller releases it."""

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Pinned:
        """A page-locked C-contiguous array; the caller releases it."""

    @abstractmethod
    def stream(self) -> Stream:
        """A new stream that does not wait for the default stream; the caller releases it."""

    @abstractmethod
    def event(self) -> Event:
        """A new event that keeps the time; the caller releases it."""

    @abstractmethod
    def ordinal_of(self, pointer: int) -> int | None:
        """The device whose memory lies at that address; None where CUDA knows of none."""
