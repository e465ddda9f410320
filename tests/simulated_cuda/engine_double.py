"""A stand-in for TensorRT on the simulated device: an "engine" is an ONNX file that ONNX Runtime computes.

It has only what the real libraries have (tests/unit/engine/test_names.py) and is as strict as they are: it needs a
current context of the device where the engine was deserialised, addresses there of the right size, shapes inside the
profile, and activation memory, given after the shape, that no other inference uses at the same time.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import threading
from enum import IntEnum
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

_SCRATCH_BYTES = 4096
_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def simulator() -> ctypes.CDLL:
    """The simulated driver, which must be loaded in place of libcuda.so.1."""
    library = ctypes.CDLL("libcuda.so.1")
    library.sim_failed.restype = ctypes.c_char_p
    library.sim_calls.restype = library.sim_allocated.restype = ctypes.c_long
    library.sim_fail_at.argtypes = [ctypes.c_long]
    library.sim_device_of.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.sim_read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    library.sim_launch.argtypes = [ctypes.c_void_p, _Kernel, ctypes.c_void_p]
    return library


def make_plan(model: bytes, profile: tuple[Any, Any, Any]) -> bytes:
    """An engine file for the double; ``profile`` holds three batch sizes or three whole shapes."""
    return json.dumps({"profile": profile}).encode() + b"\n" + model


@cache
def open_session(model: bytes) -> ort.InferenceSession:
    """What the double computes with: one thread, nothing rewritten. Engines of one graph share it, in any thread."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5


_TYPES = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(uint8)": DataType.UINT8}


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class TensorFormat(IntEnum):
    LINEAR = 0
    CHW16 = 4


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class LayerInformationFormat(IntEnum):
    ONELINE = 0
    JSON = 1


class ILogger:
    def __init__(self) -> None:
        pass

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self._user_managed = False

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._user_managed = strategy == ExecutionContextAllocationStrategy.USER_MANAGED


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        _need_context()
        header, _, model = serialized_engine.partition(b"\n")
        try:
            profile = json.loads(header)["profile"]
        except ValueError:
            self._logger.log(1, "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed")
            return None
        return ICudaEngine(self._logger, tuple(profile), model)


class ICudaEngine:
    def __init__(self, logger: ILogger, profile: tuple[Any, Any, Any], model: bytes) -> None:
        self._logger, self._profile, self._session = logger, profile, open_session(model)
        self._tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._device = simulator_library().sim_current_device()
        self.device_memory_size_v2 = _SCRATCH_BYTES

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self._tensors[0].name else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self._tensor(name).type]

    def get_tensor_location(self, name: str) -> TensorLocation:
        assert self._tensor(name)
        return TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> TensorFormat:
        assert self._tensor(name)
        return TensorFormat.LINEAR

    def get_tensor_shape(self, name: str) -> list[int]:
        return [dim if isinstance(dim, int) else -1 for dim in self._tensor(name).shape]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        assert profile_index == 0
        rest = self.get_tensor_shape(name)[1:]
        return [list(entry) if isinstance(entry, list) else [entry, *rest] for entry in self._profile]

    def create_execution_context(self, strategy: Any) -> IExecutionContext:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED or strategy._user_managed
        _need_context(self)
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in self._tensors if tensor.name == name)


class EngineInspector:
    _report = '{"Layers": []}'  # what the next one tells, of an engine at known shapes

    def __init__(self) -> None:
        self.execution_context: Any = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format == LayerInformationFormat.JSON
        if self.execution_context is not None and self.execution_context._shape is not None:
            return self._report
        unknown = re.sub(r'("(?:Format/)?Datatype": )"[^"]*"', r'\1"N/A due to dynamic shapes"', self._report)
        return re.sub(r'"TacticName": "[^"]*"', '"TacticName": ""', unknown)


class IProfiler:
    def __init__(self) -> None:
        self._ready = True


class IExecutionContext:
    _refuse_enqueue = 0  # how many calls of execute_async_v3, of any context, shall fail

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._work: dict[Any, int] = {}
        self.profiler: Any = None

    def set_device_memory(self, memory: int, size: int) -> None:
        if self._shape is None:
            _problems.append("activation memory was given before the shape, by which it is sized")
        self._scratch = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        inside = all(low <= dim <= high for low, dim, high in zip(smallest, shape, largest, strict=True))
        if inside:
            self._shape = tuple(shape)
        return inside

    def infer_shapes(self) -> list[str]:
        return [] if self._shape else [self.engine.get_tensor_name(0)]

    def get_tensor_shape(self, name: str) -> list[int]:
        assert self._shape is not None
        first = self.engine._tensors[0]
        images: Any = np.zeros(self._shape, nptype(_TYPES[first.type]))
        return list(self.engine._session.run([name], {first.name: images})[0].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory % 256 == 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        _need_context(self.engine)
        if IExecutionContext._refuse_enqueue > 0:
            IExecutionContext._refuse_enqueue -= 1
            self.engine._logger.log(1, "enqueueV3: Error Code 1: Cuda Runtime (told to fail)")
            return False
        names = [tensor.name for tensor in self.engine._tensors]
        addresses = tuple(self._addresses[name] for name in names)  # every one of them must be set
        assert self._shape is not None
        key = (self._shape, addresses, self._scratch)
        if key not in self._work:  # a captured graph runs it again and again, so it stays
            self._work[key] = _register(self, *key)
        status = simulator_library().sim_launch(stream_handle, _kernel, self._work[key])
        if status:
            self.engine._logger.log(1, f"enqueueV3: Error Code 1: Cuda Driver ({status})")
            return False
        if self.profiler is not None:
            assert self.profiler._ready, "its base class was not initialised"
            for number, layer in enumerate(("conv1", "logits"), start=1):
                self.profiler.report_layer_time(layer, float(number))
        return True

    def __del__(self) -> None:
        for number in self._work.values():
            _registered.pop(number, None)


_registered: dict[int, Any] = {}
_numbers = iter(range(1, sys.maxsize))
_running: set[int] = set()  # scratch memory in use
_problems: list[str] = []
_lock = threading.Lock()
_simulator: list[ctypes.CDLL] = []


def simulator_library() -> ctypes.CDLL:
    if not _simulator:
        _simulator.append(simulator())
    return _simulator[0]


def problems() -> list[str]:
    """What the double saw that real hardware would not have forgiven."""
    return _problems


def _register(context: IExecutionContext, *key: Any) -> int:
    with _lock:
        number = next(_numbers)
    _registered[number] = (context.engine, *key)
    return number


def _compute(number: int) -> None:
    """Runs when the stream gets there: ONNX Runtime on the addresses, as they were when it was enqueued."""
    work = _registered.get(number)
    if work is None:
        _problems.append("a context was destroyed while its inference was under way")
        return
    engine, shape, addresses, (scratch, size) = work
    if size < engine.device_memory_size_v2 or simulator_library().sim_device_of(scratch, size) != engine._device:
        _problems.append("no activation memory")
        return
    with _lock:
        if scratch in _running:
            _problems.append("two inferences share activation memory")
        _running.add(scratch)
    tensors = engine._tensors
    images = _at(engine._device, addresses[0], shape, tensors[0])
    results = engine._session.run(None, {tensors[0].name: images}) if images is not None else []
    for tensor, address, result in zip(tensors[1:], addresses[1:], results, strict=False):
        target = _at(engine._device, address, result.shape, tensor)
        if target is not None:
            target[...] = result
    with _lock:
        _running.discard(scratch)


_kernel = _Kernel(_compute)


def _at(device: int, address: int, shape: tuple[int, ...], tensor: Any) -> np.ndarray[Any, Any] | None:
    dtype = np.dtype(nptype(_TYPES[tensor.type]))
    nbytes = int(np.prod(shape)) * dtype.itemsize
    if simulator_library().sim_device_of(address, nbytes) != device:
        _problems.append(f"'{tensor.name}' lies outside the memory of device {device}")
        return None
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)).view(dtype).reshape(shape)


def _need_context(engine: ICudaEngine | None = None) -> None:
    here = simulator_library().sim_current_device()
    if here < 0:
        _problems.append("TensorRT was called on a thread without a current context")
    elif engine is not None and engine._device != here:
        _problems.append(f"an engine of device {engine._device} was called with device {here} current")


def nptype(trt_type: DataType) -> type:
    return {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.UINT8: np.uint8}[trt_type]


CLASSES = (
    IProfiler,
    DataType,
    TensorIOMode,
    TensorLocation,
    TensorFormat,
    ExecutionContextAllocationStrategy,
    CudaGraphStrategy,
    LayerInformationFormat,
    EngineInspector,
    ILogger,
    IRuntimeConfig,
    Runtime,
    ICudaEngine,
    IExecutionContext,
)


def install(module: str, version: str) -> None:
    """Make ``import tensorrt`` (or ``tensorrt_rtx``) find the double."""
    double = ModuleType(module)
    for entry in (*CLASSES, nptype):
        setattr(double, entry.__name__, entry)
    double.__dict__["__version__"] = version
    sys.modules[module] = double
