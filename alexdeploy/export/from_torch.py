"""PyTorch → ONNX with LRN as one native node, and the parity gate that proves the file computes the same function."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode

from alexdeploy import files
from alexdeploy.arrays import Batch
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.preprocess import from_pixels
from alexdeploy.errors import InputError, UsageError, few, in_a_line
from alexdeploy.export.behaviour import check_logits, check_steady, why_unsteady
from alexdeploy.export.parity import Parity, distance, in_batches, noise
from alexdeploy.export.tuned import check_tuned_parity, with_learned_qdq
from alexdeploy.graph.flatten import restore_flatten
from alexdeploy.graph.infer import contained_logs
from alexdeploy.graph.model import op_counts, save_onnx
from alexdeploy.graph.names import new_constant, rename, taken_names
from alexdeploy.graph.uint8_input import with_uint8_input
from alexdeploy.specs import Progress
from alexdeploy.zoo.convnet import ConvNet
from alexdeploy.zoo.fake_quantize import layer_ranges, without_rounding

OPSET = 20
_TORCH = Path(torch.__file__).parent
_LARGER = (64, 96)  # pixels: what a fully convolutional network is tried on beyond its training size


@dataclass(frozen=True)
class ExportResult:
    """Operators of the written file, and its distance from PyTorch."""

    ops: dict[str, int]
    parity: Parity


def export_onnx(
    module: nn.Module,
    contract: Contract,
    path: Path,
    *,
    real_images: Batch,
    any_size: bool = False,
    uint8_input: bool = False,
    parents: tuple[files.Parent, ...] = (),
    progress: Progress = lambda what, share: None,
) -> ExportResult:
    """Write ``module`` as ONNX opset 20: native LRN, dynamic batch, contract in the metadata; only if parity holds.

    Args:
        module: takes float32 (N, C, H, W) as the contract says, returns (N, classes). A network that was tuned for
            INT8 becomes the Q/DQ graph that it learned to be.
        contract: preprocessing and labels; they are stored in ``metadata_props`` as they are for the file.
        path: written atomically with its sidecar; untouched when anything fails.
        real_images: photographs as the file is to take them, for the second half of the parity gate: preprocessed,
            (n >= 1, C, H, W) float32; with ``uint8_input`` as ``contract.of_pixels`` says, (n >= 1, H, W, C) uint8.
        any_size: height and width are dynamic too, from the contract's size upwards; the module is fully convolutional
            and returns (N, classes, h, w). Parity is checked at a larger size as well.
        uint8_input: the file takes pixels; scale, mean, std, colour order and layout are nodes of its graph.
        parents: files the module's weights came from.
        progress: called with what is being done and the share that is done before.

    Raises:
        InputError: a local response normalisation with an even window, or a module that cannot take what the contract
            gives, returns no logits or NaN, computes something else at each call or in another batch, or cannot be
            traced.
        GateError: ONNX Runtime and PyTorch differ by more than ``PARITY_TOLERANCE``, or with Q/DQ ``TUNED_TOLERANCE``.
        UsageError: ``uint8_input`` with a network that was tuned for INT8.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from alexdeploy import export_onnx
        >>> from alexdeploy.contract import Contract
        >>> net = torch.nn.Sequential(torch.nn.LocalResponseNorm(5), torch.nn.Flatten(), torch.nn.Linear(192, 2))
        >>> contract = Contract(color="rgb", resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = torch.rand(4, 3, 8, 8).numpy()
        >>> export_onnx(net, contract, Path("tiny.onnx"), real_images=images).ops
        {'Flatten': 1, 'Gemm': 1, 'LRN': 1}
    """
    files.check_output(path)
    module = _unwrapped(module).eval()
    tuned = module if isinstance(module, ConvNet) and layer_ranges(module) else None
    plain = without_rounding(tuned) if tuned is not None else module  # where another batch cannot turn a rounding
    outputs = count_outputs(plain, contract, any_size=any_size)
    if len(contract.labels) not in (0, outputs):
        raise InputError(f"the network has {outputs} outputs but the contract {len(contract.labels)} class names")
    if tuned is not None and uint8_input:
        raise UsageError("`uint8_input` is for a float network; this one is tuned for INT8, so leave it out")
    progress("tracing the network", 0.1)
    model = trace(plain, contract, any_size=any_size)
    stored = contract
    if tuned is not None:
        model = with_learned_qdq(model, tuned)
    elif uint8_input:
        model, stored = with_uint8_input(model, contract)
    model.metadata_props[METADATA_KEY] = stored.to_json()
    progress("comparing ONNX Runtime with PyTorch", 0.4)
    if tuned is not None:
        parity = check_tuned_parity(tuned, model, real_images)
    else:
        parity = check_parity(module, model, contract, real_images, any_size=any_size)
    progress(f"writing {path.name}", 0.8)
    save_onnx(
        model,
        path,
        parents=parents,
        options={"opset": OPSET},
        details={
            "contract": stored.fingerprint,
            "parity": {"random_inputs": parity.random_inputs, "real_inputs": parity.real_inputs},
        },
    )
    return ExportResult(op_counts(model), parity)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside what torch.compile, DataParallel or DistributedDataParallel made of it."""
    while True:
        inner = getattr(module, "_orig_mod", module)
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        if inner is module:
            return module
        module = inner


def count_outputs(module: nn.Module, contract: Contract, *, any_size: bool = False) -> int:
    """How many classes the network tells apart, after calls that must agree; ``any_size``: see ``export_onnx``.

    Raises:
        InputError: it cannot take what the contract gives, returns no logits, NaN, other ones at each call, or ones
            that depend on the rest of the batch.
    """
    if (contract.layout, contract.input_type) != ("nchw", "float32"):
        raise InputError("a network of PyTorch takes float32 in nchw; leave layout and input_type out of its contract")
    images = torch.from_numpy(noise(contract.input_shape, 2))
    try:
        with torch.no_grad():
            first = module(images)
    except Exception as error:  # whatever the module's own code raises
        raise InputError(
            f"the network fails on float32 {tuple(images.shape)}, the contract's input: {in_a_line(error)}; "
            "name the contract it was trained with"
        ) from error
    if not isinstance(first, Tensor) or first.ndim != (4 if any_size else 2) or len(first) != 2:
        found = f"shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
        raise InputError(f"the network returns {found} for 2 images; expected logits of shape (2, classes)")
    with torch.no_grad():
        check_logits(module, images, first)
        check_steady(module, images, first)
    return int(first.shape[1])


def trace(module: nn.Module, contract: Contract, *, any_size: bool = False) -> ir.Model:
    """Export in memory with readable names; no check besides the exporter's. ``any_size``: see ``export_onnx``."""
    channels, height, width = contract.input_shape
    dynamic = {0: torch.export.Dim("batch")}
    if any_size:
        dynamic |= {2: torch.export.Dim("height", min=height), 3: torch.export.Dim("width", min=width)}
        height, width = height + _LARGER[0], width + _LARGER[1]  # an example of the least size would fix it
    example = torch.zeros(2, channels, height, width)
    with _input_errors_unwrapped(), _quiet(), _NativeLrn(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert program is not None
    model = rename(restore_flatten(program.model))
    _keep_batch_axis(model)
    _return_float32(model.graph)
    if any_size:
        logits = model.graph.outputs[0]
        assert logits.shape is not None
        logits.shape = ir.Shape([*logits.shape[:2], "map_height", "map_width"])
    return model


def _keep_batch_axis(model: ir.Model) -> None:
    """``squeeze()`` leaves out every axis of one element: of a single image also the batch's, which must stay."""
    taken = taken_names(model)
    for node in model.graph:
        given = node.inputs[0] if node.op_type == "Squeeze" and len(node.inputs) == 1 else None
        ones = [axis for axis, size in enumerate(given.shape) if size == 1] if given is not None and given.shape else []
        if ones:
            axes = new_constant(model.graph, f"{node.name}_axes", np.array(ones, np.int64), taken)
            node.resize_inputs(2)
            node.replace_input_with(1, axes)


def _return_float32(graph: ir.Graph) -> None:
    """float64 is rounded at the end: TensorRT has none, and whoever serves the file expects float32."""
    (logits,) = graph.outputs
    if logits.dtype != ir.DataType.DOUBLE:
        return
    name, logits.name = logits.name, f"{logits.name}_float64"
    cast = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT}, name="logits_cast")
    graph.append(cast)
    graph.outputs[0] = cast.outputs[0]
    cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].dtype = name, logits.shape, ir.DataType.FLOAT


def check_parity(
    module: nn.Module, model: ir.Model, contract: Contract, real_images: Batch, *, any_size: bool = False
) -> Parity:
    """ONNX Runtime against PyTorch at batch 1, 2 and 5, on noise (with ``any_size`` also larger) and on real images.

    Where ``real_images`` are pixels, so is the noise, and PyTorch gets them preprocessed as ``contract`` says.

    Raises:
        GateError: beyond ``PARITY_TOLERANCE``, with the worst case in the message.
    """
    pixels = real_images.dtype == np.uint8

    def pytorch(batch: Batch) -> npt.NDArray[np.floating]:
        with torch.inference_mode():
            images = torch.from_numpy(from_pixels(batch, contract) if pixels else batch)
            logits: npt.NDArray[np.floating] = module(images).numpy()
        return logits

    taken = contract.of_pixels if pixels else contract
    random = in_batches(noise(taken.input_shape, dtype=taken.input_type))
    if any_size:
        larger = ((0, _LARGER[0]), (0, _LARGER[1]))
        padding = ((0, 0), *larger, (0, 0)) if pixels else ((0, 0), (0, 0), *larger)
        random += [np.pad(batch, padding, mode="wrap") for batch in random]
    real = in_batches(real_images)
    parity = Parity(distance(model, random, pytorch), distance(model, real, pytorch))
    if not parity.worst <= parity.tolerance:
        _blame(module, contract)
        wrong = sorted({len(batch) for batch in random + real if distance(model, [batch], pytorch) > parity.tolerance})
        cause = f"; only at batch {few(map(str, wrong))}: does its code depend on the batch size?"
        parity.check("ONNX Runtime differs from PyTorch", cause if len(wrong) < len(parity.batches) else "")
    return parity


def _blame(module: nn.Module, contract: Contract) -> None:
    """Where PyTorch itself does not give the same answer again, it is no fault of the graph.

    Raises:
        InputError: so it is; the module at fault is named.
    """
    images = torch.from_numpy(noise(contract.input_shape, 2))
    with torch.no_grad():
        cause = why_unsteady(module, images, module(images))
    if cause:
        raise InputError(cause)


class _Refused(BaseException):
    """No ``Exception``: of those the exporter makes its own and tries another way, which prints."""


class _NativeLrn(TorchFunctionMode):
    """In this thread ``local_response_norm`` leaves one ONNX LRN node, where the exporter would decompose it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        called = _lrn_node if func is torch.nn.functional.local_response_norm else func
        try:
            return called(*args, **(kwargs or {}))
        except GuardOnDataDependentSymNode as error:
            own = [line for line in traceback.extract_stack()[:-1] if _TORCH not in Path(line.filename).parents]
            line = own[-1]
            text = f"{Path(line.filename).name}, line {line.lineno}: {line.line or '?'}"
            raise _Refused(
                f"the network's code decides by values of its input ({text}), which a graph cannot; compute both and "
                "choose with torch.where"
            ) from error


def _lrn_node(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    if size % 2 == 0:
        raise InputError(
            f"local response normalisation with an even window ({size}): PyTorch and ONNX place even windows "
            f"differently and TensorRT takes only odd ones; train with size {size - 1} or {size + 1}"
        )
    attributes: dict[str, Any] = {"size": size, "alpha": alpha, "beta": beta, "bias": k}
    return torch.onnx.ops.symbolic("LRN", (input,), attributes, dtype=input.dtype, shape=input.shape, version=OPSET)


@contextlib.contextmanager
def _input_errors_unwrapped() -> Iterator[None]:
    """Raise our own error where the exporter wraps it in its own, and its own as one of the input."""
    try:
        yield
    except _Refused as error:
        raise InputError(str(error)) from None
    except Exception as error:
        cause = _input_error_in(error)
        if cause is not None:
            raise cause from None
        if isinstance(error, torch.onnx.errors.OnnxExporterError):
            reason = in_a_line(error.__cause__ or error)
            raise InputError(f"PyTorch's exporter cannot trace the network: {reason}") from error
        raise


def _input_error_in(error: BaseException | None) -> InputError | None:
    """Our own error inside the exporter's wrapping exceptions."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns about its own internals; a user can act on neither, and failures are raised too."""
    with contained_logs("torch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
