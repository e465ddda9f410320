"""One inference at a time on an engine: its stream, its buffers, its execution contexts and CUDA graphs."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch, Logits
from alexdeploy.cuda.device import Device, Graph
from alexdeploy.engine.monitor import layer_profiler
from alexdeploy.engine.runtime import refused
from alexdeploy.engine.versions import Library
from alexdeploy.errors import UnavailableError, in_a_line
from alexdeploy.specs import Profile

if TYPE_CHECKING:
    import tensorrt as trt

_GRAPHS = 8  # input shapes with a context and a graph of their own; each costs memory on host and device
_CAPTURES = 3  # tries for each; another thread may spoil one


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine, without its batch dimension; -1 is a size that a profile leaves open."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Of the tensor with that whole shape."""
        return math.prod(shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Engine:
    """A deserialised engine and what its calls need to know.

    ``outputs[0]`` holds the logits, ``profile`` the whole shapes of the input.
    """

    library: Library
    engine: trt.ICudaEngine
    input: Tensor
    outputs: tuple[Tensor, ...]
    profile: Profile


@dataclass
class _Prepared:
    """A context permanently bound to one input shape; holds its CUDA graph once captured.

    TensorRT allows one graph per context and shape.
    """

    context: trt.IExecutionContext
    graph: Graph | None = None
    has_run: bool = False
    captures: int = 0


class Execution:
    """Everything one call needs, allocated once for the largest batch. For one thread at a time, context current.

    Activations are shared by its contexts: they run on one stream, so never at once. ``graphs``: as CUDA graphs.

    Raises:
        UnavailableError: the device has no room for it.
        DeviceLostError: from this and every method, after a fault of the device.
    """

    def __init__(self, device: Device, engine: Engine, *, graphs: bool = True) -> None:
        self._engine, self._graphs = engine, graphs
        self._prepared: dict[tuple[int, ...], _Prepared] = {}
        self._flexible_at: tuple[tuple[int, ...], dict[str, int]] | None = None  # its shape and addresses
        with contextlib.ExitStack() as stack:
            self._stream = device.stream()
            stack.callback(self._stream.release)
            self._scratch = device.allocate(max(engine.engine.device_memory_size_v2, 1))
            stack.callback(self._scratch.release)
            stack.callback(self._drop_contexts)
            self._flexible: trt.IExecutionContext | None = self._new_context(engine.profile.max, graph=graphs)
            largest = {engine.input: engine.profile.max}
            largest |= {tensor: self._output_shape(tensor, engine.profile.max) for tensor in engine.outputs}
            images, logits = math.prod(engine.profile.max), math.prod(largest[engine.outputs[0]])
            self._host_input = device.pinned((images,), engine.input.dtype)
            stack.callback(self._host_input.release)
            self._host_output = device.pinned((logits,), engine.outputs[0].dtype)
            stack.callback(self._host_output.release)
            self._memory = {}
            for tensor, shape in largest.items():
                self._memory[tensor.name] = device.allocate(tensor.nbytes(shape))
                stack.callback(self._memory[tensor.name].release)
            stack.callback(self._stream.synchronize)  # runs first on release: wait for pending work
            self._owned = stack.pop_all()

    def release(self) -> None:
        """Wait for the stream, then free graphs, contexts, memory and stream, whatever fails on the way.

        Raises:
            UnavailableError: something failed.
        """
        self._owned.close()

    def infer(self, batch: Batch, result: Logits) -> None:
        """Host to host, at most the largest batch; fewer than the smallest are filled up with zeros."""
        shape = self.load(batch)
        self.launch(shape)
        logits = self.download(shape)
        self._stream.synchronize()
        result[...] = logits[: len(batch)]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the logits for an input of that whole shape.

        Raises:
            UnavailableError: TensorRT refuses the shape.
        """
        return self._output_shape(self._engine.outputs[0], shape)

    def load(self, batch: Batch) -> tuple[int, ...]:
        """Enqueue the copy of a batch to the engine's input, in its type; returns the shape to launch."""
        shape = (max(len(batch), self._engine.profile.min[0]), *batch.shape[1:])
        images = _shaped(self._host_input.array, shape)
        images[: len(batch)] = batch
        images[len(batch) :] = 0
        self.upload(shape)
        return shape

    def upload(self, shape: tuple[int, ...]) -> None:
        """Enqueue the copy of what was loaded last, of that shape, to the engine's input."""
        self._stream.upload(self._memory[self._engine.input.name].pointer, _shaped(self._host_input.array, shape))

    def download(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Enqueue the copy of the logits to host memory; they are there after ``synchronize``, until the next call."""
        logits = _shaped(self._host_output.array, self.output_shape(shape))
        self._stream.download(logits, self._memory[self._engine.outputs[0].name].pointer)
        return logits

    def warm_up(self, batch: Batch) -> None:
        """Run a batch until later calls with its shape find everything made, its graph too where it can be captured."""
        shape = self.load(batch)
        for _ in range(1 + _CAPTURES):
            self.launch(shape)
            self._stream.synchronize()
            prepared = self._prepared.get(shape)
            if prepared is None or prepared.graph is not None:
                break

    def launch(self, shape: tuple[int, ...]) -> None:
        """Enqueue the engine on its own buffers; as a graph from the second call with this shape on."""
        prepared = self._prepare(shape)
        if prepared is None:
            memory = self._memory
            self._enqueue_at(shape, {name: memory[name].pointer for name in memory})
            return
        failed = False
        # not on the first run: TensorRT initialises in it, which cannot be captured
        if prepared.has_run and prepared.graph is None and prepared.captures < _CAPTURES:
            prepared.captures += 1
            prepared.graph = self._stream.capture(lambda: self._execute(prepared.context))
            failed = prepared.graph is None
        prepared.has_run = True
        if prepared.graph is not None:
            prepared.graph.launch()
        # the first call after a failed capture may find its error, which trtexec clears and the driver's API cannot
        elif not self._execute(prepared.context) and not (failed and self._execute(prepared.context)):
            raise self._failed("the engine could not be enqueued")

    def replays(self, shape: tuple[int, ...]) -> bool:
        """True if ``launch`` replays a CUDA graph of ours for this shape."""
        prepared = self._prepared.get(shape)
        return prepared is not None and prepared.graph is not None

    def layer_times_ms(self, batch: Batch, runs: int) -> dict[str, list[float]]:
        """The time of each layer by TensorRT's profiler, run by run, in a context of its own."""
        shape = self.load(batch)
        context = self._new_context(shape, graph=False)
        context.profiler = profiler = layer_profiler(self._engine.library)
        self._set_addresses(context, {name: memory.pointer for name, memory in self._memory.items()})
        for _ in range(runs):
            if not self._execute(context):
                raise self._failed("the engine could not be enqueued")
            self._stream.synchronize()
        times_ms: dict[str, list[float]] = profiler.times_ms
        return times_ms

    def synchronize(self) -> None:
        """Wait for everything enqueued."""
        self._stream.synchronize()

    def infer_on_device(self, shape: tuple[int, ...], images: int, logits: int, stream: int | None) -> None:
        """Enqueue the engine on the caller's memory, in order with ``stream``; None: wait for the result."""
        if stream is not None:
            self._stream.follow(stream)
        addresses = {name: memory.pointer for name, memory in self._memory.items()}
        addresses[self._engine.input.name] = images
        addresses[self._engine.outputs[0].name] = logits
        self._enqueue_at(shape, addresses)
        if stream is None:
            self._stream.synchronize()
        else:
            self._stream.lead(stream)

    @property
    def stream(self) -> Any:
        """The stream (``device.Stream``) that everything runs on."""
        return self._stream

    def _prepare(self, shape: tuple[int, ...]) -> _Prepared | None:
        """The context for this shape alone; None when there are enough of them."""
        prepared = self._prepared.get(shape)
        ours = self._graphs and self._engine.library.captures_graphs
        if prepared is None and ours and len(self._prepared) < _GRAPHS:
            context = self._new_context(shape)
            self._set_addresses(context, {name: memory.pointer for name, memory in self._memory.items()})
            prepared = self._prepared[shape] = _Prepared(context)
        return prepared

    def _enqueue_at(self, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
        assert self._flexible is not None
        if self._flexible_at != (shape, addresses):
            self._set_shape(self._flexible, shape)
            self._set_addresses(self._flexible, addresses)
            self._flexible_at = (shape, addresses)
        if not self._execute(self._flexible):
            raise self._failed("the engine could not be enqueued")

    def _execute(self, context: trt.IExecutionContext) -> bool:
        return bool(context.execute_async_v3(self._stream.handle))

    def _new_context(self, shape: tuple[int, ...], *, graph: bool = True) -> trt.IExecutionContext:
        """First the shape, then the memory, as trtexec and Polygraphy have it."""
        context = self._engine.library.create_context(self._engine.engine, graph=graph)
        if context is None:
            raise self._failed("no execution context could be created")
        self._set_shape(context, shape)
        context.set_device_memory(self._scratch.pointer, self._scratch.nbytes)
        return context

    def _output_shape(self, tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
        if -1 not in tensor.shape:
            return (shape[0], *tensor.shape)
        assert self._flexible is not None
        self._flexible_at = None
        self._set_shape(self._flexible, shape)
        return tuple(int(dim) for dim in self._flexible.get_tensor_shape(tensor.name))

    def _set_shape(self, context: trt.IExecutionContext, shape: tuple[int, ...]) -> None:
        try:
            taken = context.set_input_shape(self._engine.input.name, shape) and not context.infer_shapes()
        except RuntimeError as error:  # how infer_shapes says that something is wrong with the shapes
            raise self._failed(f"input shape {shape} was refused ({in_a_line(error)})") from error
        if not taken:
            raise self._failed(f"input shape {shape} was refused")

    def _set_addresses(self, context: trt.IExecutionContext, addresses: dict[str, int]) -> None:
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


def _shaped(flat: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The beginning of a flat buffer as an array of that shape."""
    return flat[: math.prod(shape)].reshape(shape)
