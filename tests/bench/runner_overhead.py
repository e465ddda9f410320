"""What a runner adds to the bare ONNX Runtime session, batch 1 on the CPU: ``python -m tests.bench.runner_overhead``.

Both call the same session, in turns of 50 calls, on a small network, where overhead counts most, and on a large one.
The bar is 2 % or 50 µs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from alexdeploy.export import trace
from alexdeploy.graph.model import model_bytes
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.zoo.checkpoint import untrained
from tests.helpers.graphs import conv_lrn_gemm, images

_ROUNDS = 40
_CALLS = 50


def main() -> None:
    """Print a row per network; exit with 1 when one misses the bar."""
    ok = True
    for name, model, shape in (
        ("3→8 channels, 8×8", conv_lrn_gemm().SerializeToString(), (3, 8, 8)),
        ("alexnet-half, 224×224", _alexnet_half(), (3, 224, 224)),
    ):
        with OnnxRuntimeRunner(model) as runner:
            batch = images(1, shape)
            calls: list[Callable[[], object]] = [
                partial(runner._session.run, runner.output_names[:1], {runner.input.name: batch}),
                partial(runner.infer, batch),
            ]
            raw, ours = (1e6 * float(np.median(samples)) for samples in _time(calls))
        good = ours - raw <= max(50, 0.02 * raw)
        ok &= good
        verdict = "ok" if good else "MISSED"
        print(f"{name}: session {raw:.1f} µs, runner {ours:.1f} µs, difference {ours - raw:+.1f} µs: {verdict}")
    raise SystemExit(not ok)


def _time(calls: list[Callable[[], object]]) -> list[npt.NDArray[np.float64]]:
    samples: list[list[float]] = [[] for _ in calls]
    for turn in range(_ROUNDS):
        order = range(len(calls)) if turn % 2 else reversed(range(len(calls)))
        for index in order:
            calls[index]()
            for _ in range(_CALLS):
                started = time.perf_counter()
                calls[index]()
                samples[index].append(time.perf_counter() - started)
    return [np.asarray(sample) for sample in samples]


def _alexnet_half() -> bytes:
    checkpoint = untrained("alexnet-half", 10, seed=0)
    return model_bytes(trace(checkpoint.model, checkpoint.contract))


if __name__ == "__main__":
    main()
