"""The best latency that this machine allows (the roofline model of Williams et al., CACM 2009).

A call has to read every weight and the images once, and to carry out every multiplication and addition. The machine's
own rates for both are measured in the same bench.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from alexdeploy.machine import cores
from alexdeploy.specs import Layer

_BYTES_OF = {"INT8": 1, "FP8": 1, "HALF": 2, "BFLOAT16": 2}
_GEMM_SIZE = 1024
_SECONDS_PER_RATE = 0.15


@dataclass(frozen=True)
class Machine:
    """Best rates seen, in 10⁹ operations per second (a multiply-add is two); None where nothing here can measure it."""

    fp32_gflop_per_s: float
    int8_gop_per_s: float | None


@dataclass(frozen=True)
class Limit:
    """``ideal_ms`` is the larger of the times to read ``bytes`` and to compute; ``share`` is ideal over measured p50.

    The read rate is that of a buffer of these bytes or up to twice as many, so what fits a cache is held to its rate.
    """

    ideal_ms: float
    share: float
    binds: Literal["reading", "arithmetic"]
    bytes: int
    read_gb_per_s: float
    macs: int


def limit(layers: Sequence[Layer], image_bytes: int, batch: int, p50_ms: float, machine: Machine) -> Limit | None:
    """The best this machine could do on ``batch`` images; None where the rate of an INT8 layer is not known."""
    size = sum(layer.parameters * _BYTES_OF.get(layer.precision, 4) for layer in layers) + batch * image_bytes
    gb_per_s = read_rate(1 << max(size - 1, 1).bit_length())
    reading_ms = size / gb_per_s / 1e6
    arithmetic_ms = 0.0
    for layer in layers:  # FP16, BF16 and FP8 are computed in FP32 on a CPU
        rate = machine.int8_gop_per_s if layer.precision == "INT8" else machine.fp32_gflop_per_s
        if layer.macs and rate is None:
            return None
        arithmetic_ms += 2 * layer.macs * batch / (rate or 1.0) / 1e6
    ideal_ms = max(reading_ms, arithmetic_ms)
    return Limit(
        ideal_ms=ideal_ms,
        share=ideal_ms / p50_ms,
        binds="reading" if reading_ms > arithmetic_ms else "arithmetic",
        bytes=size,
        read_gb_per_s=gb_per_s,
        macs=batch * sum(layer.macs for layer in layers),
    )


def machine_rates() -> Machine:
    """Multiply two 1024×1024 matrices, in NumPy and where it is installed in ONNX Runtime; the faster counts."""
    fp32, int8 = [_rate(_numpy_gemm())], []
    try:
        fp32.append(_rate(_onnxruntime_gemm("MatMul")))
        int8.append(_rate(_onnxruntime_gemm("MatMulInteger")))
    except ImportError:
        pass
    return Machine(max(fp32), max(int8, default=None))


@lru_cache
def read_rate(size: int) -> float:
    """GB/s at which all cores together read a buffer of ``size`` bytes again and again."""
    parts = np.array_split(np.ones(max(size // 4, 1), np.int32), cores())
    with ThreadPoolExecutor(len(parts)) as pool:
        seconds = _best_seconds(lambda: list(pool.map(np.bitwise_or.reduce, parts)))
    return size / seconds / 1e9


def _rate(gemm: Callable[[], object]) -> float:
    return 2 * _GEMM_SIZE**3 / _best_seconds(gemm) / 1e9


def _best_seconds(call: Callable[[], object]) -> float:
    call()
    best, until = math.inf, time.perf_counter() + _SECONDS_PER_RATE
    while time.perf_counter() < until:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def _numpy_gemm() -> Callable[[], object]:
    a, b = np.random.default_rng(0).random((2, _GEMM_SIZE, _GEMM_SIZE), dtype=np.float32)
    return lambda: a @ b


def _onnxruntime_gemm(op: str) -> Callable[[], object]:
    import onnx_ir as ir
    import onnxruntime as ort

    integer = op == "MatMulInteger"
    shape, random = (_GEMM_SIZE, _GEMM_SIZE), np.random.default_rng(0)
    weight = ir.tensor(random.integers(-128, 128, shape, np.int8) if integer else random.random(shape, np.float32))
    a = ir.val("a", ir.DataType.UINT8 if integer else ir.DataType.FLOAT, shape)
    b = ir.val("b", const_value=weight)
    node = ir.node(op, [a, b])
    node.outputs[0].name = "c"
    node.outputs[0].dtype = ir.DataType.INT32 if integer else ir.DataType.FLOAT
    graph = ir.Graph([a], node.outputs, nodes=[node], initializers=[b], opset_imports={"": 20})
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    feed = {"a": random.integers(0, 256, shape, np.uint8) if integer else random.random(shape, np.float32)}
    return lambda: session.run(None, feed)
