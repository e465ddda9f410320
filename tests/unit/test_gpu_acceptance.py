"""``make gpu-check`` cannot say "accepted" when something was skipped: run with a fake alexdeploy and a fake pytest."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from alexdeploy.cli import cli
from alexdeploy.machine import Gpu
from tests.gpu import acceptance
from tests.gpu.acceptance import Finished
from tests.gpu.steps import FEATURES, Bench, plan

ROOT = Path(__file__).resolve().parents[2]
ADA, HOPPER, TURING = (
    Gpu("NVIDIA L4", "8.9", "13.0"),
    Gpu("NVIDIA H100", "9.0", "13.0"),
    Gpu("NVIDIA T4", "7.5", "13.0"),
)
TESTS = ("test_every_batch_size_again_and_again", "test_threads_share_a_runner")
RUNTIMES = {".safetensors": ("pytorch",), ".onnx": ("onnxruntime-cuda", "onnxruntime-tensorrt")}


@dataclass
class Fake:
    """Everything goes well, but for what it is told."""

    everything_skipped: bool = False
    row_skipped: str = ""  # artifact and runtime
    row_missing: str = ""
    test_skipped: str = ""
    test_failed: str = ""
    step_fails: str = ""  # by a word of its command
    step_unavailable: str = ""
    doctor: dict[str, str] = field(default_factory=dict)
    agreement: float = 1.0
    broken_json: bool = False
    commands: list[str] = field(default_factory=list)

    def __call__(self, command: Sequence[str], folder: Path, variables: dict[str, str]) -> Finished:  # noqa: ARG002
        words = list(command)
        self.commands.append(shlex.join(words[2:]))
        if "pytest" in words:
            return self.tests(next(word for word in words if word.startswith("--junit-xml=")).partition("=")[2])
        if "alexdeploy" not in words:
            return Finished(0, "some facts\n", "")
        verb, *rest = words[words.index("alexdeploy") + 1 :]
        return self.verb(verb, rest, folder)

    def tests(self, report: str) -> Finished:
        states = {self.test_skipped: '<skipped message="no CUDA"/>', self.test_failed: '<failure message="wrong"/>'}
        cases = [
            f'<testcase classname="tests.gpu.test_run_on_gpu" name="{name}">'
            f"{'<skipped/>' if self.everything_skipped else states.get(name, '')}</testcase>"
            for name in TESTS
        ]
        Path(report).write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
        return Finished(1 if self.test_failed else 0, "2 tests", "")

    def verb(self, verb: str, rest: list[str], folder: Path) -> Finished:
        if verb == "doctor":
            states = {"pytorch": "ok", "cuda device": "ok", "openvino": "missing", **self.doctor}
            return Finished(
                0, json.dumps({"findings": [{"backend": b, "status": s, "detail": ""} for b, s in states.items()]}), ""
            )
        if verb == "bench":
            return self.bench(rest, folder)
        said = shlex.join([verb, *rest])
        if self.everything_skipped or (self.step_unavailable and self.step_unavailable in said):
            return Finished(4, "", "error: no TensorRT")
        if self.step_fails and self.step_fails in said:
            return Finished(1, "", "error: it went wrong")
        made = rest[rest.index("-o") + 1] if "-o" in rest else f"{rest[0]}.safetensors"
        (folder / made).write_text("made")
        return Finished(0, "", "")

    def bench(self, rest: list[str], folder: Path) -> Finished:
        asked = [rest[i + 1] for i, word in enumerate(rest) if word == "--runtime"]
        sizes = rest[rest.index("--batch") + 1].split(",")
        rows: list[dict[str, Any]] = []
        for name in (word for word in rest if (folder / word).is_file() and not word.startswith("bench")):
            own = RUNTIMES.get(Path(name).suffix, ("tensorrt-rtx" if name.startswith("rtx") else "tensorrt",))
            for runtime in (one for one in own if one in asked):
                found = f"{name} on {runtime}"
                if found == self.row_missing:
                    continue
                skipped = self.everything_skipped or found == self.row_skipped
                rows += [
                    {"artifact": name, "runtime": runtime, "batch": int(size), "status": "skipped", "reason": "no GPU"}
                    if skipped
                    else {
                        "artifact": name,
                        "runtime": runtime,
                        "batch": int(size),
                        "status": "ok",
                        "latency_ms": {"p50": 1.0},
                        "agreement": self.agreement,
                        "server": {"rate": 1},
                    }
                    for size in sizes
                ]
        return Finished(0, ("a library's line\n" if self.broken_json else "") + json.dumps({"rows": rows}), "")


@pytest.fixture
def accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(acceptance, "has_pycuda", lambda: True)

    def run(fake: Fake, *allowed: str, extra: str = "gpu-trt10", gpu: Gpu = ADA) -> tuple[int, str]:
        monkeypatch.setattr(acceptance, "current_gpu", lambda: gpu)
        options = [word for name in allowed for word in ("--allow", name)]
        status = acceptance.main([extra, str(tmp_path), *options], fake)
        return status, (tmp_path / "report.md").read_text()

    return run


@pytest.mark.parametrize("extra", FEATURES)
@pytest.mark.parametrize("gpu", [ADA, HOPPER, TURING], ids=str)
def test_where_all_is_good_it_is_accepted(accept: Any, extra: str, gpu: Gpu) -> None:
    status, report = accept(Fake(), extra=extra, gpu=gpu)
    assert status == 0, report
    assert report.startswith("# GPU acceptance: accepted\n")
    assert "some facts" in report, "nvidia-smi and pip freeze"
    assert '"backend": "cuda device"' in report


@pytest.mark.parametrize(
    ("fake", "named"),
    [
        (Fake(everything_skipped=True), "skipped: bench: fp32.engine on tensorrt, batch 64"),
        (Fake(row_skipped="fp16.engine on tensorrt"), "skipped: bench: fp16.engine on tensorrt, batch 1: no GPU"),
        (Fake(row_skipped="model.onnx on onnxruntime-tensorrt"), "model.onnx on onnxruntime-tensorrt, batch 8: no GPU"),
        (Fake(row_missing="rtx.engine on tensorrt-rtx"), "rtx.engine on tensorrt-rtx, batch 8: was not measured"),
        (Fake(test_skipped=TESTS[1]), f"skipped: tests/gpu/test_run_on_gpu.py::{TESTS[1]} (pycuda): no CUDA"),
        (Fake(test_failed=TESTS[0]), f"failed: tests/gpu/test_run_on_gpu.py::{TESTS[0]} (cuda-python): wrong"),
        (Fake(step_unavailable="--implicit"), "skipped: build-implicit: error: no TensorRT"),
        (Fake(step_fails="--version-compatible"), "failed: build-version-compatible: status 1"),
        (Fake(doctor={"cuda device": "missing"}), "skipped: doctor: cuda device"),
        (Fake(doctor={"pytorch": "broken"}), "failed: doctor: pytorch"),
        (Fake(doctor={"onnxruntime-tensorrt": "missing"}), "skipped: doctor: onnxruntime-tensorrt"),
        (Fake(agreement=0.5), "failed: bench: model.onnx on onnxruntime-cuda, batch 1: agrees"),
        (Fake(broken_json=True), "failed: bench: status 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_not(accept: Any, fake: Fake, named: str) -> None:
    status, report = accept(fake)
    assert status == 1
    assert report.startswith("# GPU acceptance: NOT accepted\n")
    against = report.partition("## Not asked here")[0]
    assert named in against, against


def test_what_the_extra_does_not_bring_is_not_asked_of_the_doctor(accept: Any) -> None:
    doctor = {"onnxruntime-tensorrt": "broken", "tensorrt-rtx (run)": "missing", "openvino": "broken"}
    assert accept(Fake(doctor=doctor), extra="gpu", gpu=HOPPER)[0] == 0
    assert accept(Fake(doctor=doctor), extra="gpu-trt10", gpu=HOPPER)[0] == 1
    assert accept(Fake(doctor={"tensorrt-rtx (run)": "missing"}), extra="gpu", gpu=ADA)[0] == 1


def test_a_command_that_hangs_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "LIMIT_S", 0.2, raising=False)
    done = acceptance.execute([sys.executable, "-c", "import time; time.sleep(5)"], tmp_path, {})
    assert (done.status, done.err) == (124, "did not end within 0.2 s")


def test_a_check_that_is_broken_off_leaves_its_report(accept: Any, tmp_path: Path) -> None:
    def interrupt(*_: Any) -> Finished:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        accept(interrupt)
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# GPU acceptance: NOT accepted\n")
    assert "failed: the check itself: KeyboardInterrupt" in report


def test_a_skip_is_allowed_by_its_name_and_told(accept: Any) -> None:
    name = f"tests/gpu/test_run_on_gpu.py::{TESTS[1]}"
    status, report = accept(Fake(test_skipped=TESTS[1]), f"{name} (pycuda)", f"{name} (cuda-python)")
    assert status == 0, report
    assert report.startswith(f"# GPU acceptance: accepted, without {name} (cuda-python), {name} (pycuda)\n")


def test_a_failure_cannot_be_allowed(accept: Any) -> None:
    status, _ = accept(Fake(step_fails="--version-compatible"), "build-version-compatible")
    assert status == 1


def test_without_pycuda_its_tests_count_as_skipped(accept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "has_pycuda", lambda: False)
    assert accept(Fake())[0] == 1
    assert accept(Fake(), "tests through pycuda")[0] == 0


def test_files_of_an_earlier_run_do_not_count(accept: Any, tmp_path: Path) -> None:
    assert accept(Fake())[0] == 0
    assert (tmp_path / "fp8-fp16.engine").exists()
    status, report = accept(Fake(step_fails="--fp8"))
    assert status == 1
    assert "skipped: bench: fp8-fp16.engine on tensorrt, batch 1: was not measured" in report


def test_without_a_device_it_is_not_even_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "current_gpu", lambda: None)
    assert acceptance.main(["gpu", str(tmp_path / "out")], Fake()) == 4
    assert not (tmp_path / "out").exists()


def test_what_is_asked_follows_the_extra_and_the_gpu() -> None:
    def of(extra: str, gpu: Gpu) -> str:
        asked = plan(extra, gpu)
        return " ".join([step.command for step in asked.steps] + [str(bench.artifacts) for bench in asked.benches])

    for wanted in (
        "--implicit",
        "--version-compatible",
        "--hardware ampere+",
        "--timing-cache",
        "--bf16",
        "--int8 --fp16",
    ):
        assert wanted in of("gpu-trt10", ADA), wanted
    for wanted in ("--fp8", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-tensorrt", "--network alexnet "):
        assert wanted in of("gpu-trt10", ADA), wanted
    assert "tensorrt-rtx" not in of("gpu", HOPPER)
    assert plan("gpu", HOPPER).left_out["rtx"].endswith("no target of TensorRT-RTX")
    assert "--fp8" in of("gpu", HOPPER)
    assert "--fp8" not in of("gpu", TURING)
    assert "--implicit" not in of("gpu", ADA)
    assert "onnxruntime-tensorrt" not in of("gpu", ADA)
    assert "onnxruntime" not in of("jetson", ADA)


@pytest.mark.parametrize("extra", FEATURES)
def test_every_command_is_one_of_alexdeploy(extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = plan(extra, ADA)
    names = frozenset(name for step in asked.steps for name in step.makes)
    for line in ["doctor --json", *(s.command for s in asked.steps), *(b.command(names) for b in asked.benches)]:
        verb, *rest = shlex.split(line)
        command = cli.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None
        command.make_context(verb, rest)


def test_every_bench_takes_files_that_a_step_makes() -> None:
    for extra in FEATURES:
        asked = plan(extra, ADA)
        made = {name for step in asked.steps for name in step.makes}
        assert {name for bench in asked.benches for name, _ in bench.artifacts} <= made
        engines = {name for step in asked.steps for name in step.makes if name.endswith(".engine")}
        again = {"timing-cache.engine", "timing-cache-again.engine", "int8-strict.engine"}  # of models measured before
        assert engines - again == {name for b in asked.benches for name, _ in b.artifacts if name.endswith(".engine")}


def test_a_bench_asks_only_for_what_is_there() -> None:
    bench = Bench("bench", (("model.onnx", "onnxruntime-cuda"), ("a.engine", "tensorrt")))
    assert "a.engine" not in bench.command(frozenset({"model.onnx"}))


def test_the_makefile_checks_each_extra_in_a_venv_of_its_own() -> None:
    said = subprocess.run(["make", "-n", "gpu-check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for extra in ("gpu", "gpu-trt10"):
        assert f".venv-{extra}/bin/python -m tests.gpu.acceptance {extra} gpu-check/{extra}" in said
    jetson = ["make", "-n", "gpu-check", "GPU_EXTRAS=jetson", "GPU_VENV_FLAGS=--system-site-packages"]
    said = subprocess.run(jetson, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m venv --system-site-packages .venv-jetson" in said
    assert "acceptance jetson gpu-check/jetson" in said


def test_the_extras_are_those_of_the_package() -> None:
    known = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]["optional-dependencies"]
    assert set(FEATURES) <= set(known)
