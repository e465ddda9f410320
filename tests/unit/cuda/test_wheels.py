"""Which CUDA installed libraries need, by ``*.dist-info`` written here, and what a driver makes of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from alexdeploy import machine
from alexdeploy.cuda import open as cuda_open
from alexdeploy.cuda import wheels as cuda_wheels
from alexdeploy.cuda.wheels import Wheel, wheels, why_too_old
from alexdeploy.engine import record, versions
from alexdeploy.engine.record import EngineFile, EngineRecord
from alexdeploy.errors import InputWarning, UnavailableError
from alexdeploy.machine import Gpu
from alexdeploy.specs import BuilderName

# as the published wheels have it
ORT = "package_name = 'onnxruntime-gpu'\n__version__ = '1.31.1'\ncuda_version = '13.0'\n"
TORCH = "__version__ = '2.14.1+cu130'\ndebug = False\ncuda: Optional[str] = '13.0'\ngit_version = 'abc'\n"


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, version: str, file: str = "", text: str = ""
) -> None:
    """Make a distribution be there, ahead of any other of its name, with one file."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if file:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    if sys.path[0] != str(folder):
        monkeypatch.syspath_prepend(folder)


def gpu_with(monkeypatch: pytest.MonkeyPatch, cuda: str) -> None:
    """A device whose driver runs that CUDA."""
    gpu = Gpu("NVIDIA L4", "8.9", cuda)
    for module in (cuda_wheels, machine):
        monkeypatch.setattr(module, "current_gpu", lambda *_: gpu)
    monkeypatch.setattr(versions, "why_no_cuda", lambda *_: None)


CASES = {
    "tensorrt": ("tensorrt_cu13_libs", "11.4.0.106", "", "", "13"),
    "tensorrt-rtx": ("tensorrt_rtx_cu12_libs", "1.3.0.35", "", "", "12"),
    "onnxruntime-gpu": ("onnxruntime_gpu", "1.31.1", "onnxruntime/capi/build_and_package_info.py", ORT, "13.0"),
    "torch": ("torch", "2.14.1", "torch/version.py", TORCH, "13.0"),
    "cuda-bindings": ("cuda_bindings", "12.9.10", "", "", "12"),
}


@pytest.mark.parametrize("library", CASES)
def test_the_cuda_of_a_library_is_told_without_importing_it(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, version, file, text, cuda = CASES[library]
    install(monkeypatch, tmp_path, name, version, file, text)
    assert Wheel(name.replace("_", "-"), version, cuda) in [
        Wheel(wheel.name.replace("_", "-"), wheel.version, wheel.cuda) for wheel in wheels(library)
    ]


@pytest.mark.parametrize("told", ["cuda: Optional[str] = None\n", None])
def test_a_build_without_cuda_says_nothing(told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "torch", "2.14.1", "torch/version.py" if told else "", told or "")
    gpu_with(monkeypatch, "12.4")
    assert [*wheels("torch")] == []
    assert why_too_old("torch") is None


@pytest.mark.parametrize(
    ("driver", "library", "advice"),
    [
        ("12.4", "tensorrt_cu13_libs", "NVIDIA driver of 580 or newer, or alexdeploy's extra 'gpu-cu12'"),
        ("11.8", "tensorrt_cu13_libs", "NVIDIA driver of 580 or newer"),
        ("11.8", "tensorrt_cu12_libs", "NVIDIA driver of 525 or newer"),
        ("12.0", "tensorrt_cu12_libs", None),  # CUDA 12.9 inside: a driver runs every minor version of its major
        ("13.0", "tensorrt_cu12_libs", None),
        ("13.0", "tensorrt_cu13_libs", None),
    ],
)
def test_a_driver_runs_its_own_major_and_older_ones(
    driver: str, library: str, advice: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, library, "10.16.1.11")
    gpu_with(monkeypatch, driver)
    reason = why_too_old("tensorrt")
    assert (reason is None) == (advice is None)
    if reason is not None:
        assert re.match(
            rf"{library.replace('_', '-')} 10\.16\.1\.11 needs CUDA \d+ and the driver runs CUDA {driver};", reason
        )
        assert str(advice) in reason
        assert ("gpu-cu12" in reason) == ("gpu-cu12" in str(advice))


def test_without_a_device_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "tensorrt_cu13_libs", "11.4.0.106")
    monkeypatch.setattr(cuda_wheels, "current_gpu", lambda *_: None)
    assert why_too_old("tensorrt") is None


def test_tensorrt_is_refused_before_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "tensorrt_cu13_libs", "11.4.0.106")
    (tmp_path / "tensorrt.py").write_text("raise AssertionError('imported')")
    gpu_with(monkeypatch, "12.4")
    with pytest.raises(UnavailableError, match=r"tensorrt-cu13-libs 11\.4\.0\.106 needs CUDA 13 and the driver"):
        versions.load_library("tensorrt")


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_is_not_given_to_a_runtime_that_the_driver_does_not_run(
    builder: BuilderName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, f"{builder.replace('-', '_')}_cu13_libs", "11.4.0.106")
    gpu_with(monkeypatch, "12.4")
    with pytest.raises(UnavailableError, match=rf"^{builder}-cu13-libs 11\.4\.0\.106 needs CUDA 13") as refused:
        record.check_runs_here(EngineFile(EngineRecord(builder=builder), b"", "model.engine"), trust=True)
    assert ("gpu-cu12" in str(refused.value)) == (builder == "tensorrt"), "which does not bring TensorRT-RTX"


def test_the_device_is_not_opened_through_bindings_that_are_too_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    install(monkeypatch, tmp_path, "cuda_bindings", "13.5.0")
    gpu_with(monkeypatch, "12.4")
    monkeypatch.setattr(cuda_open, "why_no_cuda", lambda *_: None, raising=False)
    with pytest.raises(UnavailableError, match=r"^cuda-bindings 13\.5\.0 needs CUDA 13"):
        cuda_open.open_device.__wrapped__()


def test_pytorch_stays_on_the_cpu_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from alexdeploy.runners.pytorch import PyTorchRunner
    from alexdeploy.zoo.checkpoint import untrained

    install(monkeypatch, tmp_path, "torch", "2.14.1", "torch/version.py", TORCH)
    gpu_with(monkeypatch, "12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(InputWarning, match=r"on the CPU: torch 2\.14\.1 needs CUDA 13 and the driver"):
        runner = PyTorchRunner(untrained("lenet", 10, seed=0))
    assert not runner.on_gpu
