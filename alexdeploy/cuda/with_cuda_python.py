"""The device through cuda-python's driver bindings, and what PyCUDA lacks: graphs, and order between streams."""

from __future__ import annotations

import contextlib
import ctypes
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from alexdeploy.cuda.device import NON_BLOCKING, Device, Event, Graph, Memory, Pinned, Stream
from alexdeploy.cuda.faults import LOST, failure
from alexdeploy.errors import AlexdeployError, UnavailableError

_SUCCESS = driver.CUresult.CUDA_SUCCESS


def check(result: tuple[Any, ...]) -> Any:
    """The value of a call of ``cuda.bindings.driver``, which returns ``(status,)`` or ``(status, value)``.

    Raises:
        UnavailableError, DeviceLostError: the status is an error.
    """
    status = result[0]
    if status != _SUCCESS:
        _, text = driver.cuGetErrorString(status)
        named = f"{status.name}: {text.decode() if text else 'no description'}"
        raise failure(named, lost=int(status) in LOST)
    return result[1] if len(result) > 1 else None


def context_now() -> int:
    """The context that is current on this thread, 0 where there is none; this fails in no state of the device."""
    return int(check(driver.cuCtxGetCurrent()))


def ordinal_of(pointer: int) -> int | None:
    """See ``Device.ordinal_of``."""
    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status, ordinal = driver.cuPointerGetAttribute(attribute, pointer)
    return int(ordinal) if status == _SUCCESS else None


class CudaPythonDevice(Device):
    """A device through ``cuda.bindings.driver``."""

    binding = "cuda-python"

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        try:
            check(driver.cuInit(0))
        except RuntimeError as error:  # the library is missing: cuda-python raises instead of returning a status
            raise UnavailableError(f"CUDA: {error}") from error
        device = check(driver.cuDeviceGet(ordinal))
        self._context = check(driver.cuDevicePrimaryCtxRetain(device))
        self._handle = int(self._context)
        weakref.finalize(self, driver.cuDevicePrimaryCtxRelease, device)  # at the end, after those of the runners

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        if context_now() == self._handle:  # the application's doing, or an outer block's: theirs to undo
            yield
            return
        self._push()
        try:
            yield
        finally:
            self._pop()

    def _push(self) -> None:
        """Where CUDA reports an error, of earlier work perhaps, look whether it pushed, and try once more if not."""
        try:
            check(driver.cuCtxPushCurrent(self._context))
        except AlexdeployError:
            if context_now() != self._handle:
                check(driver.cuCtxPushCurrent(self._context))

    def _pop(self) -> None:
        """As ``_push``: below lies the application's context, which a second pop would take."""
        try:
            check(driver.cuCtxPopCurrent())
        except AlexdeployError:
            if context_now() == self._handle:
                check(driver.cuCtxPopCurrent())
            raise

    def allocate(self, nbytes: int) -> Memory:
        pointer = check(driver.cuMemAlloc(nbytes))
        return Memory(int(pointer), nbytes, lambda: check(driver.cuMemFree(pointer)))

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Pinned:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        pointer = int(check(driver.cuMemAllocHost(nbytes)))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer)).view(dtype).reshape(shape)
        return Pinned(array, lambda: check(driver.cuMemFreeHost(pointer)))

    def stream(self) -> Stream:
        return CudaPythonStream()

    def event(self) -> Event:
        return TimingEvent()

    def ordinal_of(self, pointer: int) -> int | None:
        return ordinal_of(pointer)


class CudaPythonStream(Stream):
    """A ``CUstream`` of cuda-python."""

    def __init__(self) -> None:
        self._stream = check(driver.cuStreamCreate(NON_BLOCKING))
        self.handle = int(self._stream)
        self._order = Order()

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        check(driver.cuMemcpyHtoDAsync(pointer, array.ctypes.data, array.nbytes, self._stream))

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        check(driver.cuMemcpyDtoHAsync(array.ctypes.data, pointer, array.nbytes, self._stream))

    def synchronize(self) -> None:
        check(driver.cuStreamSynchronize(self._stream))

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
            check(driver.cuStreamDestroy(self._stream))


class Order:
    """One event, made when it is first needed, that puts streams (``CUstream`` integers) in order."""

    def __init__(self) -> None:
        self._event: Any = None

    def wait(self, waiting: int, ahead: int) -> None:
        """Work enqueued on ``waiting`` from now on waits for the work that ``ahead`` holds now."""
        if self._event is None:
            self._event = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        check(driver.cuEventRecord(self._event, ahead))
        check(driver.cuStreamWaitEvent(waiting, self._event, 0))

    def release(self) -> None:
        """Destroy the event."""
        event, self._event = self._event, None
        if event is not None:
            check(driver.cuEventDestroy(event))


class TimingEvent(Event):
    """A ``CUevent`` that keeps the time."""

    def __init__(self) -> None:
        self._event = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DEFAULT))

    def record(self, stream: int) -> None:
        check(driver.cuEventRecord(self._event, stream))

    def ms_since(self, earlier: Event) -> float:
        assert isinstance(earlier, TimingEvent)
        return float(check(driver.cuEventElapsedTime(earlier._event, self._event)))

    def release(self) -> None:
        check(driver.cuEventDestroy(self._event))


class CudaGraph(Graph):
    """An instantiated graph and the stream it was captured on."""

    def __init__(self, executable: Any, stream: int) -> None:
        self._executable = executable
        self._stream = driver.CUstream(stream)

    def launch(self) -> None:
        check(driver.cuGraphLaunch(self._executable, self._stream))

    def release(self) -> None:
        check(driver.cuGraphExecDestroy(self._executable))


def capture(stream: int, enqueue: Callable[[], bool]) -> Graph | None:
    """Record what ``enqueue`` puts on ``stream`` (see ``Stream.capture``); other threads may use the device."""
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    if driver.cuStreamBeginCapture(stream, mode)[0] != _SUCCESS:
        return None
    enqueued, executable = False, None
    try:
        enqueued = enqueue()
    finally:  # also after a failure: a stream left capturing is lost, and the graph is ours
        status, graph = driver.cuStreamEndCapture(stream)
        if status == _SUCCESS and enqueued:
            status, executable = driver.cuGraphInstantiate(graph, 0)
        if int(graph or 0):
            driver.cuGraphDestroy(graph)
    return CudaGraph(executable, stream) if status == _SUCCESS and executable is not None else None
