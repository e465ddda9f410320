"""What the doctor finds on a machine with a GPU; run by tests/unit/runners/test_tensorrt.py."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest

from alexdeploy import doctor
from alexdeploy.cli import main
from alexdeploy.doctor import Cuda, Finding
from tests.simulated_cuda import builder_double
from tests.unit.cuda.test_wheels import TORCH, install

pytestmark = pytest.mark.usefixtures("tensorrt_builder")


def test_an_engine_is_built_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in builder_double.CLASSES:
        monkeypatch.setattr(sys.modules["tensorrt_rtx"], kind.__name__, kind, raising=False)
    for name in ("torch", "openvino"):  # seconds to import, and PyTorch's CUDA does not run on the simulated driver
        monkeypatch.setitem(sys.modules, name, None)
    install(monkeypatch, tmp_path, "torch", "2.14.1", "torch/version.py", TORCH)
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    status = {finding["backend"]: finding["status"] for finding in found["findings"]}
    here = [name for name in status if name.startswith(("tensorrt", "cuda"))]
    assert {name: status[name] for name in here} == dict.fromkeys(here, "ok"), found
    assert {"tensorrt (run)", "tensorrt-rtx (run)", "cuda device"} <= {*here}
    assert (status["onnxruntime-cuda"], status["onnxruntime-tensorrt"]) == ("missing", "missing"), "it is for the CPU"
    assert not stop.value.code
    assert found["cuda"]["driver"] == "13.0"
    assert {"name": "torch", "version": "2.14.1", "cuda": "13.0"} in found["cuda"]["libraries"]


def test_wrong_answers_of_an_engine_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_expected", lambda x: x + 1)
    assert doctor._try("run", lambda: doctor._run("tensorrt")).status == "broken"


def test_a_driver_that_is_too_old_is_told_before_anything_runs_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_DRIVER_VERSION", "12040")
    install(monkeypatch, tmp_path, "tensorrt_cu13_libs", "11.4.0.106")
    install(monkeypatch, tmp_path, "torch", "2.14.1", "torch/version.py", TORCH)
    reason = (
        "{} needs CUDA 13 and the driver runs CUDA 12.4; install an NVIDIA driver of 580 or newer, or "
        "alexdeploy's extra 'gpu-cu12' in a new environment"
    )
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tensorrt", None)  # its import would be too late
        for run in (doctor._build, doctor._run):
            found = doctor._try("tensorrt", functools.partial(run, "tensorrt"))
            assert found == Finding("tensorrt", "broken", reason.format("tensorrt-cu13-libs 11.4.0.106"))
    torch = doctor._try("pytorch on cuda", doctor._pytorch_cuda)
    assert torch == Finding("pytorch on cuda", "broken", reason.format("torch 2.14.1"))
    cuda = doctor.cuda_versions()
    assert cuda.driver == "12.4"
    assert "tensorrt-cu13-libs" in [wheel.name for wheel in cuda.libraries if not cuda.runs(wheel)]
    assert Cuda("13.0", cuda.libraries).runs(cuda.libraries[0])
