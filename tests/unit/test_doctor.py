"""What the doctor makes of a machine with a GPU; the rest is in tests/simulated_cuda/inside_doctor.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from alexdeploy import doctor
from alexdeploy.cuda import wheels as cuda_wheels
from alexdeploy.doctor import Finding
from alexdeploy.errors import UnavailableError
from alexdeploy.machine import Gpu
from tests.unit.cuda.test_wheels import install

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
NO_TENSORRT = "TensorRT 11 is installed; the provider needs libnvinfer.so.10"


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (doctor, cuda_wheels):
        monkeypatch.setattr(module, "current_gpu", lambda *_: Gpu("NVIDIA H100", "9.0", "13.0"))


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime-gpu whose CUDA provider works, and whose TensorRT provider finds TensorRT 11."""
    from alexdeploy.runners import onnxruntime_gpu
    from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

    def refuse(*_: Any) -> Any:
        raise UnavailableError(NO_TENSORRT)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime_gpu, "CudaRunner", lambda model, _: OnnxRuntimeRunner(model))
    monkeypatch.setattr(onnxruntime_gpu, "TensorRtProviderRunner", refuse)


@pytest.mark.usefixtures("providers")
def test_onnxruntime_is_tried_on_the_gpu() -> None:
    found = doctor._try("onnxruntime-cuda", doctor._onnxruntime_cuda)
    assert found == Finding("onnxruntime-cuda", "ok", f"onnxruntime-gpu {onnxruntime.__version__}, LRN right")


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize(("installed", "status"), [("11.4.0.106", "missing"), ("10.16.1.11", "broken")])
def test_the_tensorrt_of_the_provider_may_be_absent_but_not_broken(
    installed: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "tensorrt_cu13_libs", installed)
    found = doctor._try("onnxruntime-tensorrt", doctor._onnxruntime_tensorrt)
    assert (found.status, found.detail[: len(NO_TENSORRT)]) == (status, NO_TENSORRT)
    assert ("extra 'gpu-trt10'" in found.detail) == (status == "missing")


@pytest.mark.usefixtures("providers")
def test_a_tensorrt_10_of_the_system_is_there_and_so_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "wheels", lambda _: iter(()))
    asked: list[str] = []
    monkeypatch.setattr("ctypes.CDLL", asked.append)
    assert doctor._try("onnxruntime-tensorrt", doctor._onnxruntime_tensorrt).status == "broken"
    assert "libnvinfer.so.10" in asked


def test_an_onnxruntime_or_torch_for_the_cpu_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    found = doctor._try("onnxruntime-cuda", doctor._onnxruntime_cuda)
    assert (found.status, "pip install onnxruntime-gpu" in found.detail) == ("missing", True)
    torch: Any = ModuleType("torch")
    torch.__version__, torch.version = "2.15.0+cpu", SimpleNamespace(cuda=None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert doctor._try("pytorch on cuda", doctor._pytorch_cuda).status == "missing"


def test_tensorrt_rtx_is_not_run_where_nvidia_does_not_support_it() -> None:
    found = doctor._try("tensorrt-rtx (run)", lambda: doctor._run("tensorrt-rtx"))
    expected = "TensorRT-RTX does not run on NVIDIA H100 (compute capability 9.0)"
    assert found == Finding("tensorrt-rtx (run)", "missing", expected)


def test_a_library_that_is_installed_and_does_not_load_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text("raise OSError('libtbb.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    found = doctor._try("openvino", doctor._openvino)
    assert (found.status, "libtbb.so.12" in found.detail) == ("broken", True)
