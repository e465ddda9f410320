"""A foreign ONNX classifier made one of ours.

One image in and logits out, LRN in one node, every node named, a preprocessing contract inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from alexdeploy import files
from alexdeploy.arrays import Batch
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.preprocess import from_pixels
from alexdeploy.errors import InputError, InputWarning, few, in_a_line
from alexdeploy.export.parity import (
    PARITY_BATCHES,
    Parity,
    distance,
    in_batches,
    noise,
)
from alexdeploy.graph.deterministic import check_deterministic
from alexdeploy.graph.flatten import fixing_reshape, restore_flatten
from alexdeploy.graph.fold_constants import fold_constants
from alexdeploy.graph.interface import Interface, constant_for, image_to_logits
from alexdeploy.graph.lrn.fuse import fuse_lrn
from alexdeploy.graph.model import (
    class_count,
    fed_inputs,
    image_input,
    load_onnx,
    model_bytes,
    op_counts,
    precision_of,
    save_onnx,
)
from alexdeploy.graph.names import name_unnamed
from alexdeploy.graph.opset import modernised, written_out
from alexdeploy.graph.uint8_input import with_uint8_input
from alexdeploy.metrics import HALF_TOLERANCE, PARITY_TOLERANCE, relative_error, softmax
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner, session_options, session_source, why_not_loaded
from alexdeploy.specs import Progress

_SAME_IMAGE = 0.05  # its answers in batches of other sizes differ by rounding: FP16 by 1e-3, Q/DQ by some levels


@dataclass(frozen=True)
class AdoptResult:
    """Operators of the written file, the LRN nodes put back, its distance from the original, and what was left out."""

    ops: dict[str, int]
    fused: list[str]
    parity: Parity
    interface: Interface


def adopt_onnx(
    path: Path,
    contract: Contract,
    output: Path,
    *,
    logits: str | None = None,
    constants: Mapping[str, npt.ArrayLike] = {},
    uint8_input: bool = False,
    progress: Progress = lambda what, share: None,
) -> AdoptResult:
    """Write ``path`` with one image input, one output of logits and ``contract`` in its metadata.

    Its decomposed LRN is fused, unnamed nodes are named, and a Softmax at the end is taken out: ``predict`` applies it.

    Args:
        path: any ONNX image classifier whose image input is as the contract says: (batch, C, H, W) or (batch, H, W, C),
            float32, float16 or uint8. Dynamic dimensions stay dynamic.
        contract: the preprocessing it was trained with, and its labels or none.
        output: written atomically with its sidecar, weights inside; untouched when anything fails.
        logits: the output with one score per class; None takes the only one, of several the only one that is
            (batch, classes), or has as many classes as there are labels.
        constants: a value for each input besides the image, in its shape or to be broadcast to it.
        uint8_input: the file written takes pixels; scale, mean, std, colour order and layout are nodes of its graph.
            Only for a float32 input.
        progress: called with what is being done and the share that is done before.

    Raises:
        UsageError: ``output`` is ``path``; or it is not clear which output holds the logits, or which is the image.
        InputError: not such a model, an input of another shape or type than the contract's, or other labels; or one
            whose answers are random or depend on the other images.
        GateError: ONNX Runtime's results for both files differ by more than ``PARITY_TOLERANCE`` (of a graph in FP16
            ``HALF_TOLERANCE``). Where a Softmax was taken out, the results are the probabilities.

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
    plain, interface = image_to_logits(
        written_out(original), str(path), logits=logits, classes=len(contract.labels) or None, constants=constants
    )
    _check_interface(plain, contract, path)
    check_deterministic(plain, str(path))
    progress("putting the LRN back", 0.2)
    model, fused = _rewritten(plain)
    progress("comparing it with the original", 0.4)
    before = _Original(path, original, interface, constants)
    parity = _parity(before, plain, model, contract)
    if fused and not parity.worst <= parity.tolerance:
        wrong = _no_lrn(before, plain, [*fused], contract)
        if wrong:
            told = few(fused[output] for output in wrong)
            model, fused = _rewritten(plain, wrong)
            parity = _parity(before, plain, model, contract)
            warnings.warn(f"{path}: {told}: like an LRN, but none; left as it is", InputWarning, stacklevel=2)
    if not parity.worst <= parity.tolerance:
        _check_finite(plain, path)
        if not np.isfinite(parity.worst):
            raise InputError(
                f"{path}: it gives NaN or infinite scores for random images, and its weights are finite; "
                "look for a division by 0 or an overflow, and export it again"
            )
    parity.check(f"adopted, {path} differs from the original")
    if uint8_input:
        floats, preprocessing = model, contract
        model, contract = with_uint8_input(floats, preprocessing)
        parity = _with_pixels(parity, floats, model, preprocessing)
    model.metadata_props[METADATA_KEY] = contract.to_json()
    progress(f"writing {output.name}", 0.8)
    save_onnx(
        model,
        output,
        parents=(files.parent(path),),
        details={
            "contract": contract.fingerprint,
            "fused_lrn": [*fused.values()],
            "interface": msgspec.to_builtins(interface),
            "parity": {"random_inputs": parity.random_inputs},
        },
    )
    return AdoptResult(op_counts(model), [*fused.values()], parity, interface)


def _rewritten(plain: ir.Model, leave: Collection[str] = ()) -> tuple[ir.Model, dict[str, str]]:
    """The model as it is to be written, and the LRN nodes it did not have before: their names by their results.

    Results in ``leave`` get none.
    """
    native = {node.outputs[0].name for node in plain.graph if node.op_type == "LRN"}
    fused = modernised(fuse_lrn(plain, leave)[0])
    model = restore_flatten(fold_constants(name_unnamed(fused)))  # folding invents names
    lrn = [node for node in model.graph if node.op_type == "LRN" and node.outputs[0].name not in native]
    return model, {str(node.outputs[0].name): str(node.name) for node in lrn}


def _no_lrn(original: _Original, plain: ir.Model, fused: Sequence[str], contract: Contract) -> list[str]:
    """Those of the fused results that were none of an LRN; none where something else is wrong."""

    def is_right(leave: Collection[str]) -> bool:
        parity = _parity(original, plain, _rewritten(plain, leave)[0], contract)
        return parity.worst <= parity.tolerance

    if not is_right(fused):
        return []
    return [one for one in fused if not is_right([other for other in fused if other != one])]


def _check_interface(model: ir.Model, contract: Contract, path: Path) -> None:
    spec, expected = image_input(model, str(path)), contract.input_shape
    if 0 in spec.shape:
        raise InputError(
            f"{path}: input '{spec.name}' has shape ({', '.join(map(str, spec.shape))}), which is empty; export it "
            "with a dynamic batch, whose axis has a name"
        )
    if not _fits(spec.shape[1:], expected):
        other = "nchw" if contract.layout == "nhwc" else "nhwc"
        turned = msgspec.structs.replace(contract, layout=other).input_shape
        fix = "name the contract it was trained with, or export it again with that size"
        if _fits(spec.shape[1:], turned):
            fix = f'put layout = "{other}" into the contract'
        raise InputError(
            f"{path}: input '{spec.name}' has shape ({', '.join(map(str, spec.shape))}); the contract expects (batch, "
            f"{', '.join(map(str, expected))}); {fix}"
        )
    if spec.dtype != contract.input_type:
        fix = f'put input_type = "{spec.dtype}" into the contract'
        if spec.dtype == "uint8":
            fix += " and leave mean, std and scale out: the graph does that arithmetic"
        elif spec.dtype not in ("float32", "float16"):
            fix = "export it with float32, float16 or uint8 images"
        raise InputError(
            f"{path}: input '{spec.name}' is {spec.dtype}; the contract's input_type is {contract.input_type}; {fix}"
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


def _fits(found: tuple[int | str, ...], expected: tuple[int, ...]) -> bool:
    return all(isinstance(dim, str) or dim == size for dim, size in zip(found, expected, strict=True))


def _parity(original: _Original, plain: ir.Model, model: ir.Model, contract: Contract) -> Parity:
    batch = image_input(plain, str(original.path)).shape[0]
    batches = (batch,) if isinstance(batch, int) else PARITY_BATCHES
    images = noise(contract.input_shape, max(batches), contract.input_type)
    if contract.input_type != "uint8":  # LRN shows on large inputs
        images = images * np.exp2(np.arange(len(images)) % 5).reshape(-1, 1, 1, 1).astype(images.dtype)
    inputs = in_batches(images, batches)
    expected = {len(batch): original.scores(batch) for batch in inputs}
    answers = [*expected.values()]
    if isinstance(batch, int) and batch > 1:  # the same image among others
        others = noise(contract.input_shape, 2 * batch - 1, contract.input_type)[batch:]
        answers.append(original.scores(np.concatenate([images[:1], others])))
    _check_independent(answers, original.path)
    tolerance = HALF_TOLERANCE if precision_of(plain).fp16 else PARITY_TOLERANCE

    try:
        worst = distance(model, inputs, lambda batch: expected[len(batch)], original.seen)
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        raise InputError(f"{original.path}: adopted, ONNX Runtime cannot run it: {in_a_line(error)}") from error
    return Parity(worst, batches=batches, tolerance=tolerance)


def _check_independent(answers: Sequence[npt.NDArray[np.floating]], path: Path) -> None:
    """The first image is the first of each batch; where all have one size, the other images differ.

    Raises:
        InputError: its answer is not the same in all.
    """
    alone, *others = (rows[:1] for rows in answers)
    worst = max((relative_error(alone, rows) for rows in others), default=0.0)
    if _SAME_IMAGE < worst < float("inf"):
        raise InputError(
            f"{path}: the answer for an image depends on the other images of its batch (it changes by {worst:.0%}); "
            "export it in evaluation mode (PyTorch: model.eval()), without computing over the batch axis"
        )


def _check_finite(model: ir.Model, path: Path) -> None:
    """Where the results are NaN, the weights may be to blame.

    Raises:
        InputError: the first constant of a node that is not finite.
    """
    for node in model.graph:
        for value in node.inputs:
            array = value.const_value.numpy() if value is not None and value.const_value is not None else None
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                assert value is not None
                bad = int(np.size(array) - np.isfinite(array).sum())
                raise InputError(
                    f"{path}: '{value.name}', a constant of node '{node.name}', holds {bad} values that are NaN or "
                    f"infinite (of {array.size}); take a checkpoint from before they arose, and export it again"
                )


def _check_lrn(model: ir.Model, path: Path) -> None:
    """What ONNX Runtime says of an even window is a line of its source.

    Raises:
        InputError: the first LRN with one.
    """
    for node in model.graph.all_nodes():
        size = node.attributes.get_int("size", 1) if node.op_type == "LRN" else 1
        if size % 2 == 0:
            raise InputError(
                f"{path}: node '{node.name}' (LRN) has an even window ({size}), which ONNX Runtime and TensorRT "
                f"lack; retrain or fine-tune with size {size - 1} or {size + 1}"
            )


def _with_pixels(parity: Parity, floats: ir.Model, model: ir.Model, contract: Contract) -> Parity:
    """With the distance of the graph of pixels from the adopted one on the same pixels, preprocessed."""
    pixels = noise(contract.of_pixels.input_shape, max(parity.batches), "uint8")
    with OnnxRuntimeRunner(model_bytes(floats)) as runner:
        name = runner.output_names[0]
        error = distance(
            model, in_batches(pixels, parity.batches), lambda batch: runner.run(from_pixels(batch, contract))[name]
        )
    parity = replace(parity, random_inputs=max(parity.random_inputs, error))
    parity.check("with preprocessing inside, the graph differs from what it was")
    return parity


def _probabilities(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return softmax(logits.astype(np.float64))


class _Original:
    """The file as it came, in ONNX Runtime, with the constants as inputs."""

    def __init__(
        self, path: Path, model: ir.Model, interface: Interface, constants: Mapping[str, npt.ArrayLike]
    ) -> None:
        names = [node.name for node in model.graph if node.name]
        unique = len(names) == len(set(names))  # or ONNX Runtime refuses the file
        try:
            source = session_source(path) if unique else model_bytes(name_unnamed(model))
            self._session = ort.InferenceSession(source, session_options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            _check_lrn(model, path)
            raise InputError(f"{path}: {why_not_loaded(error)}") from error
        self.path, self._interface, self._model = path, interface, model
        self._inputs, self._constants = fed_inputs(model), constants

    def _fixed(self, batch: int) -> str:
        """What keeps the graph from taking ``batch`` images, where that is plain."""
        node = fixing_reshape(self._model, batch)
        if node is None:
            return ""
        name = node.name or node.outputs[0].name
        return f"node '{name}' (Reshape) has the batch fixed in its shape, so put 0 or -1 there; "

    @property
    def seen(self) -> Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]]:
        """What of the adopted graph's logits is comparable to ``scores``."""
        return _probabilities if self._interface.softmax else np.asarray

    def scores(self, batch: Batch) -> npt.NDArray[np.floating]:
        """(N, classes) as the file gives them; of a LogSoftmax the probabilities."""
        feed = {
            str(value.name): constant_for(value, self._constants.get(str(value.name), 0), len(batch))
            for value in self._inputs
            if value.name != self._interface.image
        }
        feed[self._interface.image] = batch
        try:
            (scores,) = self._session.run([self._interface.logits], feed)
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            fixed = self._fixed(len(batch))
            raise InputError(
                f"{self.path}: ONNX Runtime cannot run it at batch {len(batch)}: {fixed}{in_a_line(error)}"
            ) from error
        if not scores.ndim or len(scores) != len(batch):
            raise InputError(
                f"{self.path}: {self._fixed(len(batch))}{len(batch)} images give scores of shape {scores.shape}; "
                "expected a row for each; export it with a dynamic batch, or with a fixed one"
            )
        rows: npt.NDArray[np.floating] = scores.reshape(scores.shape[0], -1)
        return np.exp(rows) if self._interface.softmax == "LogSoftmax" else rows
