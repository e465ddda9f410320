"""Files of older exporters, brought to what the other passes and the Q/DQ dialects take for granted."""

from __future__ import annotations

import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common

from alexdeploy.graph.infer import infer_shapes

MIN_OPSET = 13  # the first with per-channel DequantizeLinear
MIN_IR = 7  # opset 13's; before 4, initializers had to be inputs as well


def modernised(model: ir.Model) -> ir.Model:
    """A copy in opset 13 or later, converted by ONNX's own converter, with initializers that are not inputs."""
    model = model.clone()
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, MIN_IR)
    if model.opset_imports.get("", MIN_OPSET) < MIN_OPSET:
        model = ir.from_proto(version_converter.convert_version(ir.to_proto(model), MIN_OPSET))
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    return model
