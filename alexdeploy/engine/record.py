"""The one record of an engine: what was built, stored in its sidecar, and whether the engine may be deserialised here.

An engine is executable code, and TensorRT does not survive every file it is given: all of this is decided from the
sidecar, the bytes and the driver, before a TensorRT runtime sees the engine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import files, machine
from alexdeploy.contract import Contract
from alexdeploy.cuda.wheels import why_too_old
from alexdeploy.engine.kernels import Kernel
from alexdeploy.engine.versions import (
    Compatibility,
    builder_of_plan,
    load_library,
    takes_platform,
    this_platform,
)
from alexdeploy.errors import GateError, InputError, UnavailableError, UsageError
from alexdeploy.specs import BuilderName, Precision, Profile, TensorSpec


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known of an engine: the ``details`` of its sidecar, and the JSON of ``build-engine``.

    Of an engine that is trusted without a sidecar only ``builder`` is known; its ``version`` is empty.

    Attributes:
        builder: whose plan it is, and so what runs it.
        version: of the builder's library.
        size_bytes: of the plan.
        build_seconds: how long the builder took.
        rebuild: the command that builds it again.
        platform: where it was built, such as ``Linux x86_64``.
        gpu: the device and driver it was built on; None where there was none.
        compatibility: on which other GPUs and versions it may run.
        shapes: the shapes it accepts, by input, the image first.
        input, output: the first of each, as the engine has them.
        precision: of the graph.
        classes: columns of the result; None when the graph did not tell.
        probabilities: the result is probabilities, not logits: the graph ends in Softmax or Sigmoid.
        contract_sha256: fingerprint of ``contract``.
        tf32: whether FP32 may be computed as TF32; None in sidecars that are older than this.
        kernels: the fused kernels.
        kernels_unknown: why there are none; empty where there are.
        layer_precisions: by Conv/Gemm node, the type that its kernel computes in.
        precisions: how many of them compute in each type.
        quantized: by Conv/Gemm node, the type that its Q/DQ requests.
        half: by Conv/Gemm node without Q/DQ, HALF or BFLOAT16 where the graph computes in it.
        grouped: Conv nodes with groups that Q/DQ requests in INT8.
        float_layers: nodes built in another type than the graph asks for, or not found among the kernels.
        reasons: why, for those of them where it is known.
        left: nodes with weights that the graph itself has in a wider type than was asked for, and why.
    """

    builder: BuilderName
    version: str = ""
    size_bytes: int = 0
    build_seconds: float = 0.0
    rebuild: str = ""
    platform: str = ""
    gpu: machine.Gpu | None = None
    compatibility: Compatibility = Compatibility()
    shapes: dict[str, Profile] = {}
    input: TensorSpec | None = None
    output: TensorSpec | None = None
    precision: Precision | None = None
    classes: int | None = None
    probabilities: bool = False
    contract: Contract | None = None
    contract_sha256: str | None = None
    tf32: bool | None = None
    precisions: dict[str, int] = {}
    layer_precisions: dict[str, str] = {}
    quantized: dict[str, str] = {}
    half: dict[str, str] = {}
    grouped: tuple[str, ...] = ()
    float_layers: tuple[str, ...] = ()
    reasons: dict[str, str] = {}
    left: dict[str, str] = {}
    kernels: tuple[Kernel, ...] = ()
    kernels_unknown: str = ""

    @property
    def batches(self) -> Profile | None:
        """Batch sizes it accepts; None where that is not known."""
        return next((profile.batches for profile in self.shapes.values()), None)


@dataclass(frozen=True)
class EngineFile:
    """An engine that was read once: ``plan`` are the very bytes that ``record`` was checked against."""

    record: EngineRecord
    plan: bytes
    origin: str


def write_engine(
    path: Path,
    plan: bytes | memoryview,
    record: EngineRecord,
    *,
    parents: tuple[files.Parent, ...],
    options: dict[str, Any],
) -> None:
    """Write the engine and its sidecar atomically."""
    files.write_artifact(
        path,
        plan,
        "engine",
        parents=parents,
        options=options,
        libraries={record.builder: record.version},
        details=msgspec.to_builtins(record),
    )


def read_engine(source: Path | bytes, *, trust: bool = False) -> EngineFile:
    """Read an engine once, after checking that its sidecar belongs to it. Needs neither GPU nor TensorRT.

    Args:
        source: the file, with its sidecar beside it; or the plan itself, which has none and so needs ``trust``.
        trust: take the engine as it is, changed or without a sidecar.

    Raises:
        UsageError: bytes without ``trust``.
        InputError: missing or empty, or its sidecar does not describe an engine.
        GateError: no sidecar, or engine or contract were changed since it was written.
    """
    if isinstance(source, bytes):
        if not trust:
            raise UsageError("an engine in memory has no sidecar to check it by; give its path, or trust=True")
        return EngineFile(EngineRecord(builder=builder_of_plan(source[:64])), source, "the engine")
    files.check_input(source)
    if trust and not files.sidecar_path(source).exists():
        plan = source.read_bytes()
        return EngineFile(EngineRecord(builder=builder_of_plan(plan[:64])), plan, str(source))
    sidecar = files.load_sidecar(source, "engine")
    record = _record(sidecar, source, trust=trust)
    plan = source.read_bytes()
    if not trust:
        sidecar.check(hashlib.sha256(plan).hexdigest(), source)
    return EngineFile(record, plan, str(source))


def _record(sidecar: files.Sidecar, path: Path, *, trust: bool) -> EngineRecord:
    try:
        record = msgspec.convert(sidecar.details, EngineRecord)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: its sidecar does not describe an engine of alexdeploy ({error})") from error
    if not record.version:
        raise InputError(f"{path}: its sidecar does not say what it was built with; build it again")
    fingerprint = record.contract.fingerprint if record.contract is not None else None
    if fingerprint != record.contract_sha256 and not trust:
        raise GateError(f"{path}: the preprocessing contract in its sidecar was changed; {_again(record)}")
    return record


def check_runs_here(engine: EngineFile, ordinal: int = 0, *, trust: bool = False) -> None:
    """Check that this machine can run the engine: all that is to be known before deserialising.

    Args:
        engine: what ``read_engine`` gave.
        ordinal: of the CUDA device that is to run it.
        trust: leave it to TensorRT to refuse another version or GPU. A device must be there all the same: without a
            driver TensorRT's runtime crashes the process.

    Raises:
        GateError: built with another TensorRT or for another GPU; the message has the command that builds it again.
        UnavailableError: no CUDA device, a driver that is too old, or its TensorRT is not installed.
    """
    record = engine.record
    gpu = machine.current_gpu(ordinal)
    if gpu is None:
        raise UnavailableError(f"{machine.why_no_cuda(ordinal)}; {record.builder} engines run on an NVIDIA GPU")
    reason = why_too_old(record.builder)
    if reason is not None:  # its runtime may end the process on such a driver
        raise UnavailableError(reason)
    library = load_library(record.builder)
    differences = [] if trust else _differences(record, library.version, gpu)
    if differences:
        raise GateError(f"{engine.origin}: {'; '.join(differences)}; {_again(record)}")


def _differences(record: EngineRecord, installed: str, gpu: machine.Gpu) -> list[str]:
    builder, compatible, found = record.builder, record.compatibility, []
    if not compatible.takes_version(builder, record.version, installed):
        found.append(f"built with {builder} {record.version}, installed is {installed}")
    if not takes_platform(builder, record.platform):
        found.append(f"built on {record.platform}, this is {this_platform()}")
    if not compatible.takes_gpu(builder, record.gpu, gpu):
        found.append(
            f"built for {compatible.describe_gpus(builder, record.gpu)}, here is {gpu}{_only_warns(record, gpu)}"
        )
    return found


def _only_warns(record: EngineRecord, gpu: machine.Gpu) -> str:
    """Words for a refusal where TensorRT would only warn: another model, memory size or MIG slice."""
    built_on = record.gpu
    if record.builder != "tensorrt" or built_on is None or built_on.compute_capability != gpu.compute_capability:
        return ""
    return (
        ", where TensorRT would only warn, and run kernels that were timed on the other; "
        "built with `hardware` same-compute-capability it runs on both"
    )


def _again(record: EngineRecord) -> str:
    return f"build it again here: {record.rebuild}" if record.rebuild else "build it again here"
