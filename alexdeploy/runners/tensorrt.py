"""TensorRT 10 and 11, and TensorRT-RTX: an engine that any number of threads may call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexdeploy.cuda.arrays import DeviceArray, view
from alexdeploy.cuda.open import open_device
from alexdeploy.engine.execution import Engine, Execution, Tensor
from alexdeploy.engine.runtime import deserialize
from alexdeploy.engine.trust import check_engine
from alexdeploy.engine.versions import Library, load_library
from alexdeploy.errors import InputError, UsageError
from alexdeploy.runners.base import PROFILE_RUNS, PROFILE_WARMUP, Runner, medians_ms, one_row_each
from alexdeploy.runners.pool import Pool
from alexdeploy.specs import BatchProfile, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRTRunner(Runner):
    """An engine on CUDA device 0. Threads share it freely; ``contexts`` calls run at once and others wait their turn.

    Each context has buffers for the engine's largest batch; after the first calls nothing is allocated any more.

    Args:
        path: an engine with its sidecar.
        contexts: inferences under way at once; two hide one's copies behind the other's kernels.
        trust: run an engine whose sidecar is missing or does not match. An engine is executable code.

    Raises:
        InputError: not an engine of one image input.
        GateError: without its sidecar, changed, or for another TensorRT or GPU.
        UnavailableError: this machine cannot run it.
    """

    on_gpu = True

    def __init__(self, path: Path, *, contexts: int = 2, trust: bool = False) -> None:
        details = check_engine(path, trust=trust)
        self.runtime = details.builder
        library = load_library(details.builder)
        self._device = open_device()
        self._private: list[Execution] = []
        with contextlib.ExitStack() as on_failure:
            with self._device.current():
                loaded = deserialize(library, path.read_bytes(), host_code=details.compatibility.newer_versions)
                self._engine: Engine | None = _describe(library, loaded, str(path))
            engine = self._engine
            self._pool = Pool(self._new_execution, self._release, contexts)
            on_failure.callback(self.close)
            with self._pool.lend():
                pass  # what cannot work shall fail now
            on_failure.pop_all()
        self._profile = engine.profile
        self.input = TensorSpec(engine.input.name, ("batch", *engine.input.shape), "float32")
        self._output = engine.outputs[0]
        self.classes = self._output.shape[0] if self._output.shape else -1  # shape without the batch

    def infer(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(N, C, H, W) float32 → (N, classes) float32; more than the profile's maximum goes in pieces of that size.

        Raises:
            UsageError: wrong shape or dtype, or the runner is closed.
            UnavailableError: CUDA or TensorRT failed. The next call starts afresh.
        """
        self.check_batch(batch)
        result = np.empty(self._output.batch(len(batch)), np.float32)
        step = self._profile.max
        with self._pool.lend() as execution, self._device.current():
            for start in range(0, len(batch), step):
                execution.infer(batch[start : start + step], result[start : start + step])
        return one_row_each(result)

    def infer_on_device(self, batch: Any, out: Any, stream: int | None = None) -> None:
        """Images and logits that lie on the GPU, without copying: tensors of PyTorch or CuPy, PyCUDA's GPUArray.

        Args:
            batch: (N, C, H, W), N within the engine's profile, of the engine's input type, C-contiguous.
            out: (N, classes) of the engine's output type; overwritten.
            stream: None: waits for the work that the producers of ``batch`` and ``out`` have pending (as DLPack and
                ``__cuda_array_interface__`` tell it) and returns when ``out`` is complete. A ``CUstream`` as an integer
                (``torch.cuda.current_stream().cuda_stream``): runs after what that stream holds now and before what
                is enqueued there later, and returns at once; both arrays must live until then.

        Raises:
            UsageError: arrays that the engine cannot take as they are, or the runner is closed.
            UnavailableError: CUDA or TensorRT failed. The next call starts afresh.
        """
        with self._pool.lend() as execution, self._device.current():
            order = execution.stream.handle if stream is None else None
            images, logits = view(batch, order, "batch"), view(out, order, "out")
            self._check_on_device(images, logits)
            for array in (images, logits):
                if array.after is not None:
                    execution.stream.follow(array.after)
            execution.infer_on_device(images.shape[0], images.pointer, logits.pointer, stream)

    def device_call(self, batch: npt.NDArray[np.float32]) -> Callable[[], object]:
        """A call on buffers of its own, filled now; pieces of a larger batch all run on the first one's data."""
        self.check_batch(batch)
        most = self._profile.max
        counts = [max(len(batch[start : start + most]), self._profile.min) for start in range(0, len(batch), most)]
        execution = self._new_execution()
        self._private.append(execution)
        with self._device.current():
            execution.load(batch[:most])
            execution.synchronize()

        def call() -> None:
            with self._device.current():
                for count in counts:
                    execution.launch(count)
                execution.synchronize()

        return call

    def layer_times_ms(self, batch: npt.NDArray[np.float32]) -> dict[str, float]:
        """By TensorRT's profiler, whose events make each layer, and so their sum, take longer than without."""
        self.check_batch(batch)
        with self._pool.lend() as execution, self._device.current():
            return medians_ms(execution.layer_times_ms(batch[: self._profile.max], PROFILE_WARMUP + PROFILE_RUNS))

    def close(self) -> None:
        """Wait for calls under way, then release contexts, buffers and streams, and at last the engine.

        Raises:
            UnavailableError: CUDA reported an error; everything was released all the same.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._drop_engine)
            stack.callback(self._pool.close)
            while self._private:
                stack.callback(self._release, self._private.pop())

    def _drop_engine(self) -> None:
        with self._device.current():
            self._engine = None

    def _new_execution(self) -> Execution:
        if self._engine is None:
            raise UsageError("the runner is closed; load the file again")
        with self._device.current():
            return Execution(self._device, self._engine)

    def _release(self, execution: Execution) -> None:
        with self._device.current():
            execution.release()

    def _check_on_device(self, images: DeviceArray, logits: DeviceArray) -> None:
        engine = self._engine
        assert engine is not None, "an execution is lent, so the runner is open"
        count = images.shape[0] if images.shape else 0
        for name, array, tensor in (("batch", images, engine.input), ("out", logits, self._output)):
            if array.shape != tensor.batch(count) or array.dtype != tensor.dtype:
                raise UsageError(
                    f"{name} is {array.shape} {array.dtype}; expected {tensor.batch(count)} {tensor.dtype} on the GPU"
                )
        if not self._profile.min <= count <= self._profile.max:
            raise UsageError(f"a batch of {count} lies outside the profile {self._profile}; split it or use infer()")


def _describe(library: Library, engine: trt.ICudaEngine, name: str) -> Engine:
    """Inputs, outputs and profile, as the engine itself tells them.

    Raises:
        InputError: not one image input with a fixed size, or a type that NumPy lacks.
    """
    modes = library.module.TensorIOMode
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [entry for entry in names if engine.get_tensor_mode(entry) == modes.INPUT]
    if len(inputs) != 1:
        raise InputError(f"{name}: expected an engine with one input, found {', '.join(inputs) or 'none'}")
    tensors = {entry: _tensor(library, engine, entry, name) for entry in names}
    bounds = [int(shape[0]) for shape in engine.get_tensor_profile_shape(inputs[0], 0)]
    outputs = tuple(tensors[entry] for entry in names if entry != inputs[0])
    return Engine(library, engine, tensors[inputs[0]], outputs, BatchProfile(*bounds))


def _tensor(library: Library, engine: trt.ICudaEngine, entry: str, name: str) -> Tensor:
    _, *shape = tuple(engine.get_tensor_shape(entry)) or (-1, -1)
    if min(shape, default=1) < 1:
        raise InputError(
            f"{name}: '{entry}' has no batch, or another dynamic dimension: {tuple(shape)}; this runner takes images "
            "of one size, so build the engine from a model where only the batch is dynamic"
        )
    try:
        dtype = np.dtype(library.module.nptype(engine.get_tensor_dtype(entry)))
    except TypeError as error:
        raise InputError(f"{name}: '{entry}' is of type {engine.get_tensor_dtype(entry)}, which NumPy lacks") from error
    return Tensor(entry, tuple(int(dim) for dim in shape), dtype)
