"""Others on the same device: PyTorch, CuPy, ONNX Runtime, nvidia-smi, compute-sanitizer, TensorRT's lean runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver

from alexdeploy import machine
from alexdeploy.cuda.open import open_device
from alexdeploy.cuda.with_cuda_python import check as checked
from alexdeploy.errors import UnavailableError
from alexdeploy.runners.tensorrt import TensorRTRunner
from tests.gpu.bare import double
from tests.gpu.bare.scenario import Figures, NotRun, Place, ask, check, scenario
from tests.helpers.graphs import conv_lrn_gemm, conv_lrn_gemm_in_torch, images

_BUSY = 100_000_000  # clock cycles; see double.spin
_FOUND = 86  # what compute-sanitizer shall exit with
_CLEAN = ("every_batch_size", "replay", "eight_threads")  # what is run under compute-sanitizer


def _torch(place: Place) -> Any:
    if find_spec("torch") is None:
        raise NotRun("torch is not installed")
    if place.simulated:
        raise NotRun("PyTorch's CUDA does not run on the simulated driver")
    import torch

    if not torch.cuda.is_available():
        raise NotRun(f"torch {torch.__version__} sees no CUDA device")
    return torch


@scenario(both=True)
def order_with_torch(place: Place) -> None:
    """Tensors that a busy stream of PyTorch has yet to write, and to read: a stream of its own, and the default one."""
    torch = _torch(place)
    pinned = torch.from_numpy(images(3)).pin_memory()
    with TensorRTRunner(place.engine) as runner:
        for stream in (torch.cuda.Stream(), torch.cuda.default_stream()) * 2:  # kernels are loaded in the first round
            with torch.cuda.stream(stream):
                source, target = torch.zeros(3, 3, 8, 8, device="cuda"), torch.zeros(3, 4, device="cuda")
                torch.cuda.synchronize()
                double.spin(stream.cuda_stream, _BUSY)
                source.copy_(pinned, non_blocking=True)
                runner.infer_on_device(source, target)  # waits for what it was told of, returns when it is done
                check(target.cpu().numpy(), 3)
                source.zero_()
                target.fill_(7)
                torch.cuda.synchronize()
                double.spin(stream.cuda_stream, _BUSY)
                source.copy_(pinned, non_blocking=True)
                earlier = target.clone()  # is read late, and must not be overwritten before
                runner.infer_on_device(source, target, stream.cuda_stream)
                later = target * 1
                check(later.cpu().numpy(), 3)
                assert bool((earlier == 7).all()), "the output was overwritten before PyTorch had read it"


@scenario(both=True)
def order_with_cupy(place: Place) -> None:
    """The same with CuPy's arrays, by DLPack and by __cuda_array_interface__ alone."""
    if place.simulated:
        raise NotRun("CuPy does not run on the simulated driver")
    if find_spec("cupy") is None:
        raise NotRun("cupy is not installed")
    import cupy  # type: ignore[import-not-found]

    with TensorRTRunner(place.engine) as runner:
        for alone in (False, True) * 2:  # kernels are loaded in the first round
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream:
                values, source = cupy.asarray(images(3)), cupy.zeros((3, 3, 8, 8), np.float32)
                target = cupy.zeros((3, 4), np.float32)
                stream.synchronize()
                double.spin(stream.ptr, _BUSY)
                source[...] = values
                arrays = [source, target]
                if alone:
                    arrays = [SimpleNamespace(__cuda_array_interface__=a.__cuda_array_interface__) for a in arrays]
                runner.infer_on_device(*arrays)
                check(cupy.asnumpy(target), 3)


@scenario()
def torch_synchronised_all_the_time(place: Place) -> Figures:
    """Another thread computes and calls torch.cuda.synchronize() without end: right answers, or one clear error."""
    torch = _torch(place)
    done, said = threading.Event(), set()

    def disturb() -> None:
        while not done.is_set():
            try:
                torch.ones(64, 64, device="cuda").sum().item()
                torch.cuda.synchronize()
            except Exception as error:
                said.add(str(error).splitlines()[0])

    thread = threading.Thread(target=disturb, daemon=True)
    refused: list[str] = []
    thread.start()
    try:
        for seed in range(30):  # each new runner captures anew
            with TensorRTRunner(place.engine, contexts=1) as runner:
                for count in (1, 2, 3, 4) * 3:
                    try:
                        ask(runner, count, seed)
                    except UnavailableError as error:
                        refused.append(str(error))
    finally:
        done.set()
        thread.join(30)
    return {"PyTorch was told": sorted(said), "calls refused, of 360": len(refused), "why": sorted(set(refused))}


@scenario()
def uuid_and_nvidia_smi(place: Place) -> Figures:  # noqa: ARG001
    """Device 0 by its UUID is the device that nvidia-smi has under that UUID."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        raise NotRun("nvidia-smi is not installed")
    try:
        with double.primary_context():
            raw = checked(driver.cuDeviceGetUuid(checked(driver.cuDeviceGet(0)))).bytes
    except RuntimeError as error:  # cuda-python, of a function that the driver has not
        raise NotRun(f"the driver: {error}") from error
    found = str(uuid.UUID(bytes=bytes(raw)))
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False).stdout
    lines = [line.strip() for line in listed.splitlines() if found in line]
    gpu = machine.current_gpu()
    assert len(lines) == 1, f"{found} is not in: {listed}"
    assert gpu is not None
    assert gpu.name in lines[0] or "MIG" in lines[0], f"{gpu.name}, but nvidia-smi says {lines[0]}"
    return {"nvidia-smi": lines[0], "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}


@scenario(alone=True)
def onnxruntime_cuda(place: Place) -> Figures:
    """ONNX Runtime's CUDA provider: PyTorch's answers in FP32 and FP16, host to host and bound to device memory."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise NotRun(f"this onnxruntime {ort.__version__} has no CUDA provider; install onnxruntime-gpu")
    _torch(place)  # first: its wheels bring cuBLAS and cuDNN
    import onnx_ir as ir

    from alexdeploy.graph.fp16 import to_fp16
    from alexdeploy.graph.model import model_bytes
    from alexdeploy.runners.onnxruntime_gpu import CudaRunner
    from alexdeploy.specs import Precision

    figures: Figures = {"onnxruntime": ort.__version__}
    for precision, share in ((Precision.FP32, 1e-4), (Precision.FP16, 1e-2)):
        model = ir.from_proto(conv_lrn_gemm())
        with CudaRunner(model_bytes(to_fp16(model) if precision.fp16 else model), precision) as runner:
            for count in (1, 5, 3):
                answer = conv_lrn_gemm_in_torch(images(count))
                error = np.abs(runner.infer(images(count)) - answer).max() / np.abs(answer).max()
                bound: Any = runner.device_call(images(count))()
                assert bound[0].device_name() == "cuda"
                assert error <= share, f"{precision.value}, batch {count}: {error:.2e} of the largest logit"
                figures[f"{precision.value}, largest error of the largest logit"] = float(f"{error:.2e}")
    return figures


@scenario(alone=True)
def lean_runtime_refusals(place: Place) -> Figures:
    """TensorRT's lean runtime refuses garbage and the double's plan with None and words, and does not crash."""
    if find_spec("tensorrt_lean") is None:
        raise NotRun("tensorrt_lean is not installed")
    if place.simulated:
        raise NotRun("TensorRT's libraries do not run on the simulated driver")
    import tensorrt_lean as trt  # type: ignore[import-not-found]

    said: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= 1:
                said.append(text)

    figures: Figures = {"tensorrt_lean": trt.__version__}
    runtime = trt.Runtime(Logger())
    for name, plan in {"garbage": b"garbage" * 100, "plan of the double": place.engine.read_bytes()}.items():
        said.clear()
        assert runtime.deserialize_cuda_engine(plan) is None
        assert said, f"{name}: no word why"
        figures[name] = said[-1]
    return figures


@scenario(control=True, alone=True)
def planted_write_past_the_end(place: Place) -> None:  # noqa: ARG001
    """A kernel writes behind its memory."""
    with open_device().current():
        memory = checked(driver.cuMemAlloc(256))
        double.launch("write_behind", 0, 0, 0, 0, int(memory), count=64, threads=1)
        driver.cuCtxSynchronize()


@scenario(alone=True, seconds=300.0)
def under_compute_sanitizer(place: Place) -> Figures:
    """compute-sanitizer (memcheck) finds nothing in the calls, and does find a write past the end that is put there."""
    tool = _sanitizer()
    if tool is None:
        raise NotRun("compute-sanitizer is not installed")
    figures = {}
    for name, names, clean in (("calls", _CLEAN, True), ("control", ("planted_write_past_the_end",), False)):
        results = place.folder / f"sanitizer-{name}.jsonl"
        command = [tool, "--tool", "memcheck", "--target-processes", "all", "--error-exitcode", str(_FOUND)]
        command += [sys.executable, "-m", "tests.gpu.bare.child", str(place.folder), "cuda-python", str(results)]
        done = subprocess.run([*command, *names], capture_output=True, text=True, timeout=140, check=False)
        print(done.stdout, done.stderr, flush=True)  # into the log
        summary = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
        figures[name] = summary[-1].strip("= ") if summary else f"status {done.returncode}"
        ran = results.read_text().count('"status": "ok"') if results.exists() else 0
        assert summary, f"{name}: compute-sanitizer gave no summary: {(done.stdout + done.stderr)[-500:]}"
        if clean:
            assert (done.returncode, ran) == (0, len(names)), f"{name}: {figures[name]}; {ran} of {len(names)} ran"
        else:
            assert done.returncode == _FOUND, f"{name}: the planted write was not found"
    return figures


def _sanitizer() -> str | None:
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parent] if nvcc else []
    beside = [str(folder / "compute-sanitizer") for folder in (*folders, Path("/usr/local/cuda/bin"))]
    return next(filter(None, map(shutil.which, ("compute-sanitizer", *beside))), None)
