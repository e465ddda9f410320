"""What only a machine with a GPU can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from alexdeploy.engine.build import BuilderInput, EngineBuild
from alexdeploy.engine.options import BuilderOptions
from alexdeploy.engine.versions import load_library
from alexdeploy.graph.model import model_bytes
from alexdeploy.specs import Profile
from tests.helpers.graphs import conv_lrn_gemm

pytestmark = pytest.mark.gpu


def test_tensorrt_builds_the_graph_that_rtx_builds() -> None:
    pytest.importorskip("tensorrt", reason="tensorrt is not installed")
    data = model_bytes(ir.from_proto(conv_lrn_gemm()))
    shapes = {"input": Profile.parse("1:2:4").with_sizes((3, 8, 8))}
    graph = BuilderInput(data, shapes, weighted=("conv1", "fc2"), quantized={})
    plan, report = EngineBuild(graph, BuilderOptions(), load_library("tensorrt")).run()
    assert report.size_bytes == len(plan) > 0


def test_pytorch_gives_the_same_on_the_gpu(tmp_path: Path) -> None:
    import torch

    from alexdeploy.runners.pytorch import PyTorchRunner
    from alexdeploy.zoo.checkpoint import load_checkpoint, save_checkpoint, untrained

    checkpoint = untrained("alexnet-mnist", 10, seed=0)
    save_checkpoint(tmp_path / "net.safetensors", checkpoint)
    batch = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
    with torch.inference_mode():
        expected = checkpoint.model(torch.from_numpy(batch)).numpy()
    runner = PyTorchRunner(load_checkpoint(tmp_path / "net.safetensors"))
    assert runner.device.type == "cuda"
    np.testing.assert_allclose(runner.infer(batch), expected, rtol=1e-2, atol=1e-3)
