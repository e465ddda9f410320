"""What ``Runner`` promises, kept by each runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from alexdeploy.errors import InputError, UsageError
from alexdeploy.runners.artifact import load
from alexdeploy.runners.base import Runner
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.zoo.checkpoint import untrained
from tests.helpers.foreign_graphs import Foreign, any_size, half_throughout, pixels, several_outputs
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


def pytorch() -> Runner:
    from alexdeploy.runners.pytorch import PyTorchRunner

    return PyTorchRunner(untrained("alexnet-mnist", classes=4, seed=0))


@pytest.mark.parametrize("open_runner", [onnxruntime, openvino_in_pieces, openvino_whole, pytorch])
@pytest.mark.filterwarnings("error")
def test_an_array_may_run_backwards_and_be_read_only(open_runner: Callable[[], Runner]) -> None:
    with open_runner() as runner:
        batch = images(3, tuple(int(size) for size in runner.input.shape[1:]))
        expected = runner.infer(np.ascontiguousarray(batch[:, ::-1, ::-1]))
        batch.flags.writeable = False
        np.testing.assert_array_equal(runner.infer(batch[:, ::-1, ::-1]), expected)
        runner.device_call(batch[:, ::-1, ::-1])()


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino"])
@pytest.mark.parametrize("make", [pixels, half_throughout, several_outputs, any_size])
def test_a_graph_of_others_runs_as_it_is(make: Callable[[], Foreign], runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    foreign = make()
    model = foreign.model.SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    with load(model, runtime=runtime) as runner:
        first = session.get_inputs()[0]
        sizes = [dim if isinstance(dim, int) else 12 for dim in first.shape[1:]]
        fixed = [dim if isinstance(dim, int) else None for dim in first.shape]
        assert [dim if isinstance(dim, int) and dim != -1 else None for dim in runner.input.shape] == fixed
        assert (runner.input.name, runner.input.dtype) == (first.name, foreign.contract.input_type)
        random: Any = np.random.default_rng(0)
        batch = (random.random((3, *sizes)) * 255).astype(runner.input.dtype)
        (expected,) = session.run([foreign.logits], {first.name: batch})
        answer = runner.infer(batch)
        assert (answer.dtype.name, answer.shape, runner.classes) == ("float32", (3, 4), 4)
        np.testing.assert_allclose(answer, expected, rtol=2e-3 if make is half_throughout else 1e-5, atol=1e-4)


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino"])
def test_what_is_not_clear_is_refused_with_the_way_on(runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    two = several_outputs().model
    two.graph.input.append(onnx.helper.make_tensor_value_info("noise", 1, ["n", 16, 1, 1]))
    two.graph.node.append(onnx.helper.make_node("Add", ["pooled", "noise"], ["noisy"]))
    two.graph.output.append(onnx.helper.make_tensor_value_info("noisy", 1, ["n", 16, 1, 1]))
    with pytest.raises(InputError, match=r"one input, found image \(float32.*noise .*; adopt it with `constants`"):
        load(two.SerializeToString(), runtime=runtime)
    unclear = several_outputs().model
    unclear.graph.output.append(onnx.helper.make_tensor_value_info("flat", 1, ["n", 16]))
    with pytest.raises(InputError, match=r"outputs r2 .*scores .*flat .*adopt it with .* `logits`"):
        load(unclear.SerializeToString(), runtime=runtime).infer(images(1))
