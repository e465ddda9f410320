"""The TensorRT runner on a real device: the same answers as ONNX Runtime, from every way in."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import alexdeploy
from alexdeploy.cuda.open import open_device
from alexdeploy.data.sources import load_dataset
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import build_engine
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import PreparedGraph, model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.quantize.apply import PrecisionSettings, with_precision
from alexdeploy.runners.tensorrt import TensorRTRunner
from alexdeploy.specs import Profile
from tests.helpers.graphs import Array, conv_lrn_gemm, images, run

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt", reason="tensorrt is not installed")
    folder = tmp_path_factory.mktemp("engine")
    (folder / "model.onnx").write_bytes(conv_lrn_gemm().SerializeToString())
    settings = BuildSettings(builder="tensorrt", batches=Profile.parse("1:2:4"))
    build_engine(folder / "model.onnx", folder / "model.engine", settings=settings)
    return folder / "model.engine"


def alexnet(folder: Path, *, int8: bool, fp16: bool) -> PreparedGraph:
    from alexdeploy.export.from_torch import export_onnx
    from alexdeploy.quantize.calibrate import calibrate
    from alexdeploy.zoo.checkpoint import untrained

    checkpoint, path = untrained("alexnet", 10, seed=0), folder / "alexnet.onnx"
    export_onnx(checkpoint.model, checkpoint.contract, path, real_images=images(1, (3, 227, 227)))
    ranges = calibrate(path, load_dataset("digits", "train"), samples=16) if int8 else None
    return with_precision(path, ranges, settings=PrecisionSettings(int8=int8, fp16=fp16))


def check(found: Array, batch: Array) -> None:
    np.testing.assert_allclose(found, run(conv_lrn_gemm(), batch)[0], rtol=1e-3, atol=1e-4)


# of the largest logit; ONNX Runtime computes FP16 in FP32, and INT8 may land on the neighbouring level
@pytest.mark.parametrize(("int8", "fp16", "error"), [(0, 0, 1e-4), (0, 1, 1e-2), (1, 0, 2e-2), (1, 1, 2e-2)])
def test_every_precision_answers_as_onnxruntime_does(int8: bool, fp16: bool, error: float, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="tensorrt is not installed")
    model = ir.from_proto(conv_lrn_gemm())
    if int8:
        model = insert_qdq(model, {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)})
    model = to_fp16(model) if fp16 else model
    (tmp_path / "model.onnx").write_bytes(model_bytes(model))
    settings = BuildSettings(builder="tensorrt", batches=Profile.parse("1:2:4"))
    build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", settings=settings)
    wanted = run(model, images(9))[0]
    with alexdeploy.load(tmp_path / "model.engine") as runner:
        np.testing.assert_allclose(runner.infer(images(9)), wanted, rtol=0, atol=error * float(abs(wanted).max()))


def test_every_batch_size_again_and_again(engine: Path) -> None:
    with alexdeploy.load(engine) as runner:
        for index, size in enumerate((1, 4, 5, 12, 2, 1, 3) * 3):  # graphs replace plain calls from the second time on
            check(runner.infer(images(size, seed=index)), images(size, seed=index))


def test_threads_share_a_runner(engine: Path) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for call in range(50):
                check(runner.infer(images(1 + call % 5, seed=seed)), images(1 + call % 5, seed=seed))
        except BaseException as error:
            failures.append(error)

    with alexdeploy.load(engine) as runner:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_the_cuda_binding_is_the_one_that_was_asked_for() -> None:
    if "GPU_BINDING" not in os.environ:
        pytest.skip("GPU_BINDING is not set (make gpu-check sets it)")
    assert open_device().binding == os.environ["GPU_BINDING"]


# of the largest logit; the paper's network at full size, with its groups
@pytest.mark.parametrize(("int8", "fp16", "error"), [(0, 0, 1e-4), (0, 1, 1e-2), (1, 1, 5e-2)])
def test_alexnet_at_227_answers_as_onnxruntime_does(int8: bool, fp16: bool, error: float, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="tensorrt is not installed")
    graph, batch = alexnet(tmp_path, int8=bool(int8), fp16=bool(fp16)), images(3, (3, 227, 227))
    settings = BuildSettings(builder="tensorrt", batches=Profile.parse("1:2:4"))
    build_engine(graph, tmp_path / "model.engine", settings=settings)
    wanted = run(graph.model, batch)[0]
    with alexdeploy.load(tmp_path / "model.engine") as runner:
        np.testing.assert_allclose(runner.infer(batch), wanted, rtol=0, atol=error * float(abs(wanted).max()))


def test_tensors_of_torch_are_used_where_they_lie(engine: Path) -> None:
    import torch

    with TensorRTRunner(engine) as runner:
        logits = torch.empty(3, 4, device="cuda")
        runner.infer_on_device(torch.from_numpy(images(3)).cuda(), logits)
        check(logits.cpu().numpy(), images(3))
        batch, logits = torch.from_numpy(images(4)).cuda(), torch.empty(4, 4, device="cuda")
        runner.infer_on_device(batch, logits, torch.cuda.current_stream().cuda_stream)
        check(logits.cpu().numpy(), images(4))


def test_arrays_of_cupy_are_used_where_they_lie(engine: Path) -> None:
    cupy = pytest.importorskip("cupy", reason="cupy is not installed")
    with TensorRTRunner(engine) as runner:
        for stream in (None, cupy.cuda.Stream(non_blocking=True)):
            with stream or cupy.cuda.Stream.null:
                batch, logits = cupy.asarray(images(3)), cupy.zeros((3, 4), np.float32)
                runner.infer_on_device(batch, logits, None if stream is None else stream.ptr)
                check(cupy.asnumpy(logits), images(3))


if os.environ.get("GPU_BINDING") != "cuda-python":  # which has no arrays of its own

    def test_arrays_of_pycuda_are_used_where_they_lie(engine: Path) -> None:
        gpuarray = pytest.importorskip("pycuda.gpuarray", reason="PyCUDA is not installed")
        with TensorRTRunner(engine) as runner, open_device().current():
            batch, logits = gpuarray.to_gpu(images(3)), gpuarray.zeros((3, 4), np.float32)
            runner.infer_on_device(batch, logits)
            check(logits.get(), images(3))
            del batch, logits
