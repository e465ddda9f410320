"""The device through PyCUDA, with cuda-python for events and CUDA graphs, which PyCUDA cannot put on any stream."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import pycuda.driver as cuda
from cuda.bindings import driver

from alexdeploy.cuda.device import NON_BLOCKING, Device, Event, Graph, Memory, Pinned, Stream
from alexdeploy.cuda.faults import LOST, failure
from alexdeploy.cuda.with_cuda_python import Order, TimingEvent, capture, context_now, ordinal_of


class PyCudaDevice(Device):
    """A device through ``pycuda.driver``, in the primary context (``pycuda.autoinit`` would make another).

    PyCUDA has a stack of contexts of its own, and only its top is on CUDA's. A thread must not end with one left there:
    PyCUDA would abort the process.
    """

    binding = "pycuda"

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        with _errors_translated():
            cuda.init()
            self._context = cuda.Device(ordinal).retain_primary_context()
        self._handle = int(self._context.handle)
        # at the end, after those of the runners; its destructor would detach it as a context of its own, and fail
        weakref.finalize(self, _detach, self._context, ordinal, threading.get_ident())

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        with _errors_translated():
            before = context_now()
            if before == self._handle and self._is_pycudas():  # an outer block's
                yield
                return
            self._push(before)
            try:
                yield
            finally:
                self._pop(before)

    def _is_pycudas(self) -> bool:
        """Whether PyCUDA takes the context for the current one."""
        top = cuda.Context.get_current()
        return top is not None and int(top.handle) == self._handle

    def _push(self, before: int) -> None:
        """Where CUDA reports an error, of earlier work perhaps, put back what was current, and try once more.

        Where the application had made this very context current, nothing tells whether CUDA did what it was told: then
        one more may stay on the stack, and never one less.
        """
        for last in (False, True):
            try:
                self._context.push()
                return
            except cuda.Error:
                if context_now() == self._handle != before:
                    driver.cuCtxPopCurrent()
                if before and context_now() != before:
                    driver.cuCtxPushCurrent(driver.CUcontext(before))
                if last:
                    raise

    def _pop(self, before: int) -> None:
        """As ``_push``: below lies the application's context, which a second pop would take."""
        try:
            cuda.Context.pop()
        except cuda.Error:
            if self._is_pycudas():  # which it still believes
                if context_now() != self._handle or before == self._handle:  # rather one too many than one too few
                    driver.cuCtxPushCurrent(driver.CUcontext(self._handle))
                cuda.Context.pop()
            elif before and context_now() != before:
                driver.cuCtxPushCurrent(driver.CUcontext(before))
            raise

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

    def ordinal_of(self, pointer: int) -> int | None:
        return ordinal_of(pointer)


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
    except cuda.Error as error:  # which has no code, only CUDA's words for it
        raise failure(str(error), lost=any(words in str(error) for words in _words_of_loss())) from error


@functools.cache
def _words_of_loss() -> tuple[str, ...]:
    """What CUDA says of each of ``LOST``; an older driver does not know all of them."""
    codes = [code for code in driver.CUresult if int(code) in LOST]
    return tuple(text.decode() for _, text in map(driver.cuGetErrorString, codes) if text)


def _detach(context: Any, ordinal: int, thread: int) -> None:
    """Give up the primary context, which PyCUDA does on the thread that retained it only, and leaves it pushed."""
    if threading.get_ident() != thread:
        driver.cuDevicePrimaryCtxRelease(driver.CUdevice(ordinal))
    before = context_now()
    context.detach()
    for _ in range(2):
        if context_now() != before:
            driver.cuCtxPopCurrent()
