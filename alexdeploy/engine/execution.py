"""One inference at a time on an engine: its stream, its buffers, its execution contexts and CUDA graphs."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexdeploy.cuda.device import Device, Graph
from alexdeploy.engine.monitor import layer_profiler
from alexdeploy.engine.runtime import refused
from alexdeploy.engine.versions import Library
from alexdeploy.errors import UnavailableError
from alexdeploy.specs import BatchProfile

if TYPE_CHECKING:
    import tensorrt as trt

_GRAPHS = 8  # batch sizes with a context and a graph of their own; each costs a few MB of host memory


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine, without its batch dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def batch(self, count: int) -> tuple[int, ...]:
        return (count, *self.shape)

    def nbytes(self, count: int) -> int:
        return math.prod(self.batch(count)) * self.dtype.itemsize


@dataclass(frozen=True)
class Engine:
    """A deserialised engine and what its calls need to know; ``outputs[0]`` holds the logits."""

    library: Library
    engine: trt.ICudaEngine
    input: Tensor
    outputs: tuple[Tensor, ...]
    profile: BatchProfile


@dataclass
class _Prepared:
    """A context whose shape and addresses are set for one batch size, for good, and its graph once there is one.

    TensorRT allows one graph per context and shape.
    """

    context: trt.IExecutionContext
    graph: Graph | None = None
    runs: int = 0


class Execution:
    """Everything one call needs, allocated once for the largest batch. For one thread at a time, context current.

    Activations are shared by its contexts: they run on one stream, so never at once.

    Raises:
        UnavailableError: the device has no room for it.
    """

    def __init__(self, device: Device, engine: Engine) -> None:
        self._engine = engine
        most = engine.profile.max
        self._prepared: dict[int, _Prepared] = {}
        self._flexible_at: tuple[int, dict[str, int]] | None = None  # its batch size and addresses
        with contextlib.ExitStack() as stack:
            self._stream = device.stream()
            stack.callback(self._stream.release)
            self._host_input = device.pinned(engine.input.batch(most), engine.input.dtype)
            stack.callback(self._host_input.release)
            self._host_output = device.pinned(engine.outputs[0].batch(most), engine.outputs[0].dtype)
            stack.callback(self._host_output.release)
            self._memory = {}
            for tensor in (engine.input, *engine.outputs):
                self._memory[tensor.name] = device.allocate(tensor.nbytes(most))
                stack.callback(self._memory[tensor.name].release)
            self._scratch = device.allocate(max(engine.engine.device_memory_size_v2, 1))
            stack.callback(self._scratch.release)
            stack.callback(self._drop_contexts)
            self._flexible: trt.IExecutionContext | None = self._new_context()
            stack.callback(self._stream.synchronize)  # first of all when it is released: nothing may still be running
            self._owned = stack.pop_all()

    def release(self) -> None:
        """Wait for the stream, then free graphs, contexts, memory and stream, whatever fails on the way.

        Raises:
            UnavailableError: something failed.
        """
        self._owned.close()

    def infer(self, batch: npt.NDArray[np.float32], result: npt.NDArray[np.float32]) -> None:
        """Host to host, at most the largest batch; fewer than the smallest are filled up with zeros."""
        count = self.load(batch)
        self.launch(count)
        logits = self._host_output.array[:count]
        self._stream.download(logits, self._memory[self._engine.outputs[0].name].pointer)
        self._stream.synchronize()
        result[...] = logits[: len(batch)]

    def load(self, batch: npt.NDArray[np.float32]) -> int:
        """Enqueue the copy of a batch to the engine's input; returns the batch size to launch."""
        count = max(len(batch), self._engine.profile.min)
        images = self._host_input.array[:count]
        images[: len(batch)] = batch
        images[len(batch) :] = 0
        self._stream.upload(self._memory[self._engine.input.name].pointer, images)
        return count

    def launch(self, count: int) -> None:
        """Enqueue the engine on its own buffers; as a graph from the second call with this batch size on."""
        prepared = self._prepare(count)
        if prepared is None:
            memory = self._memory
            self._enqueue_at(count, {name: memory[name].pointer for name in memory})
            return
        if prepared.runs == 1:  # not on the first run: TensorRT initialises in it, which cannot be captured
            prepared.graph = self._stream.capture(lambda: self._execute(prepared.context))
        prepared.runs += 1
        if prepared.graph is not None:
            prepared.graph.launch()
        elif not self._execute(prepared.context):
            raise self._failed("the engine could not be enqueued")

    def layer_times_ms(self, batch: npt.NDArray[np.float32], runs: int) -> dict[str, list[float]]:
        """What TensorRT's profiler measures of each layer, run by run, in a context of its own."""
        count = self.load(batch)
        context = self._new_context(graph=False)
        context.profiler = profiler = layer_profiler(self._engine.library)
        self._set(context, count, {name: memory.pointer for name, memory in self._memory.items()})
        for _ in range(runs):
            if not self._execute(context):
                raise self._failed("the engine could not be enqueued")
            self._stream.synchronize()
        times_ms: dict[str, list[float]] = profiler.times_ms
        return times_ms

    def synchronize(self) -> None:
        """Wait for everything enqueued."""
        self._stream.synchronize()

    def infer_on_device(self, count: int, images: int, logits: int, stream: int | None) -> None:
        """Enqueue the engine on the caller's memory, in order with ``stream``; None: wait for the result."""
        if stream is not None:
            self._stream.follow(stream)
        addresses = {name: memory.pointer for name, memory in self._memory.items()}
        addresses[self._engine.input.name] = images
        addresses[self._engine.outputs[0].name] = logits
        self._enqueue_at(count, addresses)
        if stream is None:
            self._stream.synchronize()
        else:
            self._stream.lead(stream)

    @property
    def stream(self) -> Any:
        """The stream (``device.Stream``) that everything runs on."""
        return self._stream

    def _prepare(self, count: int) -> _Prepared | None:
        """The context for this batch size alone; None when there are enough of them."""
        prepared = self._prepared.get(count)
        if prepared is None and self._engine.library.captures_graphs and len(self._prepared) < _GRAPHS:
            context = self._new_context()
            self._set(context, count, {name: memory.pointer for name, memory in self._memory.items()})
            prepared = self._prepared[count] = _Prepared(context)
        return prepared

    def _enqueue_at(self, count: int, addresses: dict[str, int]) -> None:
        assert self._flexible is not None
        if self._flexible_at != (count, addresses):
            self._set(self._flexible, count, addresses)
            self._flexible_at = (count, addresses)
        if not self._execute(self._flexible):
            raise self._failed("the engine could not be enqueued")

    def _execute(self, context: trt.IExecutionContext) -> bool:
        return bool(context.execute_async_v3(self._stream.handle))

    def _new_context(self, *, graph: bool = True) -> trt.IExecutionContext:
        context = self._engine.library.create_context(self._engine.engine, graph=graph)
        if context is None:
            raise self._failed("no execution context could be created")
        context.set_device_memory(self._scratch.pointer, self._scratch.nbytes)
        return context

    def _set(self, context: trt.IExecutionContext, count: int, addresses: dict[str, int]) -> None:
        """Shape and addresses; every answer is checked."""
        shape = self._engine.input.batch(count)
        if not context.set_input_shape(self._engine.input.name, shape) or context.infer_shapes():
            raise self._failed(f"input shape {shape} was refused")
        if not all(context.set_tensor_address(name, pointer) for name, pointer in addresses.items()):
            raise self._failed("a buffer was refused")

    def _drop_contexts(self) -> None:
        self._flexible = None
        with contextlib.ExitStack() as stack:
            while self._prepared:
                _, prepared = self._prepared.popitem()
                if prepared.graph is not None:
                    stack.callback(prepared.graph.release)

    def _failed(self, what: str) -> UnavailableError:
        return UnavailableError(refused(self._engine.library, what))
