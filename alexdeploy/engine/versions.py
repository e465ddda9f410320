"""The only file that knows which TensorRT this is: module names, flags that differ, what runs where."""

from __future__ import annotations

import platform
import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import msgspec

from alexdeploy.cuda.wheels import why_too_old
from alexdeploy.engine.lean import load_lean_runtime
from alexdeploy.errors import UnavailableError, UsageError, unknown_name
from alexdeploy.machine import Gpu, why_no_cuda
from alexdeploy.optional import require
from alexdeploy.specs import Builder, BuilderName, Hardware

if TYPE_CHECKING:
    import tensorrt as trt

_LEVELS = {"same-gpu": "NONE", "same-compute-capability": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_ERROR = 1  # ILogger.Severity.ERROR; INTERNAL_ERROR is 0
_OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}
_RTX_MAGIC = b"vtrt"  # how plans of TensorRT-RTX begin
_NOT_RTX = (9, 10, 11)  # major compute capabilities without an RTX GPU


class Compatibility(msgspec.Struct, frozen=True, kw_only=True):
    """The other machines on which an engine may run.

    Attributes:
        hardware: TensorRT: on GPUs of the same model, of the same compute capability, or on Ampere and newer.
        newer_versions: TensorRT: newer versions may load it too.
        targets: TensorRT-RTX: compute capabilities such as ``8.9``; empty means every RTX GPU from Ampere on.
    """

    hardware: Hardware = "same-gpu"
    newer_versions: bool = False
    targets: tuple[str, ...] = ()

    def takes_version(self, builder: BuilderName, built_with: str, installed: str) -> bool:
        """Plans need the exact version; version-compatible ones load on newer ones of that major too, and 10's on 11.

        So NVIDIA's support matrix of 11.4, which names no other step that versions from 10.3 on could take.
        """
        if not (self.newer_versions and builder == "tensorrt"):
            return built_with == installed
        built, here = _numbers(built_with), _numbers(installed)
        major = built[:1]  # empty where a sidecar was written by hand
        return built <= here and (major == here[:1] or (major, here[:1]) == ((10,), (11,)))

    def takes_gpu(self, builder: BuilderName, built_on: Gpu | None, here: Gpu) -> bool:
        """True if an engine built on one GPU (None: on a machine without) runs on another."""
        capability = _numbers(here.compute_capability)
        if builder == "tensorrt-rtx":
            portable = capability >= (8,) and capability[0] not in _NOT_RTX
            return here.compute_capability in self.targets if self.targets else portable
        if self.hardware == "ampere+":
            return capability >= (8,)
        if built_on is None or built_on.compute_capability != here.compute_capability:
            return False
        return self.hardware == "same-compute-capability" or built_on.name == here.name

    def describe_gpus(self, builder: BuilderName, built_on: Gpu | None) -> str:
        """``takes_gpu`` in words."""
        if builder == "tensorrt-rtx":
            return f"compute capability {' or '.join(self.targets)}" if self.targets else "RTX GPUs from Ampere on"
        if self.hardware == "ampere+":
            return "Ampere and newer"
        if built_on is None:
            return "an unknown GPU"
        same_model = self.hardware == "same-gpu"
        return str(built_on) if same_model else f"compute capability {built_on.compute_capability}"


@dataclass(frozen=True)
class Library:
    """An importable TensorRT: its name on the command line, its version, its module."""

    name: BuilderName
    version: str
    module: Any

    @property
    def logs_kernels(self) -> bool:
        """True if a build logs which kernels it chose; else the plan is loaded and asked (``runtime.inspect_plan``).

        TensorRT-RTX must log them, since it may build without a GPU and loads nothing there.
        """
        return self.name == "tensorrt-rtx"

    def network_flags(self, *, implicit: bool = False) -> int:
        """Strongly typed: precision comes from the graph, unless TensorRT 10 is to choose it (``check_implicit``).

        The bit moved between 10 and 11, so go by its name.
        """
        return 0 if implicit else 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    @property
    def captures_graphs(self) -> bool:
        """True if we capture CUDA graphs. TensorRT-RTX specializes kernels as it runs, and captures its own."""
        return self.name == "tensorrt"

    def create_context(self, engine: trt.ICudaEngine, *, graph: bool = True) -> trt.IExecutionContext | None:
        """An execution context that is given its activation memory by the caller; None when TensorRT refuses.

        With ``graph`` TensorRT-RTX captures a CUDA graph by itself, which a profiler does not go with.
        """
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.captures_graphs:
            return engine.create_execution_context(strategy)
        config: Any = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if graph:
            config.cuda_graph_strategy = self.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)

    def benchmark(self, engine: str, tensor: str, shape: tuple[int, ...], *, graph: bool, host_code: bool) -> str:
        """The command of NVIDIA's own bench that measures an engine as ``engine/timing.py`` does, one batch at a time.

        That is with copies, one after the other, busy waiting, and a CUDA graph where ours is one. trtexec 11 has other
        defaults than 10, and the program of TensorRT-RTX those of 11 (sampleOptions.cpp; TensorRT-RTX, Benchmarking).

        Args:
            engine: its file.
            tensor: the name of its input.
            shape: of that input, the batch first.
            graph: a CUDA graph of ours is replayed.
            host_code: the engine brings its own runtime (version-compatible).
        """
        sizes = f"--shapes={tensor}:{'x'.join(map(str, shape))}"
        command = [f"--loadEngine={engine}", sizes, "--infStreams=1", "--exposeDMA"]
        if self.name == "tensorrt-rtx":
            return shlex.join(["tensorrt_rtx", *command, "--includeDataTransfers"])
        if _numbers(self.version) >= (11,):
            command += ["--includeDataTransfers", *([] if graph else ["--noCudaGraph"])]
        else:
            command += ["--useSpinWait", *(["--useCudaGraph"] if graph else [])]
        return shlex.join(["trtexec", *command, *(["--versionCompatible"] if host_code else [])])

    def check_implicit(self) -> None:
        """Refuse to let TensorRT calibrate where it no longer can.

        Raises:
            UnavailableError: TensorRT 11 or TensorRT-RTX.
        """
        if not hasattr(self.module, "IInt8EntropyCalibrator2"):
            raise UnavailableError(
                f"{self.name} {self.version} cannot calibrate, which only TensorRT 10 does; leave out `implicit`"
            )

    def calibrate_with(self, calibrator: Any, config: Any, profile: Any, *, fp16: bool) -> None:
        """TensorRT 10: give an ``IBuilderConfig`` INT8 kernels to choose, with ranges from ``calibrator``."""
        config.set_flag(self.module.BuilderFlag.INT8)
        if fp16:
            config.set_flag(self.module.BuilderFlag.FP16)
        config.int8_calibrator = calibrator
        if not config.set_calibration_profile(profile):
            raise UnavailableError(f"{self.name} {self.version} refused the calibration profile")

    def check(self, compatibility: Compatibility, *, timing_cache: bool) -> None:
        """Reject options that this library does not support.

        Raises:
            UsageError: says which builder takes the option.
        """
        if self.name == "tensorrt":
            if compatibility.targets:
                raise UsageError("`targets` is for `builder` tensorrt-rtx; TensorRT builds for the GPU it builds on")
            return
        named = {
            "hardware": compatibility.hardware != "same-gpu",
            "newer_versions": compatibility.newer_versions,
            "timing_cache": timing_cache,
        }
        for option in (name for name, asked in named.items() if asked):
            raise UsageError(f"`{option}` is for `builder` tensorrt; TensorRT-RTX has nothing like it, leave it out")
        for target in compatibility.targets:
            if target not in self._targets():
                raise UsageError(unknown_name("target", target, list(self._targets())))

    def apply(self, compatibility: Compatibility, config: trt.IBuilderConfig) -> None:
        """Set what ``check`` has let through.

        Raises:
            UnavailableError: this version of the library lacks it, or what it needs is not installed.
        """
        level = _LEVELS[compatibility.hardware]
        if level != "NONE":
            levels = self.module.HardwareCompatibilityLevel
            if not hasattr(levels, level):
                raise UnavailableError(f"TensorRT {self.version} has no hardware level {level}; upgrade it")
            config.hardware_compatibility_level = getattr(levels, level)
        if compatibility.newer_versions:
            load_lean_runtime(self.version)
            config.set_flag(self.module.BuilderFlag.VERSION_COMPATIBLE)
        if compatibility.targets:
            known, of_rtx = self._targets(), cast(Any, config)
            of_rtx.num_compute_capabilities = len(compatibility.targets)
            for index, target in enumerate(compatibility.targets):
                if not of_rtx.set_compute_capability(known[target], index):
                    raise UnavailableError(f"TensorRT-RTX {self.version} refuses target {target}")

    def _targets(self) -> dict[str, Any]:
        """``{"8.9": ComputeCapability.SM89, …}``."""
        members: dict[str, Any] = self.module.ComputeCapability.__members__
        return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}


def takes_platform(builder: BuilderName, built_on: str) -> bool:
    """Plans of TensorRT are tied to system and processor (``Linux x86_64``), those of TensorRT-RTX to the processor."""
    here = this_platform()
    return built_on == here or (builder == "tensorrt-rtx" and built_on.split()[-1:] == here.split()[-1:])


def this_platform() -> str:
    """Such as ``Linux x86_64``."""
    return f"{platform.system()} {platform.machine()}"


def builder_of_plan(first_bytes: bytes) -> BuilderName:
    """Guess the builder from a plan's first bytes, when there is no sidecar; NVIDIA does not document the header."""
    return "tensorrt-rtx" if first_bytes.startswith(_RTX_MAGIC) else "tensorrt"


def load_library(builder: Builder) -> Library:
    """The library to build with; ``auto`` is TensorRT where it is installed and a GPU answers, else TensorRT-RTX.

    Raises:
        UnavailableError: not installed, too old, or TensorRT (which builds on the GPU) without a CUDA device, or with
            a driver that is too old for it.
    """
    if builder == "auto":
        builder = "tensorrt" if why_no_cuda() is None and find_spec("tensorrt") is not None else "tensorrt-rtx"
    if builder == "tensorrt":
        # asked before the import: without a driver TensorRT's libraries may crash the process
        reason = why_no_cuda()
        if reason is not None:
            raise UnavailableError(f"TensorRT builds on the GPU and there is {reason}; use `builder` tensorrt-rtx")
        reason = why_too_old("tensorrt")
        if reason is not None:
            raise UnavailableError(reason)
    module = require(_MODULES[builder])
    version = str(module.__version__)
    if _numbers(version) < _OLDEST[builder]:
        oldest = ".".join(map(str, _OLDEST[builder]))
        raise UnavailableError(f"{builder} {version} is too old; upgrade: pip install '{builder}>={oldest}'")
    return Library(builder, version, module)


def _numbers(version: str) -> tuple[int, ...]:
    """``"10.16.1.11"`` → (10, 16, 1, 11)."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


@cache
def process_logger(library: Library) -> Any:
    """The one logger of this process for a library; TensorRT keeps the first it is given.

    Of what TensorRT says it keeps the ``errors`` and, where it logs one, the last report of ``kernels``, both ours to
    clear: a process may run long. TensorRT calls it for every line, VERBOSE ones too: there is no threshold to set.
    """
    interface: Any = library.module.ILogger
    logs_kernels = library.logs_kernels

    class CollectingLogger(interface):  # type: ignore[misc]
        def __init__(self) -> None:
            interface.__init__(self)
            self.errors: list[str] = []
            self.kernels = ""

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= _ERROR:
                self.errors.append(" ".join(text.split()))
            elif logs_kernels and text.startswith("Layers:"):
                self.kernels = text

    return CollectingLogger()
