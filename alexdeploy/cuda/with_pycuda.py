"""The device through PyCUDA, with cuda-python for events and CUDA graphs, which PyCUDA cannot put on any stream."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import pycuda.driver as cuda

from alexdeploy.cuda.device import NON_BLOCKING, Device, Event, Graph, Memory, Pinned, Stream, retry_once
from alexdeploy.cuda.with_cuda_python import Order, TimingEvent, capture
from alexdeploy.errors import UnavailableError


class PyCudaDevice(Device):
    """Device 0 through ``pycuda.driver``, in the primary context (``pycuda.autoinit`` would make another)."""

    binding = "pycuda"

    def __init__(self) -> None:
        with _errors_translated():
            cuda.init()
            self._context = cuda.Device(0).retain_primary_context()
        atexit.register(self._context.detach)  # its destructor would detach it as a context of its own, and fail

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        with _errors_translated():
            retry_once(self._context.push)
            try:
                yield
            finally:
                retry_once(cuda.Context.pop)

    def allocate(self, nbytes: int) -> Memory:
        allocation = cuda.mem_alloc(nbytes)
        return Memory(int(allocation), nbytes, allocation.free)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Pinned:
        array = cuda.pagelocked_empty(shape, dtype)
        return Pinned(array, array.base.free)

    def stream(self) -> Stream:
        return PyCudaStream()

    def event(self) -> Event:
        return TimingEvent()


class PyCudaStream(Stream):
    """A PyCUDA stream."""

    def __init__(self) -> None:
        self._stream: Any = cuda.Stream(NON_BLOCKING)
        self.handle = int(self._stream.handle)
        self._order = Order()

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        cuda.memcpy_htod_async(pointer, array, self._stream)

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        cuda.memcpy_dtoh_async(array, pointer, self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def follow(self, other: int) -> None:
        self._order.wait(self.handle, other)

    def lead(self, other: int) -> None:
        self._order.wait(other, self.handle)

    def capture(self, enqueue: Callable[[], bool]) -> Graph | None:
        return capture(self.handle, enqueue)

    def release(self) -> None:
        try:
            self._order.release()
        finally:
            self._stream = None  # PyCUDA destroys it with the object, while the context is current


@contextlib.contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except cuda.Error as error:
        raise UnavailableError(f"CUDA: {error}") from error
