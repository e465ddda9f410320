"""Making inner tensors visible: the same graph with chosen activations as its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.errors import InputError


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy whose outputs are exactly the named tensors; what does not lead to them is removed.

    Raises:
        InputError: a name that the graph does not have.
    """
    model = model.clone()
    common.ShapeInferencePass()(model)
    values = {str(output.name): output for node in model.graph for output in node.outputs}
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"the graph has no tensor '{missing[0]}'")
    model.graph.outputs[:] = [values[name] for name in names]
    common.RemoveUnusedNodesPass()(model)
    return model
