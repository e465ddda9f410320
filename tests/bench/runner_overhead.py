"""What a runner adds to the bare ONNX Runtime session, batch 1 on the CPU: ``python -m tests.bench.runner_overhead``.

Both call the same session, one after the other, on a small network, where overhead counts most, and on a large one.
The bar is 2 % or 50 µs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from alexdeploy.export.from_torch import trace
from alexdeploy.graph.model import model_bytes
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.zoo.checkpoint import untrained
from tests.helpers.graphs import conv_lrn_gemm, images

_PAIRS = 1500
_WARM_UP = 20


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
            samples = _time(calls) * 1e6
        raw, more = float(np.median(samples[:, 0])), float(np.median(samples[:, 1] - samples[:, 0]))
        good = more <= max(50, 0.02 * raw)
        ok &= good
        verdict = "ok" if good else "MISSED"
        print(f"{name}: session {raw:.1f} µs, the runner {more:+.1f} µs (median of {_PAIRS} pairs): {verdict}")
    raise SystemExit(not ok)


def _time(calls: list[Callable[[], object]]) -> npt.NDArray[np.float64]:
    """Seconds, (pairs, calls); within a pair the two follow each other, now the one first, now the other."""
    samples = np.zeros((_PAIRS, len(calls)))
    for call in calls * _WARM_UP:
        call()
    for pair in range(_PAIRS):
        for index in (0, 1) if pair % 2 else (1, 0):
            started = time.perf_counter()
            calls[index]()
            samples[pair, index] = time.perf_counter() - started
    return samples


def _alexnet_half() -> bytes:
    checkpoint = untrained("alexnet-half", 10, seed=0)
    return model_bytes(trace(checkpoint.model, checkpoint.contract))


if __name__ == "__main__":
    main()
