"""A foreign ONNX classifier made one of ours: LRN in one node, every node named, a preprocessing contract inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy import files
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import GateError, InputError
from alexdeploy.graph.flatten import restore_flatten
from alexdeploy.graph.fold_constants import fold_constants
from alexdeploy.graph.lrn.fuse import fuse_lrn
from alexdeploy.graph.model import class_count, image_input, load_onnx, model_bytes, op_counts, save_onnx
from alexdeploy.graph.names import name_unnamed
from alexdeploy.graph.opset import modernised
from alexdeploy.metrics import relative_error
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

PARITY_BATCHES = (1, 2, 5)
PARITY_TOLERANCE = 1e-5


@dataclass(frozen=True)
class AdoptionParity:
    """How far the adopted model is from the original in ONNX Runtime: max|difference| / max|original|, the largest."""

    random_inputs: float
    batches: tuple[int, ...]
    tolerance: float = PARITY_TOLERANCE


@dataclass(frozen=True)
class AdoptResult:
    """What the written file holds by operator, the LRN nodes put back, and how close it is to the original."""

    ops: dict[str, int]
    fused: list[str]
    parity: AdoptionParity


def adopt_onnx(path: Path, contract: Contract, output: Path) -> AdoptResult:
    """Write ``path`` with its decomposed LRN fused, unnamed nodes named and ``contract`` in its metadata.

    Args:
        path: any ONNX image classifier with one float32 input (batch, C, H, W) and (batch, classes) first.
        contract: the preprocessing it was trained with, and its labels or none.
        output: written atomically with its sidecar; untouched when anything fails.

    Raises:
        UsageError: ``output`` is ``path``.
        InputError: not such a model, an input of another shape than the contract's, or another number of labels.
        GateError: ONNX Runtime's results for both files differ by more than ``PARITY_TOLERANCE``.
    """
    files.check_output(output, path)
    original = load_onnx(path)
    _check_interface(original, contract, path)
    model, fused = _rewritten(original)
    model.metadata_props[METADATA_KEY] = contract.to_json()
    parity = _check_parity(path, original, model, contract, fused)
    save_onnx(
        model,
        output,
        parents=(files.parent(path),),
        details={
            "contract": contract.fingerprint,
            "fused_lrn": fused,
            "parity": {"random_inputs": parity.random_inputs},
        },
    )
    return AdoptResult(op_counts(model), fused, parity)


def _rewritten(original: ir.Model, *, fuse: bool = True) -> tuple[ir.Model, list[str]]:
    """The model as it is to be written, and the names of the LRN nodes it did not have before."""
    native = {node.outputs[0].name for node in original.graph if node.op_type == "LRN"}
    model = fuse_lrn(original)[0] if fuse else original
    model = name_unnamed(restore_flatten(fold_constants(modernised(model))))
    lrn = [node for node in model.graph if node.op_type == "LRN"]
    return model, [str(node.name) for node in lrn if node.outputs[0].name not in native]


def _check_interface(model: ir.Model, contract: Contract, path: Path) -> None:
    spec = image_input(model, str(path))
    if spec.dtype != "float32":
        raise InputError(f"{path}: input '{spec.name}' is {spec.dtype}; expected float32, so export it so")
    if spec.shape[1:] != contract.input_shape:
        raise InputError(
            f"{path}: input '{spec.name}' has shape {spec.shape}; the contract expects (batch, "
            f"{', '.join(map(str, contract.input_shape))}); name the contract it was trained with, or export it again "
            "as (batch, C, H, W) of that size"
        )
    shape, classes = model.graph.outputs[0].shape, class_count(model)
    if shape is not None and len(shape) != 2:
        raise InputError(
            f"{path}: output '{model.graph.outputs[0].name}' has shape {shape}; expected (batch, classes), "
            "so flatten it and export again"
        )
    if contract.labels and classes not in (-1, len(contract.labels)):
        raise InputError(
            f"{path}: has {classes} outputs but {len(contract.labels)} labels were given; "
            "name the data set it was trained for, or none"
        )


def _check_parity(
    path: Path, original: ir.Model, model: ir.Model, contract: Contract, fused: list[str]
) -> AdoptionParity:
    spec = image_input(original, str(path))
    batches = (spec.shape[0],) if isinstance(spec.shape[0], int) else PARITY_BATCHES
    noise = np.random.default_rng(0).standard_normal((max(batches), *contract.input_shape), dtype=np.float32)
    noise *= np.exp2(np.arange(len(noise), dtype=np.float32) % 5).reshape(-1, 1, 1, 1)  # LRN shows on large inputs
    inputs = [noise[:batch] for batch in batches]
    names = [node.name for node in original.graph if node.name]
    unique = len(names) == len(set(names))  # or ONNX Runtime refuses the file
    with OnnxRuntimeRunner(path if unique else model_bytes(name_unnamed(original)), as_written=True) as runner:
        expected = [_infer(runner, batch, path) for batch in inputs]
    error = _distance(model, inputs, expected)
    if not error <= PARITY_TOLERANCE:
        blamed = fused and _distance(_rewritten(original, fuse=False)[0], inputs, expected) <= PARITY_TOLERANCE
        cause = f"; fusing the LRN ({', '.join(fused)}) is what broke it" if blamed else ""
        raise GateError(
            f"parity: adopted, {path} differs from the original by {error:.2e} (relative) on random inputs; "
            f"at most {PARITY_TOLERANCE:.0e} is allowed, so nothing was written{cause}"
        )
    return AdoptionParity(error, batches)


def _infer(runner: OnnxRuntimeRunner, batch: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float32]:
    try:
        return runner.infer(batch)
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        raise InputError(f"{path}: ONNX Runtime cannot run it at batch {len(batch)}: {error}") from error


def _distance(model: ir.Model, inputs: list[npt.NDArray[np.float32]], expected: list[npt.NDArray[np.float32]]) -> float:
    with OnnxRuntimeRunner(model_bytes(model), as_written=True) as runner:
        return max(relative_error(runner.infer(batch), wanted) for batch, wanted in zip(inputs, expected, strict=True))
