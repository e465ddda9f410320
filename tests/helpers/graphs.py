"""Small ONNX graphs, written with onnx.helper: independent of the passes they are used to test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array],
    *,
    shape: Sequence[int | str] = ("batch", 3, 8, 8),
    output: str = "logits",
    rank: int = 4,
) -> onnx.ModelProto:
    """A checked model with input ``input`` (float) and one output of that rank."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def conv_lrn_gemm(seed: int = 0, *, trans_b: int = 1, lrn_size: int = 5) -> onnx.ModelProto:
    """conv1 (3→8, 3×3) relu1 lrn1 pool1 (2×2) flatten1 fc2 (→4)."""
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((4, 8 * 4 * 4)).astype(np.float32) / 8
    return make_model(
        [
            helper.make_node("Conv", ["input", "w1", "b1"], ["conv1"], "conv1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv1"], ["relu1"], "relu1"),
            helper.make_node("LRN", ["relu1"], ["lrn1"], "lrn1", size=lrn_size, alpha=1e-2, beta=0.75, bias=2.0),
            helper.make_node("MaxPool", ["lrn1"], ["pool1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["pool1"], ["flatten1"], "flatten1"),
            helper.make_node("Gemm", ["flatten1", "w2", "b2"], ["logits"], "fc2", transB=trans_b),
        ],
        {
            "w1": random.standard_normal((8, 3, 3, 3)).astype(np.float32) / 4,
            "b1": random.standard_normal(8).astype(np.float32),
            "w2": matrix if trans_b else np.ascontiguousarray(matrix.T),
            "b2": random.standard_normal(4).astype(np.float32),
        },
        rank=2,
    )


def of_pixels(model: onnx.ModelProto, scale: float, mean: Sequence[float], std: Sequence[float]) -> onnx.ModelProto:
    """The same network on uint8 pixels (batch, H, W, C): Transpose, Cast, Mul and Add in front of ``input``."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    dims = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [dims[0], *dims[2:], dims[1]])
    middle, spread = (np.array(values, np.float64).reshape(1, -1, 1, 1) for values in (mean, std))
    constants = {"factor": 1 / (scale * spread), "shift": -middle / spread}
    front = [
        helper.make_node("Transpose", ["pixels"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], "floats", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "factor"], ["scaled"], "scaled"),
        helper.make_node("Add", ["scaled", "shift"], [model.graph.input[0].name], "shifted"),
    ]
    nodes = [*front, *model.graph.node]
    del changed.graph.node[:], changed.graph.input[:]
    changed.graph.node.extend(nodes)
    changed.graph.input.append(pixels)
    changed.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()
    )
    onnx.checker.check_model(changed, full_check=True)
    return changed


def as_fp8(model: ir.Model) -> ir.Model:
    """The same INT8 Q/DQ in FP8 (E4M3, largest value 448), as other tools write it."""
    import onnx_ir as ir

    model = model.clone()
    e4m3, step = ml_dtypes.float8_e4m3fn, np.float32(448 / 127)  # of what was 1 in INT8
    changed: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        levels, scale, zero = node.inputs
        for value in (levels, scale, zero):
            if value is None or value.const_value is None or value in changed:
                continue
            changed.add(value)
            array = value.const_value.numpy().astype(np.float32)
            new = array / step if value is scale else (array * step).astype(e4m3)
            value.const_value = ir.tensor(new, name=value.name)
            value.type = ir.TensorType(value.const_value.dtype)  # a clone shares the type itself
        if node.op_type == "QuantizeLinear":
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT8E4M3FN)
    return model


def run(model: onnx.ModelProto | ir.Model, batch: Array, outputs: Sequence[str] | None = None) -> list[Array]:
    """Outputs from ONNX Runtime without graph optimisation, so that what is written is what runs."""
    if isinstance(model, onnx.ModelProto):
        proto = model
    else:
        import onnx_ir as ir  # slow to load, and many tests need none of it

        proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(outputs, {"input": batch})
    return results


def images(count: int = 5, shape: tuple[int, ...] = (3, 8, 8), seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def conv_lrn_gemm_in_torch(batch: Array) -> Array:
    """What ``conv_lrn_gemm()`` computes, by PyTorch (onnx.reference sums the wrong channels in LRN)."""
    import torch
    from torch.nn import functional

    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in conv_lrn_gemm().graph.initializer}
    x = functional.relu(functional.conv2d(torch.from_numpy(batch), weights["w1"], weights["b1"], padding=1))
    x = functional.max_pool2d(functional.local_response_norm(x, 5, 1e-2, 0.75, 2.0), 2)
    logits: Array = functional.linear(x.flatten(1), weights["w2"], weights["b2"]).numpy()
    return logits
