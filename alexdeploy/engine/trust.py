"""What an engine's sidecar says of it, and whether it may be deserialised here.

An engine is executable code, and TensorRT does not survive every file it is given: all of this is decided from the
sidecar, the bytes and the driver, before a TensorRT runtime sees the engine.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from alexdeploy import files, machine
from alexdeploy.contract import Contract
from alexdeploy.engine.kernels import Kernel
from alexdeploy.engine.versions import (
    BuilderName,
    Compatibility,
    builder_of_plan,
    load_library,
    takes_platform,
    this_platform,
)
from alexdeploy.errors import GateError, InputError, UnavailableError
from alexdeploy.specs import Precision, TensorSpec


class EngineDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The ``details`` of an engine's sidecar.

    Of an engine that is trusted without a sidecar only ``builder`` is known; its ``version`` is empty.

    Attributes:
        builder: whose plan it is, and so what runs it.
        version: of the builder's library.
        rebuild: the command that builds it again.
        platform: where it was built, such as ``Linux x86_64``.
        gpu: the device and driver it was built on; None where there was none.
        compatibility: on which other GPUs and versions it may run.
        profile: batch sizes it accepts, ``min:opt:max``; ``shapes`` are the whole shapes, by input.
        classes: columns of the result, -1 when the graph did not tell.
        contract_sha256: fingerprint of ``contract``.
        precisions: kernels of Conv/Gemm nodes by type; ``layer_precisions`` says which node has which.
    """

    builder: BuilderName
    version: str = ""
    rebuild: str = ""
    platform: str = ""
    gpu: machine.Gpu | None = None
    compatibility: Compatibility = Compatibility()
    profile: str = ""
    shapes: dict[str, str] = {}
    input: TensorSpec | None = None
    output: TensorSpec | None = None
    precision: Precision | None = None
    classes: int = -1
    contract: Contract | None = None
    contract_sha256: str | None = None
    build_seconds: float = 0.0
    precisions: dict[str, int] = {}
    layer_precisions: dict[str, str] = {}
    kernels: tuple[Kernel, ...] = ()


def read_engine(path: Path, *, trust: bool = False) -> EngineDetails:
    """What the sidecar says, after checking that it belongs to these bytes. Needs neither GPU nor TensorRT.

    Args:
        path: the engine.
        trust: take the file as it is, changed or without a sidecar.

    Raises:
        InputError: missing or empty, or its sidecar does not describe an engine.
        GateError: no sidecar, or engine or contract were changed since it was written.
    """
    files.check_input(path)
    if trust and not files.sidecar_path(path).exists():
        with path.open("rb") as file:
            return EngineDetails(builder=builder_of_plan(file.read(64)))
    sidecar = files.read_sidecar(path, "engine", check_bytes=not trust)
    try:
        details = msgspec.convert(sidecar.details, EngineDetails)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: its sidecar does not describe an engine of alexdeploy ({error})") from error
    if not details.version:
        raise InputError(f"{path}: its sidecar does not say what it was built with; build it again")
    fingerprint = details.contract.fingerprint if details.contract is not None else None
    if fingerprint != details.contract_sha256 and not trust:
        raise GateError(f"{path}: the preprocessing contract in its sidecar was changed; {_again(details)}")
    return details


def check_engine(path: Path, *, trust: bool = False) -> EngineDetails:
    """``read_engine``, and that this machine can run it: all that is to be asked before deserialising.

    Args:
        path: the engine.
        trust: also leave it to TensorRT to refuse another version or GPU. A device must be there all the same:
            without a driver TensorRT's runtime crashes the process.

    Raises:
        InputError: missing or empty, or its sidecar does not describe an engine.
        GateError: no sidecar, changed since it was written, or built with another TensorRT or for another GPU; says
            what differs and which command builds it again.
        UnavailableError: no CUDA device, or its TensorRT is not installed.
    """
    details = read_engine(path, trust=trust)
    gpu = machine.current_gpu()
    if gpu is None:
        raise UnavailableError(f"{machine.why_no_cuda()}; {details.builder} engines run on an NVIDIA GPU")
    library = load_library(details.builder)
    differences = [] if trust else _differences(details, library.version, gpu)
    if differences:
        raise GateError(f"{path}: {'; '.join(differences)}; {_again(details)}")
    return details


def _differences(details: EngineDetails, installed: str, gpu: machine.Gpu) -> list[str]:
    builder, compatible, found = details.builder, details.compatibility, []
    if not compatible.takes_version(builder, details.version, installed):
        found.append(f"built with {builder} {details.version}, installed is {installed}")
    if not takes_platform(builder, details.platform):
        found.append(f"built on {details.platform}, this is {this_platform()}")
    if not compatible.takes_gpu(builder, details.gpu, gpu):
        found.append(f"built for {compatible.describe_gpus(builder, details.gpu)}, here is {gpu}")
    return found


def _again(details: EngineDetails) -> str:
    return f"build it again here: {details.rebuild}" if details.rebuild else "build it again here"
