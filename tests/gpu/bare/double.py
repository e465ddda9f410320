"""The double of TensorRT (tests/simulated_cuda/engine_double.py) with kernels of its own in place of ONNX Runtime.

An "engine" is still ``conv_lrn_gemm()``: its weights lie on the device while it lives, its activations in the memory
that the context was given. The kernels go through the driver API alone, so they run on the real driver (compiled by
NVRTC for its device) and on the simulated one (compiled by cc).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cuda.bindings import driver
from onnx import numpy_helper

from alexdeploy.cuda.with_cuda_python import check
from alexdeploy.errors import AlexdeployError
from tests.simulated_cuda import engine_double

SOURCE = Path(__file__).with_name("kernels.cu")
VERSION = "10.16.1.11"  # that the double says it is
_WIDTH = 64  # threads in a block
_CONV, _POOL, _CLASSES = 512, 128, 4  # values of one image behind conv_relu, lrn_pool and gemm
_FLOAT_BYTES = 4
_ON_THE_HOST = """
#include <math.h>
#include <time.h>
#define KERNEL
typedef struct { unsigned x; } Index;
static __thread Index blockIdx, threadIdx, blockDim;
void sim_thread(unsigned block, unsigned thread, unsigned width) {
    blockIdx.x = block; threadIdx.x = thread; blockDim.x = width;
}
static long long clock64(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
"""

enqueued = 0  # calls of execute_async_v3 so far, those that are captured too
during_enqueue: list[Callable[[], None]] = []  # called inside each of them


@cache
def is_simulated() -> bool:
    """Whether this process runs on the simulated driver."""
    return hasattr(ctypes.CDLL("libcuda.so.1"), "sim_live")


def compile_for_gpu(capability: str) -> bytes:
    """Machine code for a compute capability, such as ``9.0``; needs no GPU.

    Raises:
        RuntimeError: NVRTC is not there, or refuses the source; the message is its log.
    """
    from cuda.bindings import nvrtc

    def call(result: tuple[Any, ...]) -> Any:
        if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC: {result[0].name}")
        return result[1] if len(result) > 1 else None

    source = b'#define KERNEL extern "C" __global__\n' + SOURCE.read_bytes()
    program = call(nvrtc.nvrtcCreateProgram(source, SOURCE.name.encode(), 0, [], []))
    options = [f"--gpu-architecture=sm_{capability.replace('.', '')}".encode()]
    if nvrtc.nvrtcCompileProgram(program, len(options), options)[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * call(nvrtc.nvrtcGetProgramLogSize(program))
        call(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(log.decode().strip("\0 \n"))
    code: bytes = b" " * call(nvrtc.nvrtcGetCUBINSize(program))  # cuda-python writes into it
    call(nvrtc.nvrtcGetCUBIN(program, code))
    return code


def _compile_for_host() -> bytes:
    """The path of a shared object, which is what the simulated driver loads; built once for a source."""
    source = _ON_THE_HOST + SOURCE.read_text()
    folder = Path(tempfile.gettempdir(), f"alexdeploy-kernels-{hashlib.sha256(source.encode()).hexdigest()[:16]}")
    if not folder.exists():
        compiler = shutil.which("cc")
        assert compiler is not None, "the simulated driver was built with it"
        with tempfile.TemporaryDirectory(dir=folder.parent) as new:
            Path(new, "kernels.c").write_text(source)
            options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
            subprocess.run([compiler, *options, f"{new}/kernels.c", "-o", f"{new}/kernels.so", "-lm"], check=True)
            with contextlib.suppress(OSError):  # another process was faster
                shutil.copytree(new, folder)
    return str(folder / "kernels.so").encode() + b"\0"


def _context() -> int:
    """The current one."""
    return int(check(driver.cuCtxGetCurrent()))


@cache
def _module(context: int) -> Any:  # noqa: ARG001 (the one that it is loaded into)
    device = check(driver.cuCtxGetDevice())
    kinds = driver.CUdevice_attribute
    capability = (
        kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    )
    numbers = (str(check(driver.cuDeviceGetAttribute(kind, device))) for kind in capability)
    code = _compile_for_host() if is_simulated() else compile_for_gpu(".".join(numbers))
    return check(driver.cuModuleLoadData(code))


@cache
def _kernel(context: int, name: str) -> Any:
    return check(driver.cuModuleGetFunction(_module(context), name.encode()))


def launch(name: str, stream: int, *pointers: int, count: int, threads: int | None = None) -> None:
    """Enqueue a kernel of kernels.cu in the current context, with one thread for each of ``count``.

    ``pointers`` are in, weights, bias and out.
    """
    blocks = math.ceil((count if threads is None else threads) / _WIDTH)
    kinds = (ctypes.c_void_p,) * 4 + (ctypes.c_longlong,)
    arguments = ((*pointers, count), kinds)
    width = _WIDTH if threads is None else min(threads, _WIDTH)
    check(driver.cuLaunchKernel(_kernel(_context(), name), blocks, 1, 1, width, 1, 1, 0, stream, arguments, 0))


def spin(stream: int, cycles: int) -> None:
    """Keep a stream busy for so many clock cycles: 1e8 are 50 to 300 ms on a GPU, 10 ms on the simulated driver."""
    launch("spin", stream, 0, 0, 0, 0, count=cycles // 10 if is_simulated() else cycles, threads=1)


@contextlib.contextmanager
def primary_context() -> Iterator[None]:
    """That of device 0, current for the block."""
    device = check(driver.cuDeviceGet(0))
    context = check(driver.cuDevicePrimaryCtxRetain(device))
    check(driver.cuCtxPushCurrent(context))
    try:
        yield
    finally:
        check(driver.cuCtxPopCurrent())
        check(driver.cuDevicePrimaryCtxRelease(device))


class Runtime(engine_double.Runtime):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> engine_double.ICudaEngine | None:
        import json

        header, _, model = serialized_engine.partition(b"\n")
        return ICudaEngine(self._logger, tuple(json.loads(header)["profile"]), model)


class ICudaEngine(engine_double.ICudaEngine):
    def __init__(self, logger: Any, profile: tuple[Any, Any, Any], model: bytes) -> None:
        super().__init__(logger, profile, model)
        self.device_memory_size_v2 = profile[2] * (_CONV + _POOL) * _FLOAT_BYTES
        arrays = {w.name: numpy_helper.to_array(w) for w in onnx.load_from_string(model).graph.initializer}
        self._weights = {name: _on_device(array) for name, array in arrays.items()}
        weakref.finalize(self, _free, _context(), list(self._weights.values())).atexit = False

    def create_execution_context(self, strategy: Any) -> engine_double.IExecutionContext:
        assert strategy == engine_double.ExecutionContextAllocationStrategy.USER_MANAGED or strategy._user_managed
        return IExecutionContext(self)


class IExecutionContext(engine_double.IExecutionContext):
    def execute_async_v3(self, stream_handle: int) -> bool:
        global enqueued
        enqueued += 1
        for callback in during_enqueue:
            callback()
        engine: Any = self.engine
        assert self._shape is not None
        scratch, size = self._scratch
        assert size >= engine.device_memory_size_v2
        images = self._shape[0]
        behind = scratch + images * _CONV * _FLOAT_BYTES
        weights = engine._weights
        conv, gemm = (weights["w1"], weights["b1"]), (weights["w2"], weights["b2"])
        try:
            launch("conv_relu", stream_handle, self._addresses["input"], *conv, scratch, count=images * _CONV)
            launch("lrn_pool", stream_handle, scratch, 0, 0, behind, count=images * _POOL)
            launch("gemm", stream_handle, behind, *gemm, self._addresses["logits"], count=images * _CLASSES)
        except AlexdeployError as error:  # TensorRT says so in its log
            engine._logger.log(1, str(error))
            return False
        return True


def _on_device(array: np.ndarray[Any, Any]) -> int:
    pointer = int(check(driver.cuMemAlloc(array.nbytes)))
    check(driver.cuMemcpyHtoD(pointer, np.ascontiguousarray(array).ctypes.data, array.nbytes))
    return pointer


def _free(context: int, pointers: list[int]) -> None:
    check(driver.cuCtxPushCurrent(context))
    for pointer in pointers:
        check(driver.cuMemFree(pointer))
    check(driver.cuCtxPopCurrent())


def install() -> None:
    """Make ``import tensorrt`` find the double."""
    engine_double.install("tensorrt", VERSION)
    for kind in (Runtime, ICudaEngine, IExecutionContext):
        setattr(sys.modules["tensorrt"], kind.__name__, kind)
