"""NVIDIA's own parser and builder (TensorRT-RTX, on the CPU) judge the graphs that our passes write."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.engine.build import Graph, build
from alexdeploy.engine.driver import why_no_cuda
from alexdeploy.engine.kernels import count_precisions, parse_report, precisions_of_layers
from alexdeploy.engine.versions import load_library
from alexdeploy.errors import InputError, UnavailableError
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import model_bytes, precision_of
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.weighted import quantized_nodes
from alexdeploy.specs import BatchProfile
from tests.helpers.graphs import conv_lrn_gemm

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
AMAX = {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)}


def graph_of(model: ir.Model, weighted: Sequence[str] = ("conv1", "fc2")) -> Graph:
    return Graph(
        data=model_bytes(model),
        input_name="input",
        image_shape=(3, 8, 8),
        precision=precision_of(model),
        weighted=weighted,
        quantized=[str(node.name) for node in quantized_nodes(model)],
    )


@pytest.mark.parametrize(
    ("int8", "fp16", "expected"),
    [(False, False, "FLOAT"), (False, True, "HALF"), (True, False, "INT8"), (True, True, "INT8")],
)
def test_kernels_compute_in_the_type_the_graph_says(int8: bool, fp16: bool, expected: str) -> None:
    model = ir.from_proto(conv_lrn_gemm())
    model = insert_qdq(model, AMAX) if int8 else model
    model = to_fp16(model) if fp16 else model
    plan, report = build(graph_of(model), BatchProfile(1, 2, 4), load_library("tensorrt-rtx"))
    assert report.layer_precisions == {"conv1": expected, "fc2": expected}
    assert report.float_layers == []
    assert report.size_bytes == len(plan) > 0
    sums_of_squares = [k for k in report.kernels if "lrn1" in k.onnx_layers and k.type == "avgpool"]
    assert [kernel.precision for kernel in sums_of_squares] == ["FLOAT"]


def test_a_layer_quantized_on_its_activation_only_is_reported_as_float() -> None:
    model = insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX)
    conv = next(node for node in model.graph if node.name == "conv1")
    dequantize = conv.inputs[1]
    assert dequantize is not None
    producer = dequantize.producer()
    assert producer is not None
    levels = producer.inputs[0]
    assert levels is not None
    assert levels.const_value is not None
    weight = ir.val(
        "conv1.float", const_value=ir.tensor(levels.const_value.numpy().astype("float32"), name="conv1.float")
    )
    model.graph.register_initializer(weight)
    graph = graph_of(model)  # asks for INT8 on both
    conv.replace_input_with(1, weight)
    model.graph.remove(producer)
    changed = Graph(**{**graph.__dict__, "data": model_bytes(model)})
    _, report = build(changed, BatchProfile(1, 2, 4), load_library("tensorrt-rtx"))
    assert report.float_layers == ["conv1"]
    assert report.precisions == {"INT8": 1, "HALF": 0, "FLOAT": 1}


def test_what_the_parser_refuses_is_named_with_node_and_operator() -> None:
    proto = conv_lrn_gemm()
    proto.graph.node[1].CopyFrom(helper.make_node("Swirl", ["conv1"], ["relu1"], "swirl", domain="my.ops"))
    proto.opset_import.append(helper.make_opsetid("my.ops", 1))
    graph = Graph(proto.SerializeToString(), "input", (3, 8, 8), precision_of(ir.from_proto(proto)), (), ())
    with pytest.raises(InputError, match=r"node 'swirl' \(Swirl\)"):
        build(graph, BatchProfile(), load_library("tensorrt-rtx"))


def test_an_empty_or_broken_graph_is_an_error_not_an_empty_engine() -> None:
    good = graph_of(ir.from_proto(conv_lrn_gemm()))
    for data in (b"", b"not onnx at all", onnx.ModelProto().SerializeToString()):
        with pytest.raises(InputError):
            build(Graph(**{**good.__dict__, "data": data}), BatchProfile(), load_library("tensorrt-rtx"))


def test_a_profile_for_another_input_is_refused_with_the_builders_words() -> None:
    good = graph_of(ir.from_proto(conv_lrn_gemm()))
    with pytest.raises(InputError, match="tensorrt-rtx"):
        build(Graph(**{**good.__dict__, "image_shape": (3, 9, 9)}), BatchProfile(), load_library("tensorrt-rtx"))


@pytest.mark.skipif(why_no_cuda() is None, reason="this machine has a CUDA device")
def test_tensorrt_is_not_even_imported_without_a_gpu() -> None:
    with pytest.raises(UnavailableError, match="no CUDA device"):
        load_library("tensorrt")
    assert load_library("auto").name == "tensorrt-rtx"


def test_report_parser_on_a_recorded_line() -> None:
    line = (
        "Name: conv1_U28_myl0_2, LayerType: correlation, "
        "Inputs: [ { Name: a, Dimensions: [-1,4,8,8], Strides: [1], Datatype: Int8, Format: (x) y }], "
        "Constants: [ { Name: w, Dimensions: [48,4,11,11], Datatype: Int8, Format: (x) y }, "
        "{ Name: b, Dimensions: [1,48,1,1], Datatype: Float, Format: z }], "
        "Outputs: [ { Name: c, Dimensions: [-1,48,55,55], Datatype: Float, Format: z }], "
        "TacticName: __stub, StreamId: 0, Metadata: [ONNX Layer: conv1][ONNX Layer: input.dequantize]"
    )
    (kernel,) = parse_report(f"Layers:\n{line}\n\nI/O Tensors:\n Name: input, IOMode: Input")
    assert (kernel.name, kernel.type, kernel.precision, kernel.weighted) == (
        "conv1_U28_myl0_2",
        "correlation",
        "INT8",
        True,
    )
    assert kernel.onnx_layers == ("conv1", "input.dequantize")
    precisions = precisions_of_layers([kernel], ["conv1", "conv2"])
    assert precisions == {"conv1": "INT8"}
    assert count_precisions(precisions) == {"INT8": 1, "HALF": 0, "FLOAT": 0}
