"""TensorRT 10 and 11, and TensorRT-RTX: an engine that any number of threads may call."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexdeploy.arrays import Batch, Logits
from alexdeploy.cuda.arrays import DeviceArray, view
from alexdeploy.cuda.device import Device
from alexdeploy.cuda.open import open_device
from alexdeploy.engine.execution import Engine, Execution, Tensor
from alexdeploy.engine.record import EngineFile, check_runs_here, read_engine
from alexdeploy.engine.runtime import deserialize
from alexdeploy.engine.timing import GpuTimes, gpu_times
from alexdeploy.engine.versions import Library, load_library
from alexdeploy.errors import AlexdeployError, InputError, UsageError
from alexdeploy.machine import tf32_is_forbidden
from alexdeploy.runners.base import (
    CLOSED,
    PROFILE_RUNS,
    PROFILE_WARMUP,
    Runner,
    check_input,
    logits_among,
    medians_ms,
    one_row_each,
)
from alexdeploy.runners.pool import Pool
from alexdeploy.specs import Profile, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt


_PATIENCE_S = 5.0  # how long the end of the process waits for calls of daemon threads


class TensorRTRunner(Runner):
    """An engine on a CUDA device. Threads share it freely; ``contexts`` calls run at once and others wait their turn.

    Each context has buffers for the engine's largest input; after the first calls nothing is allocated any more. An
    engine whose profile leaves the image size open takes every size in it.

    Args:
        engine: the file with its sidecar; its bytes, with ``trust``; or what ``read_engine`` gave.
        ordinal: of the device, as the driver counts them.
        contexts: inferences under way at once; two hide one's copies behind the other's kernels. Each has the device
            memory of a largest batch, and what TensorRT keeps for each execution context.
        graphs: run a batch size as a CUDA graph from its second call on, for at most eight sizes. While one is captured
            a device synchronisation on any thread, such as ``torch.cuda.synchronize()``, fails with CUDA's error 900.
        warm_up: batch sizes to run and to capture now, on every context, so that no later call does; images of the size
            that the engine was tuned for.
        trust: run an engine whose sidecar is missing or does not match. An engine is executable code.

    Raises:
        InputError: not an engine of one image input, or missing.
        GateError: without its sidecar, changed, or for another TensorRT or GPU.
        UnavailableError: this machine cannot run it.
        UsageError: a number of contexts or a batch size below 1.
        DeviceLostError: the device fails; this and every other method.
    """

    on_gpu = True

    def __init__(
        self,
        engine: Path | bytes | EngineFile,
        *,
        ordinal: int = 0,
        contexts: int = 2,
        graphs: bool = True,
        warm_up: Sequence[int] = (),
        trust: bool = False,
    ) -> None:
        sizes = _checked(contexts, warm_up)
        file = engine if isinstance(engine, EngineFile) else read_engine(engine, trust=trust)
        check_runs_here(file, ordinal, trust=trust)
        record = file.record
        self.runtime = record.builder
        self.tf32 = None if record.tf32 and tf32_is_forbidden() else record.tf32  # its kernels were chosen before
        library = load_library(record.builder)
        self._benchmark = partial(library.benchmark, file.origin, host_code=record.compatibility.newer_versions)
        self._device = open_device(ordinal)
        with self._device.current():
            loaded = deserialize(library, file.plan, host_code=record.compatibility.newer_versions)
            described = _describe(library, loaded, file.origin)
        self._held = _Held(self._device, described, contexts, graphs=graphs)
        self._pool = self._held.pool
        weakref.finalize(self, _abandon, self._held, os.getpid())  # of a runner that nobody closes
        self._profile = described.profile
        self.input = _spec(described.input)
        self._output = described.outputs[0]
        self.classes = _spec(self._output).classes
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self._warm_up(sizes, contexts if sizes else 1)  # fail at construction, not at the first call
            on_failure.pop_all()

    def infer(self, batch: Batch) -> Logits:
        """A batch → (N, classes) float32; more than the profile's maximum goes in pieces of that size.

        An engine that takes float16 takes float32 too, which is rounded on the way.

        Raises:
            UsageError: wrong shape or dtype, or the runner is closed.
            UnavailableError: CUDA or TensorRT failed. The next call starts afresh.
            DeviceLostError: the device failed, and CUDA with it until the process ends: so does every later call.
        """
        self.check_batch(batch)
        step = self._profile.max[0]
        with self._pool.lend() as execution, self._device.current():
            _, *scores = execution.output_shape((min(len(batch), step), *batch.shape[1:]))
            result = np.empty((len(batch), *scores), np.float32)
            for start in range(0, len(batch), step):
                execution.infer(batch[start : start + step], result[start : start + step])
        return one_row_each(result)

    def infer_on_device(self, batch: Any, out: Any, stream: int | None = None) -> None:
        """Images and logits that lie on the GPU, without copying: tensors of PyTorch or CuPy, PyCUDA's GPUArray.

        Args:
            batch: N images within the engine's profile, of its input's layout and type, C-contiguous.
            out: (N, classes) of the engine's output type; overwritten.
            stream: None: waits for the work that the producers of ``batch`` and ``out`` have pending (as DLPack and
                ``__cuda_array_interface__`` tell it) and returns when ``out`` is complete. A ``CUstream`` as an integer
                (``torch.cuda.current_stream().cuda_stream``): runs after what that stream holds now and before what
                is enqueued there later, and returns at once; both arrays must live until then.

        Raises:
            UsageError: arrays that the engine cannot take as they are, or the runner is closed.
            UnavailableError, DeviceLostError: see ``infer``.
        """
        self.check_process()
        with self._pool.lend() as execution, self._device.current():
            order = execution.stream.handle if stream is None else None
            images, logits = view(batch, self._device, order, "batch"), view(out, self._device, order, "out")
            self._check_on_device(execution, images, logits)
            for array in (images, logits):
                if array.after is not None:
                    execution.stream.follow(array.after)
            execution.infer_on_device(images.shape, images.pointer, logits.pointer, stream)

    def device_call(self, batch: Batch) -> Callable[[], object]:
        """A call on buffers of its own, filled now; pieces of a larger batch all run on the first one's data."""
        self.check_batch(batch)
        most, least = self._profile.max[0], self._profile.min[0]
        counts = [max(len(batch[start : start + most]), least) for start in range(0, len(batch), most)]
        execution = self._held.new_execution()
        self._held.private.append(execution)
        with self._device.current():
            execution.load(batch[:most])
            execution.synchronize()

        def call() -> None:
            with self._device.current():
                for count in counts:
                    execution.launch((count, *batch.shape[1:]))
                execution.synchronize()

        return call

    def gpu_times(self, batch: Batch, seconds: float) -> GpuTimes | None:
        """See ``engine/timing.py``; None for a batch above the profile, which would run in pieces."""
        self.check_batch(batch)
        if len(batch) > self._profile.max[0]:
            return None
        with self._device.current():
            split, rates = gpu_times(self._device, self._held.new_execution, batch, seconds)
        shape = (max(len(batch), self._profile.min[0]), *batch.shape[1:])
        return GpuTimes(split, rates, self._benchmark(self.input.name, shape, graph=split.graph))

    def layer_times_ms(self, batch: Batch) -> dict[str, float]:
        """By TensorRT's profiler, whose events make each layer, and so their sum, take longer than without."""
        self.check_batch(batch)
        with self._pool.lend() as execution, self._device.current():
            return medians_ms(execution.layer_times_ms(batch[: self._profile.max[0]], PROFILE_WARMUP + PROFILE_RUNS))

    def close(self) -> None:
        """Wait for calls under way, then release contexts, buffers and streams, and at last the engine.

        A runner that goes without it is closed then, or at the end of the process.

        Raises:
            UnavailableError: CUDA reported an error; everything was released all the same.
            DeviceLostError: the device is lost, and this is the first to tell.
        """
        super().close()

    def _release(self) -> None:
        self._held.close()

    def _warm_up(self, batches: Sequence[int], contexts: int) -> None:
        """On so many of the pool's executions, all of which are free."""
        most, sizes = self._profile.max[0], self._profile.opt[1:]
        pieces = {min(most, batch - start) for batch in batches for start in range(0, batch, most)}
        with contextlib.ExitStack() as lent:
            for _ in range(contexts):
                execution = lent.enter_context(self._pool.lend())
                with self._device.current():
                    for count in sorted(pieces):
                        execution.warm_up(np.zeros((count, *sizes), self.input.dtype))

    @property
    def batch_types(self) -> tuple[str, ...]:
        return (self.input.dtype, "float32") if self.input.dtype == "float16" else (self.input.dtype,)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        sizes = batch.shape[1:]
        if not self._profile.accepts((self._profile.max[0], *sizes)):
            raise UsageError(f"images of shape {sizes} lie outside the engine's profile {self._profile}")

    def _check_on_device(self, execution: Execution, images: DeviceArray, logits: DeviceArray) -> None:
        engine = self._held.engine
        assert engine is not None, "an execution is lent, so the runner is open"
        count, dims = images.shape[0] if images.shape else 0, self.input.shape[1:]
        sizes_fit = len(images.shape) == 1 + len(dims) and all(
            isinstance(dim, str) or dim == found for dim, found in zip(dims, images.shape[1:], strict=True)
        )
        if not sizes_fit or images.dtype != engine.input.dtype:
            expected = f"({', '.join(map(str, (count, *dims)))}) {engine.input.dtype}"
            raise UsageError(f"batch is {images.shape} {images.dtype}; expected {expected} on the GPU")
        if not self._profile.accepts((self._profile.max[0], *images.shape[1:])):
            raise UsageError(f"images of shape {images.shape[1:]} lie outside the engine's profile {self._profile}")
        if not self._profile.accepts(images.shape):
            raise UsageError(
                f"a batch of {images.shape[0]} lies outside the profile {self._profile.batches}; "
                "split it or use infer()"
            )
        scores = execution.output_shape(images.shape)
        if logits.shape != scores or logits.dtype != self._output.dtype:
            raise UsageError(f"out is {logits.shape} {logits.dtype}; expected {scores} {self._output.dtype} on the GPU")


class _Held:
    """What a runner holds on the device: apart from it, so that it can be released when the runner is gone."""

    def __init__(self, device: Device, engine: Engine, contexts: int, *, graphs: bool) -> None:
        self._device, self._graphs = device, graphs
        self.engine: Engine | None = engine
        self.pool = Pool(self.new_execution, self._release, contexts)
        self.private: list[Execution] = []

    def new_execution(self) -> Execution:
        if self.engine is None:
            raise UsageError(CLOSED)
        with contextlib.ExitStack() as on_failure:
            with self._device.current():  # which may fail at its end, too
                execution = Execution(self._device, self.engine, graphs=self._graphs)
                on_failure.callback(self._release, execution)
            on_failure.pop_all()
        return execution

    def close(self, wait_s: float | None = None) -> None:
        with self.pool.known_loss(), contextlib.ExitStack() as stack:
            stack.callback(self._drop_engine)
            stack.callback(self.pool.close, wait_s)
            while self.private:
                stack.callback(self._release, self.private.pop())

    def _drop_engine(self) -> None:
        with self._device.current():
            self.engine = None

    def _release(self, execution: Execution) -> None:
        with self._device.current():
            execution.release()


def _checked(contexts: Any, warm_up: Any) -> tuple[int, ...]:
    """The batch sizes of ``warm_up``."""
    if not isinstance(contexts, Integral) or int(contexts) < 1:
        raise UsageError(f"`contexts` {contexts!r}: expected a whole number from 1 on, such as 2")
    sizes: tuple[Any, ...] = tuple(warm_up) if isinstance(warm_up, Iterable) else (0,)
    if any(not isinstance(size, Integral) or int(size) < 1 for size in sizes):
        raise UsageError(f"`warm_up` {warm_up!r}: expected batch sizes from 1 on, such as (1, 8)")
    return sizes


def _abandon(held: _Held, process: int) -> None:
    if os.getpid() != process:  # CUDA does not work in a process that was forked
        return
    with contextlib.suppress(AlexdeployError):  # nobody is there to be told
        held.close(_PATIENCE_S)


def _describe(library: Library, engine: trt.ICudaEngine, name: str) -> Engine:
    """Inputs, outputs and profile, as the engine itself tells them.

    Raises:
        InputError: not one image input with a fixed size, or a type that NumPy lacks.
    """
    modes = library.module.TensorIOMode
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [entry for entry in names if engine.get_tensor_mode(entry) == modes.INPUT]
    if len(inputs) != 1:
        raise InputError(
            f"{name}: expected an engine with one input, found {', '.join(inputs) or 'none'}; adopt the ONNX file with "
            "`constants` for all but the image (alexdeploy adopt) and build again"
        )
    tensors = {entry: _tensor(library, engine, entry, name) for entry in names}
    bounds = [tuple(int(dim) for dim in shape) for shape in engine.get_tensor_profile_shape(inputs[0], 0)]
    check_input([_spec(tensors[inputs[0]])], name)
    outputs = {entry: _spec(tensors[entry]) for entry in names if entry != inputs[0]}
    logits = logits_among([*outputs.values()], name).name
    first = (tensors[logits], *(tensors[entry] for entry in outputs if entry != logits))
    return Engine(library, engine, tensors[inputs[0]], first, Profile(*bounds))


def _spec(tensor: Tensor) -> TensorSpec:
    sizes = (dim if dim != -1 else f"size{axis}" for axis, dim in enumerate(tensor.shape, start=1))
    return TensorSpec(tensor.name, ("batch", *sizes), tensor.dtype.name)


def _tensor(library: Library, engine: trt.ICudaEngine, entry: str, name: str) -> Tensor:
    shape = tuple(int(dim) for dim in engine.get_tensor_shape(entry))
    if not shape:
        raise InputError(f"{name}: '{entry}' is a scalar; this runner takes a batch of images to a row of scores each")
    place, layout = engine.get_tensor_location(entry), engine.get_tensor_format(entry)
    if (place, layout) != (library.module.TensorLocation.DEVICE, library.module.TensorFormat.LINEAR):
        raise InputError(
            f"{name}: '{entry}' lies on the {place.name} in the format {layout.name}; expected DEVICE and LINEAR; "
            "build the engine without formats of its own for input and output"
        )
    try:
        dtype = np.dtype(library.module.nptype(engine.get_tensor_dtype(entry)))
    except TypeError as error:
        raise InputError(f"{name}: '{entry}' is of type {engine.get_tensor_dtype(entry)}, which NumPy lacks") from error
    return Tensor(entry, shape[1:], dtype)
