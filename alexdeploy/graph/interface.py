"""The interface that every other room expects of a graph: one image comes in, one row of logits goes out.

Graphs of others have several outputs, further inputs, and a Softmax at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.errors import UsageError, unknown_name
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.model import fed_inputs, tensor_spec
from alexdeploy.graph.names import taken_names, unique
from alexdeploy.specs import TensorSpec, find_logits

_PER_CHANNEL_SOFTMAX = 13  # the first opset whose Softmax runs along one axis; before, along all from it on
_SHAPING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze"})


@dataclass(frozen=True)
class Interface:
    """What had to be done.

    Attributes:
        image: the input that was kept.
        logits: the output that was kept, by its name in the original.
        dropped: the other outputs.
        constants: inputs that have a value now.
        softmax: ``Softmax`` or ``LogSoftmax`` where the graph ended in it; None.
    """

    image: str
    logits: str
    dropped: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    softmax: str | None = None


def image_to_logits(
    model: ir.Model,
    origin: str,
    *,
    logits: str | None = None,
    classes: int | None = None,
    constants: Mapping[str, npt.ArrayLike] = {},
) -> tuple[ir.Model, Interface]:
    """A copy with one input and one output, without a Softmax at the end.

    Args:
        model: not changed.
        origin: the file, for messages.
        logits: the output that holds them; None: see ``specs.find_logits``.
        classes: how many there should be, where that is known.
        constants: values of the inputs that are not the image, by name.

    Raises:
        UsageError: an output or input that is not there, a value that does not fit its input, or one missing.
    """
    model = model.clone()
    outputs = {str(value.name): value for value in model.graph.outputs}
    chosen = outputs[_chosen(model, origin, logits, classes)]
    name = str(chosen.name)
    model.graph.outputs[:] = [chosen]
    common.RemoveUnusedNodesPass()(model)
    image = _fix_inputs(model, origin, constants)
    softmax = _without_softmax(model)
    _flatten(model)
    infer_shapes(model)
    dropped = tuple(other for other in outputs if other != name)
    return model, Interface(image, name, dropped, tuple(constants), softmax)


def ends_in_softmax(model: ir.Model) -> bool:
    """True if the graph gives probabilities in place of logits: it ends in Softmax, or in Sigmoid, one per class."""
    logits = find_logits([tensor_spec(value) for value in model.graph.outputs])
    for output in model.graph.outputs:
        if logits is not None and output.name == logits.name:
            softmax, last = _softmax(output, model), _last(output)
            if softmax is None:
                return last is not None and last.op_type == "Sigmoid"
            return softmax.op_type == "Softmax"
    return False


def constant_for(value: ir.Value, constant: npt.ArrayLike, batch: int = 1) -> npt.NDArray[np.generic]:
    """The constant in the input's type and shape; dynamic dimensions are 1, and the first one ``batch``.

    Raises:
        UsageError: it does not fit.
    """
    spec, given = tensor_spec(value), np.asarray(constant)
    shape = [dim if isinstance(dim, int) else 1 if axis else batch for axis, dim in enumerate(spec.shape)]
    try:
        converted = given.astype(spec.dtype)
        fits = np.allclose(converted.astype(np.float64), given.astype(np.float64), rtol=1e-3)  # as FP16 rounds
        whole = np.broadcast_to(converted, shape)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UsageError(f"`constants` {spec.name}={np.array2string(given, threshold=4)} does not fit input {spec}")
    return np.ascontiguousarray(whole).reshape(shape)


def _chosen(model: ir.Model, origin: str, asked: str | None, classes: int | None) -> str:
    outputs = [tensor_spec(value) for value in model.graph.outputs]
    names = [output.name for output in outputs]
    if asked is not None and asked not in names:
        raise UsageError(f"{origin}: {unknown_name('output', asked, names)}")
    found = find_logits(outputs, classes)
    if asked is None and found is None:
        raise UsageError(
            f"{origin}: has the outputs {', '.join(map(str, outputs))}; name the one that holds one score per class "
            "with `logits`"
        )
    return asked or (found.name if found is not None else "")


def _fix_inputs(model: ir.Model, origin: str, constants: Mapping[str, npt.ArrayLike]) -> str:
    """Write the constants into the graph; the name of the one input that is left."""
    inputs = {str(value.name): value for value in fed_inputs(model)}
    for name in constants:
        if name not in inputs:
            raise UsageError(f"{origin}: {unknown_name('input', name, list(inputs))}")
    needed = {name: value for name, value in inputs.items() if value.uses()}
    open_inputs = {name: tensor_spec(value) for name, value in needed.items() if name not in constants}
    images = [spec for spec in open_inputs.values() if len(spec.shape) == 4] or list(open_inputs.values())
    if len(images) != 1:
        raise UsageError(
            f"{origin}: expected one image as input of rank 4, found {', '.join(map(str, images)) or 'none'}; "
            "a value goes to each other input with `constants`"
        )
    _check_values(origin, [spec for spec in open_inputs.values() if spec is not images[0]])
    for name, value in inputs.items():
        if name == images[0].name:
            continue
        model.graph.inputs.remove(value)
        if name in needed:
            value.const_value = ir.tensor(constant_for(value, constants[name]), name=name)
            value.shape = ir.Shape(value.const_value.shape.numpy())
            model.graph.register_initializer(value)
    return images[0].name


def _check_values(origin: str, missing: list[TensorSpec]) -> None:
    if missing:
        found = ", ".join(map(str, missing))
        raise UsageError(f"{origin}: no value for input {found}; give one with `constants`, as {missing[0].name}=VALUE")


def _without_softmax(model: ir.Model) -> str | None:
    """Take the Softmax out; the output is called ``logits`` then, if no other value is."""
    output = model.graph.outputs[0]
    node = _softmax(output, model)
    if node is None:
        return None
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    if "logits" not in taken_names(model) and model.graph.outputs[0].producer() is not None:
        model.graph.outputs[0].name = "logits"
    return node.op_type


def _last(output: ir.Value) -> ir.Node | None:
    """The node at the end of the graph, seen through those that leave the values as they are; None if it has users."""
    node = output.producer()
    while node is not None and node.op_type in _SHAPING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
        if node is not None and len(node.outputs[0].uses()) != 1:
            return None
    return node


def _softmax(output: ir.Value, model: ir.Model) -> ir.Node | None:
    """The Softmax over the classes at the end of the graph."""
    node = _last(output)
    if node is None or node.op_type not in ("Softmax", "LogSoftmax") or node.inputs[0] is None:
        return None
    shape = node.inputs[0].shape
    dims = [dim if isinstance(dim, int) else None for dim in shape] if shape is not None else []
    per_axis = (model.opset_imports.get("") or 0) >= _PER_CHANNEL_SOFTMAX
    axis = node.attributes.get_int("axis", -1 if per_axis else 1) % max(len(dims), 1)
    along = {axis} if per_axis else set(range(axis, len(dims)))
    others = [dim for index, dim in enumerate(dims) if index and index not in along]
    return node if axis and all(dim == 1 for dim in others) else None


def _flatten(model: ir.Model) -> None:
    """(batch, classes, 1, 1) → (batch, classes)."""
    output = model.graph.outputs[0]
    last = output.producer()
    if last is None or tensor_spec(output).shape[2:] != (1, 1):
        return
    taken = taken_names(model)
    flatten = ir.node("Flatten", [output], {"axis": 1}, name=unique(f"{output.name}.flatten", taken))
    row = flatten.outputs[0]
    row.name, row.type, output.name = output.name, output.type, unique(f"{output.name}.map", taken)
    model.graph.insert_after(last, [flatten])
    model.graph.outputs[0] = row
