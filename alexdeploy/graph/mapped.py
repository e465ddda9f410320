"""Reading an ONNX file without its weights, which stay where they are in the file, mapped into memory.

Protobuf copies every weight, and whoever looks at one copies it again. Here the large ``raw_data`` fields are left out
before protobuf sees the file, their places remembered (protobuf.dev, "Encoding"; field numbers from onnx.proto).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

LARGE = 1 << 12
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9  # ModelProto.graph, GraphProto.initializer, TensorProto.…
_ELSEWHERE = {13, 14}  # TensorProto.external_data and .data_location
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
MAPPABLE = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.DOUBLE,
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
}


@dataclass(frozen=True)
class _Field:
    """A field in the buffer: where it begins, and where its content does and ends."""

    number: int
    wire_type: int
    start: int
    content: int
    end: int


class MappedModel:
    """An ONNX file, or its bytes, whose large weights have not been read or copied.

    Attributes:
        proto: the model; of a mapped weight it holds name, type and dimensions, and no data.
        places: of each mapped weight, the bytes at which it begins and ends.

    Raises:
        DecodeError: not protobuf.
        OSError: the file cannot be mapped.
    """

    def __init__(self, source: Path | bytes) -> None:
        self._buffer: mmap.mmap | bytes
        if isinstance(source, Path):
            with source.open("rb") as file:
                self._buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            self._buffer = source
        self.places: dict[str, tuple[int, int]] = {}
        try:
            light = self._without_weights()
        except (IndexError, ValueError):
            light, self.places = bytes(self._buffer), {}  # let protobuf say what is wrong
        self.proto = onnx.load_model_from_string(light)

    def checkable(self) -> onnx.ModelProto:
        """The model with one number for each mapped weight, as ONNX's checker takes it.

        It asks for the type and shape of each output, which ONNX Runtime does not; they are inferred later.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in proto.graph.initializer:
            if tensor.name in self.places:
                del tensor.dims[:]
                tensor.raw_data = bytes(8)
        for output in proto.graph.output:
            kind = output.type.WhichOneof("value")
            if kind in (None, "tensor_type") and not output.type.tensor_type.HasField("shape"):
                output.type.tensor_type.shape.SetInParent()
                output.type.tensor_type.elem_type = output.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
        return proto

    def weights(self) -> dict[str, npt.NDArray[np.generic]]:
        """The mapped weights by name, read-only; they live as long as their arrays do.

        Raises:
            ValueError: a weight has not as many bytes as its type and dimensions ask for.
        """
        found: dict[str, npt.NDArray[np.generic]] = {}
        for tensor in self.proto.graph.initializer:
            if tensor.name in self.places:
                start, end = self.places[tensor.name]
                dtype = ir.DataType(tensor.data_type).numpy()
                count = math.prod(tensor.dims)
                if count * dtype.itemsize != end - start:
                    raise ValueError(
                        f"weight '{tensor.name}' has {end - start} bytes; {tuple(tensor.dims)} of {dtype} is "
                        f"{count * dtype.itemsize}"
                    )
                found[tensor.name] = np.frombuffer(self._buffer, dtype, count, start).reshape(tensor.dims)
        return found

    def _without_weights(self) -> bytes:
        light = bytearray()
        for field in self._fields(0, len(self._buffer)):
            if (field.number, field.wire_type) == (_GRAPH, _DELIMITED):
                light += _delimited(_GRAPH, self._light_graph(field))
            else:
                light += self._buffer[field.start : field.end]
        return bytes(light)

    def _light_graph(self, graph: _Field) -> bytes:
        light = bytearray()
        for field in self._fields(graph.content, graph.end):
            if field.number == _INITIALIZER and field.end - field.content > LARGE:
                light += _delimited(_INITIALIZER, self._light_tensor(field))
            else:
                light += self._buffer[field.start : field.end]
        return bytes(light)

    def _light_tensor(self, tensor: _Field) -> bytes:
        fields = list(self._fields(tensor.content, tensor.end))
        kept = b"".join(self._buffer[field.start : field.end] for field in fields if field.number != _RAW_DATA)
        raw = [field for field in fields if field.number == _RAW_DATA]
        names = [field for field in fields if field.number == _NAME]
        elsewhere = any(field.number in _ELSEWHERE for field in fields)
        if len(raw) == len(names) == 1 and not elsewhere and onnx.TensorProto.FromString(kept).data_type in MAPPABLE:
            self.places[self._buffer[names[0].content : names[0].end].decode()] = raw[0].content, raw[0].end
            return kept
        return self._buffer[tensor.content : tensor.end]

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        while start < end:
            key, content = self._varint(start)
            number, wire_type = key >> 3, key & 7
            if wire_type == _VARINT:
                stop = self._varint(content)[1]
            elif wire_type in (_FIXED64, _FIXED32):
                stop = content + (8 if wire_type == _FIXED64 else 4)
            elif wire_type == _DELIMITED:
                length, content = self._varint(content)
                stop = content + length
            else:
                raise ValueError(f"wire type {wire_type}")
            if stop > end:
                raise ValueError("a field reaches beyond its message")
            yield _Field(number, wire_type, start, content, stop)
            start = stop

    def _varint(self, position: int) -> tuple[int, int]:
        """The number at ``position``, and where the next byte is."""
        value = shift = 0
        while shift < 64:
            byte = self._buffer[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise ValueError("a number of more than 64 bits")


def _delimited(number: int, content: bytes) -> bytes:
    return bytes(_encoded(number << 3 | _DELIMITED)) + bytes(_encoded(len(content))) + content


def _encoded(value: int) -> Iterator[int]:
    while value >= 0x80:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
