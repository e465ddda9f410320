"""Passes that add values to a graph which has values of those very names already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.sources import load_dataset
from alexdeploy.graph.emulate import for_cpu
from alexdeploy.graph.equalize import equalizable, equalize
from alexdeploy.graph.fp16 import to_bf16
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.interface import image_to_logits
from alexdeploy.graph.lrn.lower import lower_lrn
from alexdeploy.graph.names import new_constant, rename, taken_names, unique
from alexdeploy.graph.qdq import TensorRange, calibration_tensors, insert_qdq
from alexdeploy.graph.taps import with_outputs
from alexdeploy.graph.uint8_input import with_uint8_input
from alexdeploy.quantize.calibrate import calibrate
from tests.helpers.graphs import conv_lrn_gemm, images, make_model, run

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
Pass = Callable[[ir.Model], ir.Model]


def network() -> ir.Model:
    """With a Softmax at the end and two layers that can be equalized."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], "c1"),
        helper.make_node("Relu", ["c1"], ["r1"], "r1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "c2"),
        helper.make_node("LRN", ["c2"], ["n2"], "n2", size=3),
        helper.make_node("GlobalAveragePool", ["n2"], ["pool"], "pool"),
        helper.make_node("Softmax", ["pool"], ["probabilities"], "softmax", axis=1),
    ]
    weights = {"w1": (6, 3, 3, 3), "w2": (4, 6, 3, 3)}
    made = {name: random.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    return inferred(make_model(nodes, made, output="probabilities"))


def inferred(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def equalized(model: ir.Model) -> ir.Model:
    assert equalizable(model) == ["r1"]
    return equalize(model, {"r1": np.geomspace(0.1, 10, 6)}, {"r1": 10.0})


def in_fp8(model: ir.Model) -> ir.Model:
    return insert_qdq(model, dict.fromkeys(calibration_tensors(model), TensorRange(1.0)), fp8=True)


def with_faint_clip(model: ir.Model) -> ir.Model:
    """A Clip at the end with Q/DQ behind it, of levels that reach no further than 1e-12."""
    model = model.clone()
    graph, last = model.graph, model.graph.outputs[0]
    taken = taken_names(model)
    low, high, scale, zero = (
        new_constant(graph, name, np.array(value, kind), taken)
        for name, value, kind in (("lo", 0, "f4"), ("hi", 6, "f4"), ("faint", 1e-14, "f4"), ("zero", 0, "i1"))
    )
    clip = ir.node("Clip", [last, low, high], name="clip")
    quantize = ir.node("QuantizeLinear", [*clip.outputs, scale, zero], name="quantize")
    end = ir.node("DequantizeLinear", [*quantize.outputs, scale, zero], name="end")
    for node in (clip, quantize, end):
        node.name = node.outputs[0].name = unique(str(node.name), taken)
        graph.append(node)
    end.outputs[0].type, end.outputs[0].shape = last.type, last.shape
    graph.outputs[0] = end.outputs[0]
    infer_shapes(model)
    return model


# what a pass needs of a graph
BEFORE: dict[str, Pass] = {"bfloat16": to_bf16, "FP8": in_fp8, "faint clip": with_faint_clip}
PASSES: dict[str, Pass] = {
    "taps": lambda model: with_outputs(model, ["n2"], magnitudes=["c1", "r1"]),
    "lower": lower_lrn,
    "interface": lambda model: image_to_logits(model, "model.onnx")[0],
    "pixels": lambda model: with_uint8_input(model, CONTRACT)[0],
    "equalize": equalized,
    "rename": rename,
    **dict.fromkeys(BEFORE, for_cpu),
}


def names_of(model: ir.Model) -> set[str]:
    values = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    return {str(value.name) for value in values}


def with_names(model: ir.Model, names: set[str], place: str) -> ir.Model:
    """The same function, in which those are names of other values: constants, results, or values of a branch."""
    proto = ir.to_proto(model)
    graph = proto.graph
    constant = next((one for one in graph.initializer if one.data_type == TensorProto.FLOAT), graph.initializer[0])
    zero, kind = constant.name, constant.data_type
    assert names
    if place == "constant":
        graph.initializer.extend(numpy_helper.from_array(np.array([0], np.float32), name) for name in sorted(names))
        added = [helper.make_node("Identity", [name], [f"of {name}"], f"of {name}") for name in sorted(names)]
    elif place == "result":
        added = [helper.make_node("Identity", [zero], [name], name) for name in sorted(names)]
    else:
        graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        added = []
        for number, name in enumerate(sorted(names)):
            nodes = [helper.make_node("Neg", [zero], [name], name)]
            branch = helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info(name, kind, None)])
            node = helper.make_node(
                "If", ["yes"], [f"if{number}"], f"if{number}", then_branch=branch, else_branch=branch
            )
            added.append(node)
    graph.node.extend(added)
    return inferred(proto)


@pytest.mark.parametrize("place", ["constant", "result", "branch"])
@pytest.mark.parametrize("name", PASSES)
def test_a_name_that_the_graph_has_is_not_given_again(name: str, place: str) -> None:
    do, model = PASSES[name], BEFORE[name](network()) if name in BEFORE else network()
    added = names_of(do(model)) - names_of(model)
    assert added
    found = do(with_names(model, added, place))
    proto = ir.to_proto(found)
    onnx.checker.check_model(proto)
    made = [value.name for value in proto.graph.initializer] + [
        name for node in proto.graph.node for name in node.output
    ]
    assert len(made) == len(set(made))


def test_what_is_seen_of_a_tensor_does_not_hang_on_its_name(tmp_path: Path) -> None:
    """LRN's sum of squares and the largest values, where the graph has tensors of the names that these would get."""
    plain = conv_lrn_gemm()
    helper.set_model_props(plain, {METADATA_KEY: CONTRACT.to_json()})
    taken = onnx.ModelProto.FromString(plain.SerializeToString())
    names = sorted(
        names_of(lower_lrn(ir.from_proto(plain))) | {"conv1.max", "lrn1.base"} - names_of(ir.from_proto(plain))
    )
    names = [name for name in names if name not in names_of(ir.from_proto(plain))]
    taken.graph.initializer.extend(numpy_helper.from_array(np.array([7], np.float32), name) for name in sorted(names))
    seen = []
    np.save(tmp_path / "images.npy", images(4))
    for name, proto in (("plain", plain), ("taken", taken)):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(proto.SerializeToString())
        seen.append(calibrate(path, load_dataset(str(tmp_path / "images.npy"), "train"), samples=4))
    assert seen[0].largest
    assert seen[1].largest == seen[0].largest


def test_the_lowered_graph_with_taken_names_computes_the_same() -> None:
    plain = inferred(conv_lrn_gemm())
    names = names_of(lower_lrn(plain)) - names_of(plain)
    batch = images()
    found = run(lower_lrn(with_names(plain, names, "constant")), batch)[0]
    np.testing.assert_allclose(found, run(plain, batch)[0], rtol=1e-5, atol=1e-5)


class Counted(set[str]):
    """Counts the names that are looked up."""

    asked = 0

    def __contains__(self, name: object) -> bool:
        self.asked += 1
        return super().__contains__(name)


def test_a_name_is_found_in_few_steps_among_thousands_like_it() -> None:
    used = Counted({"relu1_7"})
    given = [unique("relu1", used) for _ in range(2000)]
    assert given[:3] == ["relu1", "relu1_2", "relu1_3"]
    assert len({*given, "relu1_7"}) == 2001
    assert used.asked < 2000 * 25
