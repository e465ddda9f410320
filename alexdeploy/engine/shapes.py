"""The shapes that an engine accepts at each input of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from alexdeploy.contract import METADATA_KEY
from alexdeploy.engine.options import BuildSettings
from alexdeploy.errors import InputError, UsageError, unknown_name
from alexdeploy.graph.model import contract_of, fed_inputs, tensor_spec
from alexdeploy.specs import Profile

_Dims = Sequence[ir.SymbolicDim | int]


def input_profiles(model: ir.Model, origin: str, settings: BuildSettings) -> dict[str, Profile]:
    """By input, the image first: the shape that the settings name, or the graph's own at the settings' batch sizes.

    Sizes that the graph leaves open are those of its contract.

    Raises:
        InputError: the graph has no input with a batch.
        UsageError: the settings name no such input, contradict its shape, or leave open what is dynamic.
    """
    inputs = {str(value.name): list(value.shape or ()) for value in fed_inputs(model)}
    declared = {name: dims for name, dims in inputs.items() if dims}  # a scalar has one shape
    for name in settings.shapes.keys() - declared.keys():
        raise UsageError(f"{origin}: {unknown_name('input', name, list(declared))}")
    if not declared:
        raise InputError(f"{origin}: has no input with a batch; there is nothing to build an engine for")
    name, dims = next(iter(declared.items()))
    batch = dims[0]
    if name not in settings.shapes and isinstance(batch, int) and settings.batches != Profile(*[(batch,)] * 3):
        raise UsageError(
            f"{origin}: the batch is frozen at {batch}; build with `batches` {batch}, or export with a dynamic batch"
        )
    return {
        name: _checked(origin, name, dims, settings.shapes[name])
        if name in settings.shapes
        else _by_batch(origin, name, _at_contract(model, dims), settings.batches)
        for name, dims in declared.items()
    }


def open_inputs(model: ir.Model) -> set[str]:
    """Inputs that are dynamic beyond the batch."""
    return {
        spec.name for spec in map(tensor_spec, fed_inputs(model)) if any(isinstance(d, str) for d in spec.shape[1:])
    }


def _at_contract(model: ir.Model, dims: _Dims) -> _Dims:
    """The image's dimensions with those open beyond the batch as in the contract, if there is one."""
    if len(dims) != 4 or METADATA_KEY not in model.metadata_props:
        return dims
    sizes = contract_of(model, "the model").input_shape
    return [dims[0], *(dim if isinstance(dim, int) else size for dim, size in zip(dims[1:], sizes, strict=True))]


def _checked(origin: str, name: str, dims: _Dims, asked: Profile) -> Profile:
    fits = len(asked.min) == len(dims) and all(
        not isinstance(dim, int) or dim == low == high
        for dim, low, high in zip(dims, asked.min, asked.max, strict=True)
    )
    if not fits:
        raise UsageError(f"{origin}: `shapes` {name}={asked}: the input has shape {_in_words(dims)}")
    return asked


def _by_batch(origin: str, name: str, dims: _Dims, batches: Profile) -> Profile:
    fixed = tuple(dim for dim in dims[1:] if isinstance(dim, int))
    if len(fixed) < len(dims) - 1:
        raise UsageError(
            f"{origin}: input '{name}' has shape {_in_words(dims)}; name the sizes it is to accept with `shapes` "
            f"{name}=MIN:OPT:MAX, each such as 8x3x224x224"
        )
    if isinstance(dims[0], int):
        batches = Profile(*[(dims[0],)] * 3)
    return batches.with_sizes(fixed)


def _in_words(dims: _Dims) -> str:
    return f"({', '.join(str(dim if isinstance(dim, int) else dim.value or '?') for dim in dims)})"
