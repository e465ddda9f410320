"""The real onnxruntime-gpu where something is missing; run by tests/unit/runners/test_onnxruntime_gpu.py.

Neither NVIDIA's wheels nor torch can be imported here, but for the tests at the end, which add the wheels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

import alexdeploy
from alexdeploy.cli import main
from alexdeploy.cuda import wheels
from alexdeploy.errors import InputWarning, UnavailableError
from alexdeploy.machine import Gpu
from alexdeploy.runners import onnxruntime_libraries
from alexdeploy.runners.onnxruntime_gpu import CudaRunner, TensorRtProviderRunner
from alexdeploy.specs import Precision
from tests.simulated_cuda.conftest import MODEL

MISSING = r"libcublasLt\.so\.13: cannot open shared object file.*pip install 'onnxruntime-gpu\[cuda,cudnn\]'"


def refusal(runner: type[CudaRunner], capfd: pytest.CaptureFixture[str], model: bytes = MODEL) -> str:
    """The one line with which it refuses; nothing else is said anywhere."""
    with pytest.raises(UnavailableError) as error:
        runner(model, Precision.FP32)
    assert capfd.readouterr().out == ""
    assert "\n" not in str(error.value)
    return str(error.value)


def stub_tensorrt(folder: Path, major: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel like TensorRT's, whose libraries are empty but for their version; returns what records its import."""
    package = folder / "tensorrt_libs"
    package.mkdir()
    source = folder / "empty.c"
    source.write_text("int getInferLibVersion(void) { return 101601; }\n")
    for name in (f"libnvinfer.so.{major}", f"libnvonnxparser.so.{major}"):
        shared = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o", str(package / name)]
        subprocess.run(shared, check=True)
    record = folder / "imported"
    (package / "__init__.py").write_text(f"open({str(record)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(folder)
    return record


def test_the_wheel_is_the_one_meant() -> None:
    assert {"CUDAExecutionProvider", "TensorrtExecutionProvider"} <= set(ort.get_available_providers())


def test_a_missing_library_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert re.match(MISSING, refusal(CudaRunner, capfd))
    assert refusal(TensorRtProviderRunner, capfd).startswith("libcublas.so.13: cannot open shared object file")


def test_without_a_driver_there_is_no_device() -> None:
    code = (
        "from alexdeploy.runners.onnxruntime_gpu import CudaRunner, Precision\n"
        "CudaRunner(b'not looked at', Precision.FP32)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    here = MISSING if Path("/dev/nvidia0").exists() else r"no CUDA device \(.+\)"
    assert re.search(f"UnavailableError: {here}", done.stderr)


def test_an_old_driver_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheels, "current_gpu", lambda: Gpu("NVIDIA L4", "8.9", "12.4"))
    said = refusal(CudaRunner, capfd)
    assert re.match(r"onnxruntime-gpu \S+ needs CUDA 13 and the driver runs CUDA 12.4; install an NVIDIA driver", said)


def test_another_tensorrt_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    record = stub_tensorrt(tmp_path, 11, monkeypatch)
    said = refusal(TensorRtProviderRunner, capfd)
    assert said.startswith(
        "TensorRT 11 is installed; the TensorRT provider of onnxruntime-gpu 1.31.1 needs TensorRT 10"
    )
    assert said.endswith("pip install 'tensorrt-cu13<11'")
    assert not record.exists()


def test_load_says_what_it_took_instead(folder: Path) -> None:
    with (
        pytest.warns(InputWarning, match=r"model\.onnx runs on onnxruntime-cpu: onnxruntime-cuda: " + MISSING),
        alexdeploy.load(folder / "model.onnx") as runner,
    ):
        assert runner.runtime == "onnxruntime-cpu"


@pytest.mark.usefixtures("folder")
def test_json_stays_json_and_the_exit_code_tells(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "pictures", "--batch", "1", "--seconds", "0.01", "--json"]
    with pytest.raises(SystemExit) as stop:
        main(["bench", "model.onnx", "--runtime", "onnxruntime-cuda", *options])
    said = capfd.readouterr()
    (row,) = json.loads(said.out)["rows"]
    assert row["status"] == "skipped"
    assert re.match(MISSING, row["reason"])
    assert stop.value.code == UnavailableError.exit_code
    assert re.search("^error: .*" + MISSING, said.err, re.MULTILINE)


@pytest.fixture
def _with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's own libraries; they stay in the process, so what wants none comes before."""
    wheels = Path(os.environ["WITH_NVIDIA"])
    if not list(wheels.glob("nvidia/*/lib/libcublasLt.so.13")) or not list(wheels.glob("nvidia/*/lib/libcudnn.so.9")):
        pytest.skip("NVIDIA's wheels for CUDA 13 are not installed")
    monkeypatch.setattr(sys, "path", [*sys.path, str(wheels)])


@pytest.mark.usefixtures("_with_cuda")
def test_what_the_linker_says_of_the_provider_itself_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """As on a driver of CUDA 11, which lacks a function that the provider is linked to."""
    said = refusal(CudaRunner, capfd)
    assert said.startswith("CUDAExecutionProvider did not start, ONNX Runtime fell back to CPUExecutionProvider: ")
    assert said.endswith("undefined symbol: cuTensorMapEncodeTiled")


@pytest.mark.usefixtures("_with_cuda")
def test_a_file_that_is_no_model_is_refused_with_the_libraries_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert "protobuf parsing failed" in refusal(CudaRunner, capfd, b"no model")


@pytest.mark.usefixtures("_with_cuda")
def test_the_right_tensorrt_is_imported_before_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refusal(TensorRtProviderRunner, capfd).startswith("libnvinfer.so.10: cannot open shared object file")
    record = stub_tensorrt(tmp_path, 10, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "undefined symbol: " in refusal(TensorRtProviderRunner, capfd)
    assert record.exists()
    assert onnxruntime_libraries.tensorrt_version() == "101601"
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [], "half an entry is left"
