"""Files of older exporters, brought to what the other passes and the Q/DQ dialects take for granted."""

from __future__ import annotations

import onnx_ir as ir
from google.protobuf.message import EncodeError
from onnx import checker, helper, shape_inference, version_converter
from onnx_ir.passes import common

from alexdeploy.errors import InputError
from alexdeploy.graph.infer import infer_shapes

MIN_OPSET = 13  # the first with per-channel DequantizeLinear
RUN_OPSET = 7  # the first that ONNX Runtime promises to run; some operators of before have no kernels
FP8_OPSET = 19  # the first with FP8 in QuantizeLinear and DequantizeLinear
BF16_OPSET = 22  # the first with bfloat16 in Conv and in pooling
_RESIZE_OPSET = 11  # before, Resize and Upsample knew one way to find the places to read from
MIN_IR = 7  # opset 13's; before 4, initializers had to be inputs as well


def modernised(model: ir.Model) -> ir.Model:
    """A copy in opset 13 or later, converted by ONNX's own converter, whose initializers are inputs no more.

    Raises:
        InputError: ONNX's converter cannot raise it.
    """
    model = model.clone()
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, MIN_IR)
    return raised(model, MIN_OPSET)


def written_out(model: ir.Model) -> ir.Model:
    """A copy whose functions stand where they are called, so that other passes see what is in them.

    Raises:
        InputError: they cannot, or ONNX's converter cannot bring them and the graph to one opset.
    """
    model = model.clone()
    if not model.functions:
        return model
    model = _in_one_opset(model)
    try:
        common.InlinePass()(model)
    except (ValueError, ir.passes.InvariantError, ir.passes.PassError) as error:
        raise InputError(
            f"its functions cannot be written out where they are called ({error}); export it without functions"
        ) from error
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    return model


def raised(model: ir.Model, opset: int) -> ir.Model:
    """A copy in that opset or later, with shapes inferred; names and metadata stay.

    Raises:
        InputError: ONNX's converter cannot raise it.
    """
    before = model.opset_imports.get("", opset)
    if before < opset:
        model = _converted(model, opset, "the graph")
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        model.ir_version = max(model.ir_version, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    else:
        model = model.clone()
    infer_shapes(model)
    return model


def _in_one_opset(model: ir.Model) -> ir.Model:
    """With the functions in the opset of the graph, or the graph in theirs; ``InlinePass`` takes no other."""
    functions = dict(model.functions)
    opset = max([model.opset_imports.get("", 0), *(one.opset_imports.get("", 0) for one in functions.values())])
    if model.opset_imports.get("", opset) < opset:
        model.functions.clear()  # ONNX's converter knows none
        model = raised(model, opset)
    for key, function in functions.items():
        if function.opset_imports.get("", opset) < opset:
            body = ir.Model(function.graph, ir_version=model.ir_version)
            body = _converted(body, opset, f"the function '{function.name}'")
            function = ir.Function(*key, graph=body.graph, attributes=[*function.attributes.values()])
        model.functions[key] = function
    return model


def _converted(model: ir.Model, opset: int, what: str) -> ir.Model:
    """By ONNX's converter.

    Raises:
        InputError: it cannot.
    """
    before = model.opset_imports.get("", opset)
    try:
        converted = ir.from_proto(version_converter.convert_version(ir.to_proto(model), opset))
        if before < _RESIZE_OPSET <= opset:
            _resized_as_before(converted)
        return converted
    except (
        *(EncodeError, RuntimeError, ValueError, ir.serde.SerdeError),
        *(version_converter.ConvertError, shape_inference.InferenceError, checker.ValidationError),
    ) as error:
        why = " ".join(str(error).split())[:200]
        if before < RUN_OPSET:  # the converter's words are those of its source
            why = f"nor does ONNX Runtime run what is older than {RUN_OPSET}"
        raise InputError(
            f"{what} has opset {before}, {opset} is needed, and ONNX cannot convert it ({why}); export it in "
            f"opset {opset}"
        ) from error


def _resized_as_before(model: ir.Model) -> None:
    """Say how Upsample and the first Resize sampled; ONNX's converter (1.23) does not, and the default is another."""
    for node in model.graph:
        if node.op_type == "Resize" and "coordinate_transformation_mode" not in node.attributes:
            scales = node.inputs[2] if len(node.inputs) > 2 else None
            known = scales.const_value.numpy() if scales is not None and scales.const_value is not None else None
            smaller = known is not None and bool((known < 1).any())
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil" if smaller else "floor")
