from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from alexdeploy.graph.lrn.fuse import fuse_lrn
from alexdeploy.graph.model import load_onnx, op_counts
from tests.helpers.graphs import run


class Functional(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.local_response_norm(torch.relu(x), 5, alpha=0.5, beta=0.75, k=2.0) + 1


class ByHand(nn.Module):
    """Not a local response normalisation: the mean runs over pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (nn.functional.avg_pool2d(x * x, 3, 1, 1) * 0.5 + 2.0) ** 0.75


def exported(module: nn.Module, path: Path, *, dynamo: bool, dynamic: bool) -> onnx.ModelProto:
    batch = torch.zeros(2, 6, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                module,
                (batch,),
                path,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
                input_names=["input"],
                output_names=["out"],
                verbose=False,
            )
        else:
            axes = {"input": {0: "batch"}} if dynamic else None
            torch.onnx.export(
                module,
                (batch,),
                str(path),
                dynamo=False,
                dynamic_axes=axes,
                input_names=["input"],
                output_names=["out"],
            )
    return onnx.load(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.ReLU(), nn.LocalResponseNorm(3, alpha=0.7, beta=0.6, k=1.5), nn.ReLU()),
        nn.Sequential(nn.LocalResponseNorm(5), nn.LocalResponseNorm(9, alpha=2.0)),
        Functional(),
    ],
    ids=["sequential", "two in a row", "functional"],
)
def test_what_both_exporters_take_apart_is_one_node_again(
    module: nn.Module, dynamo: bool, dynamic: bool, tmp_path: Path
) -> None:
    exported(module.eval(), tmp_path / "model.onnx", dynamo=dynamo, dynamic=dynamic)
    decomposed = load_onnx(tmp_path / "model.onnx")
    wanted = sum(isinstance(m, nn.LocalResponseNorm) for m in module.modules()) or 1
    fused, names = fuse_lrn(decomposed)
    assert op_counts(fused)["LRN"] == len(names) == wanted
    assert not op_counts(fused).keys() & {"AveragePool", "Pad", "Pow", "Div", "If", "Reshape", "Shape"}
    batch = np.random.default_rng(0).standard_normal((2, 6, 8, 8)).astype(np.float32) * 3
    with torch.inference_mode():
        expected = module(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(run(fused, batch)[0], expected, rtol=1e-5, atol=1e-6)
    assert "LRN" not in op_counts(decomposed), "the model that was given is untouched"


@pytest.mark.filterwarnings("ignore")
def test_other_divisions_are_left_alone(tmp_path: Path) -> None:
    exported(ByHand(), tmp_path / "model.onnx", dynamo=True, dynamic=True)
    model = load_onnx(tmp_path / "model.onnx")
    fused, names = fuse_lrn(model)
    assert names == []
    assert ir.to_proto(fused).SerializeToString() == ir.to_proto(model).SerializeToString()
