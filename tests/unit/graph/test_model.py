from __future__ import annotations

from pathlib import Path
from typing import get_args

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import InputError
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import class_count, contract_of, image_input, load_onnx, op_counts, precision_of, save_onnx
from alexdeploy.graph.names import rename
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.table import layer_table
from alexdeploy.graph.taps import with_outputs
from alexdeploy.specs import Dialect, Precision
from tests.helpers.graphs import as_fp8, conv_lrn_gemm, images, make_model, run


def test_round_trip_keeps_the_function_and_the_contract(tmp_path: Path) -> None:
    contract = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.5,) * 3, labels=tuple("abcd"))
    model = ir.from_proto(conv_lrn_gemm())
    model.metadata_props[METADATA_KEY] = contract.to_json()
    path = tmp_path / "model.onnx"
    save_onnx(model, path)
    loaded = load_onnx(path)
    assert contract_of(loaded, "x") == contract
    assert op_counts(loaded) == {"Conv": 1, "Flatten": 1, "Gemm": 1, "LRN": 1, "MaxPool": 1, "Relu": 1}
    assert (class_count(loaded), precision_of(loaded)) == (4, Precision.FP32)
    assert image_input(loaded, "x").shape == ("batch", 3, 8, 8)
    assert (run(loaded, images())[0] == run(model, images())[0]).all()


def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    model = conv_lrn_gemm()
    model.graph.node[1].op_type = "Rellu"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"'relu1' has operator 'Rellu'"):
        load_onnx(path)


def test_a_graph_that_the_checker_refuses_is_an_input_error(tmp_path: Path) -> None:
    model = conv_lrn_gemm()
    model.graph.node[1].input[0] = "nowhere"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(InputError, match="nowhere"):
        load_onnx(path)


def test_names_follow_caffe_and_are_unique() -> None:
    proto = conv_lrn_gemm()
    for node in proto.graph.node:
        node.name = ""
    extra = helper.make_node("Relu", ["logits"], ["again"], "")
    proto.graph.node.append(extra)
    proto.graph.output[0].name = "again"
    model = rename(ir.from_proto(proto))
    names = [str(node.name) for node in model.graph]
    assert names == ["conv1", "relu1", "lrn1", "pool1", "flatten1", "fc2", "relu2"]
    assert {"conv1.weight", "conv1.bias", "fc2.weight", "fc2.bias"} <= model.graph.initializers.keys()
    assert [value.name for value in model.graph.outputs] == ["again"]
    (expected,), (actual,) = run(proto, images()), run(model, images())
    assert (actual == expected).all()


def test_names_of_two_layers_of_a_kind_behind_one_convolution_differ() -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["logits"]),
    ]
    model = rename(ir.from_proto(make_model(nodes, {})))
    assert [node.name for node in model.graph] == ["relu1", "relu1_2", "relu1_3"]


def test_layer_table_counts_by_the_formulas() -> None:
    layers = {layer.name: layer for layer in layer_table(ir.from_proto(conv_lrn_gemm()))}
    conv, fc = layers["conv1"], layers["fc2"]
    assert conv.output_shape == (8, 8, 8)
    assert conv.parameters == 8 * 3 * 3 * 3 + 8
    assert conv.macs == 8 * 8 * 8 * (3 * 3 * 3)
    assert conv.connections == 8 * 8 * (3 * 3 * 3 + 1) * 8
    assert (fc.parameters, fc.macs, fc.connections) == (128 * 4 + 4, 128 * 4, 128 * 4 + 4)
    assert layers["lrn1"].parameters == 0


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_the_type_of_a_quantized_layer_is_that_of_its_own_levels(dialect: Dialect) -> None:
    amax = {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)}
    model = insert_qdq(ir.from_proto(conv_lrn_gemm()), amax, dialect=dialect)
    for graph, layer, whole in ((model, "INT8", "int8"), (as_fp8(model), "FP8", "fp8")):
        found = {row.name: row.precision for row in layer_table(graph)}
        assert (found["conv1"], found["fc2"], found["relu1"]) == (layer, layer, "FLOAT")
        assert precision_of(graph).value == whole


def test_fp8_with_fp16_between_the_layers_is_both() -> None:
    model = as_fp8(
        insert_qdq(ir.from_proto(conv_lrn_gemm()), {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)})
    )
    assert precision_of(to_fp16(model)) is Precision.FP8_FP16


def test_taps_show_inner_tensors_and_drop_what_follows() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    tapped = with_outputs(model, ["pool1", "relu1"])
    assert "fc2" not in {node.name for node in tapped.graph}
    pool, relu = run(tapped, images())
    assert pool.shape == (5, 8, 4, 4)
    assert relu.shape == (5, 8, 8, 8)
    with pytest.raises(InputError, match="nowhere"):
        with_outputs(model, ["nowhere"])


def test_the_image_has_rank_4_and_its_sizes_may_be_open() -> None:
    def relu(*shape: int | str) -> ir.Model:
        nodes = [helper.make_node("Relu", ["input"], ["logits"])]
        return ir.from_proto(make_model(nodes, {}, shape=shape, rank=len(shape)))

    assert image_input(relu("batch", 3, "height", 8), "model.onnx").shape == ("batch", 3, "height", 8)
    with pytest.raises(InputError, match=r"one image input of rank 4.*found input \(float32, shape \(batch, 3\)\)"):
        image_input(relu("batch", 3), "model.onnx")
