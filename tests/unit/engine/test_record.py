"""No engine that was changed, came without its sidecar, or belongs to another machine reaches TensorRT."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from alexdeploy import files, machine
from alexdeploy.contract import Contract
from alexdeploy.engine import record
from alexdeploy.engine.record import EngineRecord, check_runs_here, read_engine, write_engine
from alexdeploy.engine.versions import Compatibility, Library, process_logger, this_platform
from alexdeploy.errors import AlexdeployError, GateError, InputError, UnavailableError
from alexdeploy.machine import Gpu
from alexdeploy.specs import BuilderName, Hardware, Precision, Profile, TensorSpec

L4, T4, H100 = Gpu("NVIDIA L4", "8.9", "13.0"), Gpu("Tesla T4", "7.5", "13.0"), Gpu("NVIDIA H100", "9.0", "13.0")
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "12.8")
CONTRACT = Contract(color="gray", crop=8, mean=(0.5,), std=(0.5,), labels=("a", "b"))
DETAILS = EngineRecord(
    builder="tensorrt",
    version="10.16.1.11",
    rebuild="alexdeploy build-engine model.onnx -o model.engine",
    platform=this_platform(),
    gpu=L4,
    shapes={"input": Profile.parse("1:8:64").with_sizes((1, 8, 8))},
    input=TensorSpec("input", (-1, 1, 8, 8), "float32"),
    output=TensorSpec("logits", (-1, 2), "float32"),
    precision=Precision.FP16,
    classes=2,
    contract=CONTRACT,
    contract_sha256=CONTRACT.fingerprint,
)
PLAN = random.Random(0).randbytes(20_000)


class Untouchable:
    """A TensorRT that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"TensorRT was asked for {name}")


def write(folder: Path, details: EngineRecord = DETAILS) -> Path:
    path = folder / "model.engine"
    write_engine(path, PLAN, details, parents=(), options={})
    return path


def install(monkeypatch: pytest.MonkeyPatch, version: str = DETAILS.version, gpu: Gpu | None = L4) -> None:
    """A machine with that GPU and that version of either library."""
    monkeypatch.setattr(machine, "current_gpu", lambda ordinal: gpu)
    monkeypatch.setattr(record, "load_library", lambda builder: Library(builder, version, Untouchable()))


def checked(path: Path, *, trust: bool = False) -> EngineRecord:
    """What the runner does before it deserialises."""
    file = read_engine(path, trust=trust)
    check_runs_here(file, trust=trust)
    return file.record


def refusal(path: Path, kind: type[AlexdeployError] = GateError) -> str:
    with pytest.raises(kind) as caught:
        check_runs_here(read_engine(path))
    return str(caught.value)


def test_an_engine_is_taken_where_it_was_built_and_tells_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    file = read_engine(write(tmp_path))
    check_runs_here(file)
    assert (file.record, file.plan) == (DETAILS, PLAN)


def test_cut_and_changed_engines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    path, chance = write(tmp_path), random.Random(1)
    for place in range(1, 21):
        path.write_bytes(PLAN[: len(PLAN) * place // 21])
        assert "changed since it was written" in refusal(path)
    for _ in range(100):
        flipped = bytearray(PLAN)
        flipped[chance.randrange(len(PLAN))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        assert "changed since it was written" in refusal(path)
    path.write_bytes(b"")
    assert "empty" in refusal(path, InputError)


def test_a_missing_or_wrong_sidecar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    path = write(tmp_path)
    side = files.sidecar_path(path)
    good = side.read_bytes()
    other = tmp_path / "other.engine"
    write_engine(other, PLAN[1:], DETAILS, parents=(), options={})
    shutil.copy(files.sidecar_path(other), side)
    assert "changed since it was written" in refusal(path)
    side.unlink()
    assert "sidecar model.engine.json is missing" in refusal(path)
    for text in (b"", b"{", b"[]", good[:-40], b"\xff\xfe", good.replace(b'"engine"', b'"onnx"')):
        side.write_bytes(text)
        refusal(path, InputError)
    files.write_artifact(path, PLAN, "engine", details={"builder": "trtexec"})
    assert "does not describe an engine" in refusal(path, InputError)
    files.write_artifact(path, PLAN, "engine", details={"builder": "tensorrt"})
    assert "what it was built with" in refusal(path, InputError)
    side.write_bytes(good.replace(b'"crop": 8', b'"crop": 9'))
    assert "contract in its sidecar was changed" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "words"),
    [
        ({}, "10.3.0", L4, "built with tensorrt 10.16.1.11, installed is 10.3.0"),
        ({}, "11.4.0.106", L4, "installed is 11.4.0.106"),
        ({"version": "1.7.1.116", "builder": "tensorrt-rtx"}, "1.4.0", L4, "built with tensorrt-rtx 1.7.1.116"),
        ({}, DETAILS.version, H100, "built for NVIDIA L4 (compute capability 8.9), here is NVIDIA H100"),
        ({}, DETAILS.version, RTX4090, "built for NVIDIA L4 (compute capability 8.9), here is NVIDIA GeForce"),
        ({"platform": "Windows AMD64"}, DETAILS.version, L4, "built on Windows AMD64, this is"),
        ({"platform": "Linux riscv64"}, DETAILS.version, L4, "built on Linux riscv64, this is"),
    ],
)
def test_an_engine_of_another_machine_is_refused_with_what_differs_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], version: str, gpu: Gpu, words: str
) -> None:
    install(monkeypatch, version, gpu)
    path = write(tmp_path, msgspec.structs.replace(DETAILS, **changes))
    message = refusal(path)
    assert words in message
    assert "build it again here: alexdeploy build-engine model.onnx -o model.engine" in message
    assert checked(path, trust=True).version


def test_all_that_differs_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "11.4.0.106", H100)
    message = refusal(write(tmp_path))
    assert "11.4.0.106" in message
    assert "H100" in message


def test_without_a_device_nothing_is_loaded_whatever_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, gpu=None)
    monkeypatch.setattr(machine, "why_no_cuda", lambda ordinal: "no CUDA device (libcuda.so.1 not found)")
    monkeypatch.setattr(record, "load_library", lambda builder: pytest.fail("TensorRT was loaded"))
    path = write(tmp_path)
    for trusted in (False, True):
        with pytest.raises(UnavailableError, match="no CUDA device"):
            checked(path, trust=trusted)


def test_trust_takes_what_the_sidecar_does_not_vouch_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    path = write(tmp_path)
    path.write_bytes(PLAN[::-1])
    assert checked(path, trust=True) == DETAILS
    files.sidecar_path(path).unlink()
    assert checked(path, trust=True) == EngineRecord(builder="tensorrt")
    path.write_bytes(b"vtrt" + PLAN)
    assert checked(path, trust=True) == EngineRecord(builder="tensorrt-rtx")


@pytest.mark.parametrize(
    ("hardware", "takes"),
    [("same-gpu", [L4]), ("same-compute-capability", [L4, RTX4090]), ("ampere+", [L4, RTX4090, H100])],
)
def test_hardware_compatible_engines_of_tensorrt_run_on_more_gpus(hardware: Hardware, takes: list[Gpu]) -> None:
    may = Compatibility(hardware=hardware)
    assert [gpu for gpu in (L4, RTX4090, H100, T4) if may.takes_gpu("tensorrt", L4, gpu)] == takes


def test_engines_of_tensorrt_rtx_run_on_their_targets() -> None:
    portable, turing = Compatibility(), Compatibility(targets=("7.5",))
    gpus = [L4, T4, H100, Gpu("NVIDIA GeForce RTX 5090", "12.0", "13.0")]
    assert [portable.takes_gpu("tensorrt-rtx", None, gpu) for gpu in gpus] == [True, False, False, True]
    assert [turing.takes_gpu("tensorrt-rtx", L4, gpu) for gpu in gpus] == [False, True, False, False]


@pytest.mark.parametrize(
    ("built", "loads"),
    [
        ("10.16.1.11", {"10.16.1.11": True, "10.3.0": False, "11.4.0": True, "12.0.0": False}),
        ("11.0.0", {"10.16.1.11": False, "11.4.0": True, "12.0.0": False}),
        ("unknown", {"10.16.1.11": False, "11.4.0": False}),
    ],
)
def test_version_compatible_engines_load_where_the_support_matrix_says(built: str, loads: dict[str, bool]) -> None:
    may = Compatibility(newer_versions=True)
    assert {version: may.takes_version("tensorrt", built, version) for version in loads} == loads


A100_40, A100_80 = (Gpu(f"NVIDIA A100-SXM4-{size}GB", "8.0", "13.0") for size in (40, 80))


def test_where_tensorrt_would_only_warn_the_refusal_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, msgspec.structs.replace(DETAILS, gpu=A100_40))
    slice_of_it = Gpu("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "8.0", "13.0")
    for here, only_warns in ((A100_80, True), (slice_of_it, True), (H100, False)):
        install(monkeypatch, gpu=here)
        message = refusal(path)
        assert here.name in message
        assert ("`hardware` same-compute-capability" in message) is only_warns


def test_only_the_library_that_logs_its_kernels_has_them_kept() -> None:
    names: tuple[tuple[BuilderName, str], ...] = (("tensorrt", ""), ("tensorrt-rtx", "Layers:\nName: conv1"))
    for builder, kept in names:
        module = ModuleType(builder)
        module.__dict__["ILogger"] = type("ILogger", (), {})
        logger = process_logger(Library(builder, "1", module))
        logger.log(4, "Layers:\nName: conv1")
        logger.log(1, "broken  plan")
        assert (logger.kernels, logger.errors) == (kept, ["broken plan"])
