"""Every network of the zoo, INT8 and INT8 with FP16 between, built by NVIDIA's own builder."""

from __future__ import annotations

from functools import cache

import onnx_ir as ir
import pytest

from alexdeploy.engine.build import Graph, build
from alexdeploy.engine.versions import load_library
from alexdeploy.export import trace
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.lint import lint
from alexdeploy.graph.model import model_bytes, precision_of
from alexdeploy.graph.qdq import TensorRange, calibration_tensors, insert_qdq
from alexdeploy.graph.weighted import quantized_nodes, weighted_nodes
from alexdeploy.specs import BatchProfile
from alexdeploy.zoo.checkpoint import untrained
from alexdeploy.zoo.registry import NETWORKS

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@cache
def exported(network: str) -> tuple[ir.Model, tuple[int, int, int]]:
    fresh = untrained(network, 10, seed=0)
    return trace(fresh.model, fresh.contract), fresh.contract.input_shape


@pytest.mark.parametrize("fp16", [False, True], ids=["int8", "int8+fp16"])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_all_convolutions_and_gemms_are_int8_kernels(network: str, fp16: bool) -> None:
    model, shape = exported(network)
    layers = [node.name for node in weighted_nodes(model)]
    # the ranges' values do not decide which kernels are chosen
    quantized = insert_qdq(model, dict.fromkeys(calibration_tensors(model), TensorRange(1.0)))
    quantized = to_fp16(quantized) if fp16 else quantized
    assert lint(quantized) == []
    names = [str(node.name) for node in quantized_nodes(quantized)]
    graph = Graph(model_bytes(quantized), "input", shape, precision_of(quantized), weighted=names, quantized=names)
    _, report = build(graph, BatchProfile(1, 8, 64), load_library("tensorrt-rtx"))
    assert report.layer_precisions == dict.fromkeys(layers, "INT8")
    assert report.float_layers == []
