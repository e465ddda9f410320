"""Sparse weights of an ONNX file made dense, as no reader or runtime after this takes them."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

_MOST = 1 << 29  # values: 2 GiB of float32
_THINNEST, _SMALL = 1000, 1 << 20  # values that are stored for one; in what is small, any


def make_dense(graph: onnx.GraphProto) -> None:
    """Put sparse initializers, and Constant nodes with a sparse value, into dense ones; in the graph itself.

    Raises:
        ValueError: indices outside the tensor, or not one for each value; more than 2 GiB, or nearly all zeros.
    """
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse, sparse.values.name))
    graph.ClearField("sparse_initializer")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                dense = _dense(attribute.sparse_tensor, attribute.sparse_tensor.values.name)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
            elif attribute.HasField("g"):
                make_dense(attribute.g)


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    shape, values = tuple(sparse.dims), numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    size = math.prod(shape)
    if min(shape, default=1) < 0 or size > _MOST:
        raise ValueError(f"sparse weight '{name}' of shape {shape} is more than {_MOST} values")
    if size > max(_SMALL, _THINNEST * values.size):  # a file of some bytes would take gigabytes
        raise ValueError(f"sparse weight '{name}' of shape {shape} holds {values.size} values alone")
    places = indices
    if indices.ndim == 2 and indices.shape[1] == len(shape):  # one column for each axis
        places = np.ravel_multi_index(tuple(indices.T), shape) if indices.size else indices.reshape(-1)
    if places.shape != values.shape or (places.size and not 0 <= places.min() <= places.max() < size):
        raise ValueError(f"sparse weight '{name}' of shape {shape} has indices that do not fit it or its values")
    array = np.zeros(size, values.dtype)
    array[places] = values
    return numpy_helper.from_array(array.reshape(shape), name)
