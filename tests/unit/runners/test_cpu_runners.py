"""What ``Runner`` promises, kept by each runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from alexdeploy.errors import UsageError
from alexdeploy.runners.base import Runner
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.helpers.graphs import conv_lrn_gemm, images

MODEL = conv_lrn_gemm().SerializeToString()


def onnxruntime() -> Runner:
    return OnnxRuntimeRunner(MODEL)


def openvino(whole: int) -> Runner:
    pytest.importorskip("openvino", reason="openvino is not installed")
    from alexdeploy.runners.openvino import OpenVinoRunner

    return OpenVinoRunner(MODEL, whole=whole)


def openvino_in_pieces() -> Runner:
    return openvino(2)


def openvino_whole() -> Runner:
    return openvino(16)


every_runner = pytest.mark.parametrize("open_runner", [onnxruntime, openvino_in_pieces, openvino_whole])


@every_runner
def test_a_result_stays_as_it_is_and_the_batch_too(open_runner: Callable[[], Runner]) -> None:
    runner = open_runner()
    batch = images(3)
    first = runner.infer(batch)
    kept = first.copy()
    runner.infer(images(3, seed=9))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(batch, images(3))
    first[:] = 0
    np.testing.assert_array_equal(runner.infer(batch), kept)


@pytest.mark.parametrize(
    ("open_runner", "rtol", "atol"),
    [(onnxruntime, 1e-5, 1e-6), (lambda: openvino(3), 1e-4, 1e-5)],
    ids=["onnxruntime", "openvino"],
)
def test_threads_share_a_runner(open_runner: Callable[[], Runner], rtol: float, atol: float) -> None:
    runner = open_runner()
    batches = [images(1 + seed % 5, seed=seed) for seed in range(16)]
    expected = [runner.infer(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(runner.infer, batches * 20), expected * 20, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


@every_runner
@pytest.mark.parametrize("batch", [images(2)[:, :2], images(2).astype(np.float64), images(2)[:0], images(2)[0]])
def test_a_wrong_batch_is_refused_in_words(open_runner: Callable[[], Runner], batch: npt.NDArray[np.float32]) -> None:
    runner = open_runner()
    for call in (runner.infer, runner.device_call):
        with pytest.raises(UsageError, match=r"expected \(N, 3, 8, 8\) float32"):
            call(batch)
