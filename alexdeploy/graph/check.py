"""What ONNX's checker lets pass of a broken file, and what would break the libraries behind it: told by name, at once.

The checker looks at each node alone. It does not look at how many bytes a weight has, at where weights outside the file
lie, at windows of no places, at functions that call themselves, nor at text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message
from onnx import AttributeProto, TensorProto

from alexdeploy.errors import InputError

_MOST = (1 << 31) - 1  # of a window's numbers, which libraries hold in 32 bits
_MOST_NODES = 1_000_000  # of a function, written out
_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})
_POSITIVE = ("kernel_shape", "strides", "dilations")  # one number for each axis of the image
_TYPED = {  # fields of a tensor whose entries are its values
    **dict.fromkeys(("FLOAT", "COMPLEX64"), "float_data"),
    **dict.fromkeys(("DOUBLE", "COMPLEX128"), "double_data"),
    "INT64": "int64_data",
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"),
    "STRING": "string_data",
}  # else int32_data
_FIELDS = {AttributeProto.GRAPH: "g", AttributeProto.TENSOR: "t", AttributeProto.SPARSE_TENSOR: "sparse_tensor"}
_EXTERNAL = frozenset({"location", "offset", "length", "checksum", "basepath"})


def check_text(message: Message, origin: str) -> None:
    """Protobuf gives text that is not UTF-8 as bytes, which neither the checker nor onnx-ir expects.

    Raises:
        InputError: with the field.
    """
    for kind, content in message.ListFields():
        entries = (content,) if isinstance(content, str | bytes | Message) else content
        if kind.type == kind.TYPE_MESSAGE:
            for entry in entries:
                check_text(entry, origin)
        elif kind.type == kind.TYPE_STRING:
            for text in entries:
                if isinstance(text, bytes):
                    raise InputError(f"{origin}: not a valid ONNX model: {kind.name} {text[:80]!r} is not UTF-8")


def check_places(proto: onnx.ModelProto, origin: str) -> None:
    """Weights outside the file lie in files beside it or below, and are told as ONNX tells them.

    Raises:
        InputError: with the tensor.
    """
    for tensor in _tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        told = {entry.key: entry.value for entry in tensor.external_data}
        place = Path(told.get("location", ""))
        unknown = sorted(told.keys() - _EXTERNAL)
        if unknown:
            wrong = f"its external_data has the key '{unknown[0][:80]}', which ONNX does not know"
        elif not place.name or place.is_absolute() or ".." in place.parts or "\0" in str(place):
            wrong = f"its data lie in '{str(place)[:80]}'; ONNX takes a file beside the model or below its folder"
        elif not all(told.get(key, "0").isdecimal() for key in ("offset", "length")):
            wrong = "the offset or the length of its data is no number of bytes"
        else:
            continue
        raise InputError(
            f"{origin}: not a valid ONNX model: tensor '{tensor.name[:80]}': {wrong}; write the file again"
        )


def use_one_name(proto: onnx.ModelProto) -> None:
    """The domain of the standard operators has two names, of which everything else knows the empty one."""
    opsets = [*proto.opset_import, *(opset for function in proto.functions for opset in function.opset_import)]
    for one in (*opsets, *proto.functions, *_all_nodes(proto)):
        if one.domain == "ai.onnx":
            one.domain = ""


def check_graph(proto: onnx.ModelProto, mapped: Mapping[str, object], origin: str) -> None:
    """All the rest, once the weights are there.

    Args:
        proto: the model; of the tensors in ``mapped`` it has no data.
        mapped: by name of an initializer; ``MappedModel.weights`` checks their sizes.
        origin: the file, for messages.

    Raises:
        InputError: with node or tensor, and the fix.
    """
    for tensor in _tensors(proto):
        if tensor.name not in mapped or tensor.raw_data:
            _check_size(tensor, origin)
    _check_functions(proto, origin)
    opset = _check_opsets(proto, origin)
    for node in _nodes(proto.graph.node):
        taken = next((attribute.ref_attr_name for attribute in node.attribute if attribute.ref_attr_name), None)
        if taken is not None:
            raise _refusal(
                node, f"takes the attribute '{taken[:80]}' of a function, and is in none; correct it", origin
            )
        if not _is_known(node):
            unknown = f"has operator '{node.op_type[:80]}', which ONNX opset {opset} does not have"
            raise _refusal(node, f"{unknown}; replace it with standard operators", origin)
    ranks = {tensor.name: len(tensor.dims) for tensor in proto.graph.initializer}
    for node in _all_nodes(proto):
        wrong = _wrong_attribute(node) or _wrong_window(node, ranks)
        if wrong is not None:
            raise _refusal(node, f"({node.op_type[:80]}) {wrong}; correct it", origin)


def _refusal(node: onnx.NodeProto, why: str, origin: str) -> InputError:
    return InputError(f"{origin}: node '{(node.name or ', '.join(node.output))[:80]}' {why} and export again")


def _is_known(node: onnx.NodeProto) -> bool:
    """Any operator of another domain, which ONNX does not know."""
    return bool(node.domain) or onnx.defs.has(node.op_type, node.domain)


def _check_size(tensor: onnx.TensorProto, origin: str) -> None:
    """As many values, or bytes, as type and dimensions ask for."""
    try:
        kind = ir.DataType(tensor.data_type)
    except ValueError:
        kind = ir.DataType.UNDEFINED
    where = f"{origin}: not a valid ONNX model: tensor '{tensor.name[:80]}'"
    if kind == ir.DataType.UNDEFINED:
        raise InputError(f"{where} has type {tensor.data_type}, which ONNX does not have; write the file again")
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(f"{where} has the dimensions {_told(tensor.dims)}; write the file again")
    count = math.prod(tensor.dims)
    if kind == ir.DataType.STRING:
        found, expected, unit = len(tensor.string_data), count, "values"
    elif tensor.HasField("raw_data"):
        found, expected, unit = len(tensor.raw_data), -(-count * int(8 * kind.itemsize) // 8), "bytes"
    else:
        values = _TYPED.get(kind.name, "int32_data")
        each = 2 if kind.name.startswith("COMPLEX") else 1
        packed = int(8 * kind.itemsize) if kind.itemsize < 1 else 8
        found, expected, unit = len(getattr(tensor, values)), -(-count * each * packed // 8), "values"
    if found != expected:
        raise InputError(
            f"{where} has {found} {unit}, where {_told(tensor.dims)} of {kind.name} asks for {expected}; "
            "write the file again"
        )


def _check_opsets(proto: onnx.ModelProto, origin: str) -> int:
    """The opset of the standard operators, which has one; the checker takes opsets that it does not know.

    ONNX Runtime's words are those of its source then.
    """
    standard = sorted({opset.version for opset in proto.opset_import if not opset.domain})
    if len(standard) > 1:
        raise InputError(
            f"{origin}: not a valid ONNX model: it has its operators from the opsets {_told(standard)}; "
            "expected one, so export it again"
        )
    opset, most = max(standard, default=0), onnx.defs.onnx_opset_version()
    if proto.ir_version > onnx.IR_VERSION or opset > most:
        raise InputError(
            f"{origin}: has opset {opset} and IR version {proto.ir_version}; the onnx {onnx.__version__} "
            f"installed knows opset {most} and IR version {onnx.IR_VERSION} at most; export it in opset 21 (IR "
            "version 10), or install a newer onnx and onnxruntime"
        )
    return opset


def _check_functions(proto: onnx.ModelProto, origin: str) -> None:
    """No function calls itself, be it through others, and written out where they are called they are not endless.

    ONNX's checker finds most circles, and takes time that doubles with each of thirty functions that call the next one
    twice.
    """
    calls = {
        (one.domain, one.name, one.overload): [(node.domain, node.op_type, node.overload) for node in _nodes(one.node)]
        for one in proto.functions
    }
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for name in TopologicalSorter(calls).static_order():
            sizes[name] = sum(sizes[called] for called in calls[name]) if name in calls else 1
    except CycleError as error:
        raise InputError(
            f"{origin}: function '{error.args[1][0][1][:80]}' calls itself; export it without functions"
        ) from error
    largest = max(sizes, key=lambda name: sizes[name], default=("", "", ""))
    if sizes.get(largest, 0) > _MOST_NODES:
        raise InputError(
            f"{origin}: function '{largest[1][:80]}' with those that it calls has {sizes[largest]} nodes, at most "
            f"{_MOST_NODES} are taken; export it without functions"
        )


def _wrong_attribute(node: onnx.NodeProto) -> str | None:
    """An attribute without its value, or text of a standard operator that is none."""
    for attribute in node.attribute:
        field = _FIELDS.get(attribute.type)
        if field is not None and not attribute.HasField(field):
            return f"has attribute '{attribute.name[:80]}' without a value"
        for text in (attribute.s, *attribute.strings) if not node.domain else ():
            try:
                text.decode()
            except UnicodeDecodeError:
                return f"has attribute '{attribute.name[:80]}' = {text[:40]!r}, which is not UTF-8"
    return None


def _wrong_window(node: onnx.NodeProto, ranks: Mapping[str, int]) -> str | None:
    """What is wrong with the window of a convolution, a pooling or an LRN; ``ranks`` are those of the weights."""
    if node.domain:
        return None
    if node.op_type == "LRN":
        size = next((attribute.i for attribute in node.attribute if attribute.name == "size"), 0)
        return None if 0 < size <= _MOST else f"has size {size}; expected a whole number from 1 on"
    if node.op_type not in _WINDOWED:
        return None
    given = {attribute.name: list(attribute.ints) for attribute in node.attribute if attribute.ints}
    counts = {len(given[name]) for name in _POSITIVE if name in given} | {len(given.get("pads", ())) / 2} - {0}
    told = f"has {_attributes(given)}"
    if len(counts) > 1:
        return f"{told}, which are for images of different ranks"
    rank = ranks.get(node.input[1]) if node.op_type.startswith("Conv") and len(node.input) > 1 else None
    if rank is not None and counts and {rank - 2} != counts:
        return f"{told}, where its weights have {rank} dimensions"
    for name in _POSITIVE:
        if not all(0 < value <= _MOST for value in given.get(name, ())):
            return f"has {name} {_told(given[name])}; expected whole numbers from 1 on"
    if not all(0 <= value <= _MOST for value in given.get("pads", ())):
        return f"has pads {_told(given['pads'])}; expected whole numbers from 0 on"
    return None


def _attributes(given: Mapping[str, Sequence[int]]) -> str:
    return " and ".join(f"{name} {_told(given[name])}" for name in (*_POSITIVE, "pads") if name in given)


def _told(numbers: Sequence[int]) -> str:
    """As a tuple, cut where it is long."""
    shown = ", ".join(map(str, numbers[:8]))
    return f"({shown}, …)" if len(numbers) > 8 else f"({shown})"


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Those and the nodes of all graphs inside them."""
    left = [*nodes]
    while left:
        node = left.pop()
        yield node
        left += (inner for attribute in node.attribute for graph in _graphs(attribute) for inner in graph.node)


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Of the graph, its subgraphs and functions."""
    return _nodes([*proto.graph.node, *(node for function in proto.functions for node in function.node)])


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The constants, wherever they are."""
    sparse = [*proto.graph.sparse_initializer]
    yield from proto.graph.initializer
    for node in _all_nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for graph in _graphs(attribute):
                yield from graph.initializer
                sparse += graph.sparse_initializer
    for one in sparse:
        yield from (one.values, one.indices)
