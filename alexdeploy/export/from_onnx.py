"""A foreign ONNX classifier made one of ours: LRN in one node, every node named, a preprocessing contract inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy import files
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import InputError, few
from alexdeploy.export.parity import PARITY_BATCHES, Parity, distance, in_batches, noise
from alexdeploy.graph.flatten import restore_flatten
from alexdeploy.graph.fold_constants import fold_constants
from alexdeploy.graph.lrn.fuse import fuse_lrn
from alexdeploy.graph.model import class_count, image_input, load_onnx, model_bytes, op_counts, save_onnx
from alexdeploy.graph.names import name_unnamed
from alexdeploy.graph.opset import modernised
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.specs import Progress


@dataclass(frozen=True)
class AdoptResult:
    """Operators of the written file, the LRN nodes put back, and its distance from the original."""

    ops: dict[str, int]
    fused: list[str]
    parity: Parity


def adopt_onnx(
    path: Path, contract: Contract, output: Path, *, progress: Progress = lambda what, share: None
) -> AdoptResult:
    """Write ``path`` with its decomposed LRN fused, unnamed nodes named and ``contract`` in its metadata.

    Args:
        path: any ONNX image classifier with one float32 input (batch, C, H, W) and (batch, classes) first.
        contract: the preprocessing it was trained with, and its labels or none.
        output: written atomically with its sidecar; untouched when anything fails.
        progress: called with what is being done and the share that is done before.

    Raises:
        UsageError: ``output`` is ``path``.
        InputError: not such a model, an input of another shape than the contract's, or another number of labels.
        GateError: ONNX Runtime's results for both files differ by more than ``PARITY_TOLERANCE``.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import adopt_onnx
        >>> from alexdeploy.recipe import load_contract
        >>> adopted = adopt_onnx(Path("foreign.onnx"), load_contract("alexnet-mnist"), Path("adopted.onnx"))
        >>> adopted.ops["LRN"]
        2
    """
    files.check_output(output, path)
    original = load_onnx(path)
    _check_interface(original, contract, path)
    progress("putting the LRN back", 0.2)
    model, fused = _rewritten(original)
    model.metadata_props[METADATA_KEY] = contract.to_json()
    progress("comparing it with the original", 0.4)
    parity = _check_parity(path, original, model, contract, fused)
    progress(f"writing {output.name}", 0.8)
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
    if contract.labels and classes not in (None, len(contract.labels)):
        raise InputError(
            f"{path}: has {classes} outputs but {len(contract.labels)} labels were given; "
            "name the data set it was trained for, or none"
        )


def _check_parity(path: Path, original: ir.Model, model: ir.Model, contract: Contract, fused: list[str]) -> Parity:
    spec = image_input(original, str(path))
    batches = (spec.shape[0],) if isinstance(spec.shape[0], int) else PARITY_BATCHES
    images = noise(contract.input_shape, max(batches))
    images *= np.exp2(np.arange(len(images), dtype=np.float32) % 5).reshape(-1, 1, 1, 1)  # LRN shows on large inputs
    inputs = in_batches(images, batches)
    names = [node.name for node in original.graph if node.name]
    unique = len(names) == len(set(names))  # or ONNX Runtime refuses the file
    with OnnxRuntimeRunner(path if unique else model_bytes(name_unnamed(original))) as runner:
        expected = {len(batch): _infer(runner, batch, path) for batch in inputs}
    parity = Parity(distance(model, inputs, lambda batch: expected[len(batch)]), batches=batches)
    blamed = False
    if fused and not parity.worst <= parity.tolerance:
        unfused = _rewritten(original, fuse=False)[0]
        blamed = distance(unfused, inputs, lambda batch: expected[len(batch)]) <= parity.tolerance
    cause = f"; fusing the LRN ({few(fused)}) is what broke it" if blamed else ""
    parity.check(f"adopted, {path} differs from the original", cause)
    return parity


def _infer(runner: OnnxRuntimeRunner, batch: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float32]:
    try:
        return runner.run(batch)[runner.output_names[0]]
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        raise InputError(f"{path}: ONNX Runtime cannot run it at batch {len(batch)}: {error}") from error
