from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.errors import InputError
from alexdeploy.graph.model import load_onnx, model_bytes
from alexdeploy.graph.opset import raised, written_out
from tests.field.zoo.told import local_function
from tests.helpers.graphs import images, make_model, run


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("operator", "opset", "factor"), [("Upsample", 9, 2), ("Resize", 10, 2), ("Resize", 10, 0.5)])
def test_what_resized_before_opset_11_reads_the_same_places_in_opset_13(
    operator: str, opset: int, factor: float, mode: str
) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, *"hw"]) for name in ("x", "y")]
    scales = numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), "scales")
    node = helper.make_node(operator, ["x", "scales"], ["y"], "resize", mode=mode)
    graph = helper.make_graph([node], "resize", ends[:1], ends[1:], [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)
    image = np.random.default_rng(0).standard_normal((1, 2, 5, 7)).astype(np.float32)
    expected, found = (
        ort.InferenceSession(source).run(None, {"x": image})[0]
        for source in (model.SerializeToString(), model_bytes(raised(ir.from_proto(model), 13)))
    )
    np.testing.assert_array_equal(found, expected)


def test_an_overload_of_a_function_is_written_out_as_itself() -> None:
    """One that scales by 2 and one of the same name, in another opset, that scales by 3."""
    nodes, functions = [], []
    for overload, opset, source, result in (("", 17, "input", "s"), ("other", 16, "s", "logits")):
        body = helper.make_node("Mul", ["x", "and" if overload else "by"], ["y"])
        imports = [helper.make_opsetid("", opset)]
        functions.append(helper.make_function("theirs", "scaled", ["x", "by", "and"], ["y"], [body], imports))
        nodes.append(helper.make_node("scaled", [source, "two", "three"], [result], f"c{result}", domain="theirs"))
        functions[-1].overload = nodes[-1].overload = overload
    constants = {"two": np.array(2, np.float32), "three": np.array(3, np.float32)}
    proto = make_model([helper.make_node("Sum", ["input", *constants], ["logits"])], constants)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.functions.extend(functions)
    proto.opset_import[0].version = 17
    proto.opset_import.append(helper.make_opsetid("theirs", 1))
    proto.ir_version = 10
    (found,) = run(written_out(load_onnx(proto.SerializeToString())), images(2))
    np.testing.assert_array_equal(found, images(2) * np.float32(6))


def test_functions_that_cannot_be_written_out_are_refused_in_a_line() -> None:
    model = local_function().model
    model.functions[0].opset_import.append(helper.make_opsetid("other", 2))
    model.opset_import.append(helper.make_opsetid("other", 1))
    with pytest.raises(InputError, match=r"^its functions cannot be written out .*; export it without functions$"):
        written_out(ir.from_proto(model))
