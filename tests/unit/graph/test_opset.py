from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.opset import raised


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
