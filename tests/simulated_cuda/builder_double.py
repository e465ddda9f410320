"""A stand-in for the builder of TensorRT that calibrates as version 10 does, and builds for engine_double.

Like TensorRT's CUDA runtime it makes the primary context current on its thread, and like TensorRT it passes over the
cache of another version or calibrator, takes an exception in ``get_batch`` for the end of the data, and asks for a
calibration profile. The "ranges" are the largest magnitudes that it finds at the device addresses it was given.
"""

from __future__ import annotations

import ctypes
import struct
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from tests.simulated_cuda import engine_double

CACHE_HEADER = b"TRT-101601-EntropyCalibration2\n"
flags_set: set[str] = set()  # by the last build
devices: list[int] = []  # that were current when builders were made and used, -1 where none was


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    FP16 = 0
    INT8 = 1
    TF32 = 6


class ProfilingVerbosity(IntEnum):
    DETAILED = 2


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class IInt8EntropyCalibrator2:
    def __init__(self) -> None:
        self._ready = True


class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._input, self._shapes = input, (min, opt, max)


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.dtype = engine_double.DataType.FLOAT
        self.shape = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]


class INetworkDefinition:
    def __init__(self) -> None:
        self._model = b""

    @property
    def num_inputs(self) -> int:
        return 1

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def num_layers(self) -> int:
        return len(onnx.load_from_string(self._model).graph.node)

    def get_input(self, index: int) -> ITensor:
        return ITensor(onnx.load_from_string(self._model).graph.input[index])

    def get_output(self, index: int) -> ITensor:
        return ITensor(onnx.load_from_string(self._model).graph.output[index])


class OnnxParser:
    num_errors = 0

    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self._logger = network, logger

    def parse(self, model: bytes) -> bool:
        self._network._model = model
        return True

    def parse_from_file(self, model: str) -> bool:
        return self.parse(Path(model).read_bytes())


class IBuilderConfig:
    def __init__(self) -> None:
        self.int8_calibrator: Any = None
        self.progress_monitor: Any = None
        self.profiling_verbosity: Any = None
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self._calibration: IOptimizationProfile | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_calibration_profile(self, profile: IOptimizationProfile) -> bool:
        self._calibration = profile
        return True


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        devices.append(engine_double.simulator_library().sim_current_device())

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self._typed = flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert self._typed or flags == 0
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        current = engine_double.simulator_library().sim_current_device()
        _use_primary_context()
        smallest, best, largest = (int(bound[0]) for bound in config._profiles[0]._shapes)
        plan = engine_double.make_plan(network._model, (smallest, best, largest))
        if self._typed:
            assert config.int8_calibrator is None, "a strongly typed network takes no calibrator"
            return plan
        assert config._calibration is not None
        devices.append(current)
        shape = config._calibration._shapes[1]
        flags_set.clear()
        flags_set.update(flag.name for flag in config._flags)
        calibrator = config.int8_calibrator
        assert calibrator._ready, "its base class was not initialised"
        assert calibrator.get_batch_size() == shape[0]
        if not (calibrator.read_calibration_cache() or b"").startswith(CACHE_HEADER):
            amax = _calibrate(calibrator, shape)
            if amax is None:
                self._logger.log(1, "Calibration failure occurred with no scaling factors detected.")
                return None
            scale = struct.pack("!f", amax / 127).hex().encode()
            calibrator.write_calibration_cache(memoryview(CACHE_HEADER + b"input: " + scale + b"\n"))
        return plan


def _use_primary_context() -> None:
    """As CUDA's runtime does: the device whose context is current on the thread, or device 0, which then stays so."""
    context, driver = ctypes.c_void_p(), engine_double.simulator_library()
    if driver.sim_current_device() >= 0:
        return
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert driver.cuCtxPushCurrent_v2(context) == 0
    assert driver.cuDevicePrimaryCtxRelease_v2(0) == 0


def _calibrate(calibrator: Any, shape: tuple[int, ...]) -> float | None:
    amax, nbytes = None, 4 * int(np.prod(shape))
    while True:
        try:
            addresses = calibrator.get_batch(["input"])
        except Exception:  # TensorRT prints it and goes on
            addresses = None
        if not addresses:
            return amax
        images = np.empty(nbytes // 4, np.float32)
        device = engine_double.simulator_library().sim_read(images.ctypes.data, addresses[0], nbytes)
        assert device == max(devices[-1], 0)
        amax = max(amax or 0.0, float(np.abs(images).max()))


CLASSES = (
    NetworkDefinitionCreationFlag,
    BuilderFlag,
    ProfilingVerbosity,
    IProgressMonitor,
    IInt8EntropyCalibrator2,
    IOptimizationProfile,
    ITensor,
    INetworkDefinition,
    OnnxParser,
    IBuilderConfig,
    Builder,
)


def install(module: ModuleType) -> None:
    """Give a module of ``engine_double`` a builder."""
    for entry in CLASSES:
        setattr(module, entry.__name__, entry)
