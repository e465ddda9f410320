"""The TensorRT runner on a real device: the same answers as ONNX Runtime, from every way in."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import alexdeploy
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import build_engine
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
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


def test_tensors_of_torch_are_used_where_they_lie(engine: Path) -> None:
    import torch

    with TensorRTRunner(engine) as runner:
        logits = torch.empty(3, 4, device="cuda")
        runner.infer_on_device(torch.from_numpy(images(3)).cuda(), logits)
        check(logits.cpu().numpy(), images(3))
        batch, logits = torch.from_numpy(images(4)).cuda(), torch.empty(4, 4, device="cuda")
        runner.infer_on_device(batch, logits, torch.cuda.current_stream().cuda_stream)
        check(logits.cpu().numpy(), images(4))
