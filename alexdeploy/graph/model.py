"""Reading, checking and writing ONNX files, and what can be read off a model as a whole."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError
from onnx_ir.passes import common

from alexdeploy import files
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import InputError, InputWarning, words_of
from alexdeploy.graph.check import check_graph, check_places, check_text, use_one_name
from alexdeploy.graph.infer import contained_logs, infer_shapes
from alexdeploy.graph.mapped import LARGE, MAPPABLE, MappedModel
from alexdeploy.graph.sparse import make_dense
from alexdeploy.graph.weighted import half_weights, type_of_levels
from alexdeploy.specs import Precision, TensorSpec, find_logits


@dataclass(frozen=True)
class PreparedGraph:
    """A graph in memory, ready to be built, and its origin.

    Attributes:
        model: the graph.
        path: the ONNX file it came from, for messages.
        parents: the files it was made from; empty where that is ``path`` alone and its hash is not known yet.
        options: what was chosen on the way, for the sidecar of what is built.
        asked: the precision that was to be written into it; None where it has come in that of its nodes.
    """

    model: ir.Model
    path: Path
    parents: tuple[files.Parent, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    asked: Precision | None = None


_PLACE = "place"  # of a tensor: the bytes of the file at which it begins and ends


def load_onnx(source: Path | bytes) -> ir.Model:
    """Read an ONNX file with its external data, or its bytes: checked, constants as initializers, shapes inferred.

    Large weights are mapped, not read: the file must not be changed in place while the model is in use.

    Raises:
        InputError: missing, empty, not ONNX, an operator that ONNX does not have, or refused by ``graph.check`` or by
            ONNX's checker.
    """
    path = source if isinstance(source, Path) else Path("the model")
    if isinstance(source, Path):
        files.check_input(source)
    try:
        mapped = MappedModel(source)
        proto = mapped.proto
        check_places(proto, str(path))
        onnx.load_external_data_for_model(proto, str(path.parent))
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path}: its external weights cannot be read: {words_of(error)}") from error
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: not an ONNX file ({words_of(error)}); expected a model.onnx") from error
    except OSError as error:
        raise InputError(f"{path}: its external weights cannot be read: {words_of(error)}") from error
    if not proto.graph.node or not proto.graph.input or not proto.graph.output:
        raise InputError(f"{path}: not an ONNX model: it has no nodes, inputs or outputs")
    check_text(proto, str(path))
    use_one_name(proto)
    check_graph(proto, mapped.places, str(path))
    try:
        make_dense(proto.graph)
        onnx.checker.check_model(mapped.checkable())
        weights = mapped.weights()
        with contained_logs():
            model = ir.from_proto(proto)
    except (onnx.checker.ValidationError, ValueError, EncodeError, ir.serde.SerdeError) as error:
        raise InputError(f"{path}: not a valid ONNX model: {words_of(error)}") from error
    for name, array in weights.items():
        value = model.graph.initializers[name]
        described = value.const_value.doc_string if value.const_value is not None else None
        value.const_value = ir.tensor(array, name=name, doc_string=described)
        value.const_value.meta[_PLACE] = mapped.places[name]
    problem = _prepare(model)
    if problem is not None:
        warnings.warn(f"{path}: {problem}", InputWarning, stacklevel=2)
    return model


def _prepare(model: ir.Model) -> str | None:
    """Returns what is wrong with the shapes that the file declares."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return infer_shapes(model)


def model_bytes(model: ir.Model) -> bytes:
    """The model as one self-contained protobuf.

    Raises:
        InputError: over protobuf's 2 GiB.
    """
    try:
        return bytes(ir.to_proto(model).SerializeToString())
    except (ValueError, EncodeError) as error:
        raise InputError(f"the model does not fit one ONNX file of 2 GiB: {words_of(error)}") from error


def release_weights(*models: ir.Model) -> None:
    """Let go of the weights, and so of the file that they are mapped from; the models are of no more use.

    A graph refers to itself, so that without this its file stays mapped until Python collects such garbage.
    """
    for model in models:
        for value in model.graph.initializers.values():
            value.const_value = None


def split_weights(model: ir.Model, origin: Path | None = None) -> tuple[bytes, dict[str, npt.NDArray[np.generic]]]:
    """The model as a protobuf without its large weights, and those by name; nothing is copied.

    ONNX Runtime takes the two together (``SessionOptions.add_external_initializers``). Weights that lie in ``origin``,
    the file that the model was read from, are external data of that file instead: ONNX Runtime maps each, and unmaps
    it once it is packed, so that the weights are not twice in memory. A path that is not UTF-8 cannot be such a place.
    """
    if origin is not None and not files.is_text(origin):
        origin = None
    weights = {}
    light = model.clone()
    for name, value in light.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or value.dtype not in MAPPABLE or tensor.nbytes <= LARGE:
            continue
        where, start = "in memory", 0
        if origin is not None and _PLACE in tensor.meta:
            where, (start, _) = origin.name, tensor.meta[_PLACE]
        else:
            weights[name] = tensor.numpy()
        value.const_value = ir.ExternalTensor(
            where, start, tensor.nbytes, value.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    return model_bytes(light), weights


def save_onnx(
    model: ir.Model,
    path: Path,
    *,
    parents: tuple[files.Parent, ...] = (),
    options: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Check the model and write it with its sidecar, atomically.

    Raises:
        onnx.checker.ValidationError: a pass of ours wrote something invalid (a bug).
    """
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    files.write_artifact(
        path,
        proto.SerializeToString(),
        "onnx",
        parents=parents,
        options=options,
        libraries=files.library_versions("onnx", "onnx-ir"),
        details=details,
    )


def contract_of(model: ir.Model, origin: str) -> Contract:
    """The preprocessing contract in the model's ``metadata_props``.

    Raises:
        InputError: it carries none, or one that is not readable.
    """
    text = model.metadata_props.get(METADATA_KEY)
    if text is None:
        raise InputError(
            f"{origin}: carries no preprocessing contract (metadata '{METADATA_KEY}'); adopt the file with "
            "the `contract` of its network (alexdeploy adopt)"
        )
    return Contract.from_json(text, origin)


def op_counts(model: ir.Model) -> dict[str, int]:
    """Operator type → number of nodes, by name."""
    return dict(sorted(Counter(node.op_type for node in model.graph).items()))


def foreign_operators(model: ir.Model) -> list[str]:
    """Operators that ONNX does not have, each once with its domain, such as ``trt.plugins.NMS``."""
    nodes = (node for node in model.graph.all_nodes() if node.domain)
    return sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.op_identifier() not in model.functions})


def precision_of(model: ir.Model) -> Precision:
    """INT8 or FP8 when the graph dequantizes, FP16 or BF16 when it holds such weights; both, or neither (FP32)."""
    levels = {type_of_levels(node) for node in model.graph if node.op_type == "DequantizeLinear"}
    half = half_weights(model)
    return Precision.of(int8=bool(levels - {"FP8"}), fp8="FP8" in levels, fp16=half == "FP16", bf16=half == "BF16")


def tensor_spec(value: ir.Value) -> TensorSpec:
    """Name, shape and type of a value; a shape that is not known has no dimensions."""
    shape = tuple(dim if isinstance(dim, int) else str(dim.value or "?") for dim in value.shape or ())
    return TensorSpec(str(value.name), shape, value.dtype.numpy().name if value.dtype is not None else "unknown")


def fed_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs without those that have a value in the file, which old files list among them."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def image_input(model: ir.Model, origin: str) -> TensorSpec:
    """The single image input: (batch, C, H, W) or (batch, H, W, C); any of them may be dynamic.

    Raises:
        InputError: several inputs, or another rank.
    """
    inputs = [tensor_spec(value) for value in fed_inputs(model)]
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        found = ", ".join(map(str, inputs))
        raise InputError(f"{origin}: expected one image input of rank 4, as (batch, C, H, W), found {found}")
    return inputs[0]


def class_count(model: ir.Model) -> int | None:
    """Classes of the output that holds the logits; None where they, or it, are not clear."""
    logits = find_logits([tensor_spec(value) for value in model.graph.outputs])
    return logits.classes if logits is not None else None
