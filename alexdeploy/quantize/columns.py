"""A weighted layer as a product of matrices: rows of weights times columns of what it reads.

A convolution multiplies each of its filters, as a row, with every patch of its input, unfolded into a column; a grouped
one does so group by group. Gemm and MatMul are such products as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alexdeploy.graph.weighted import WeightedNode

_GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill the interval evenly


def weight_rows(weighted: WeightedNode) -> npt.NDArray[np.floating]:
    """The weight as (groups, output channels per group, inputs per output); a view where that can be."""
    weight = weighted.weight_array()
    if weighted.node.op_type == "Conv":
        return weight.reshape(weighted.groups, weight.shape[0] // weighted.groups, -1)
    return (weight if weighted.channel_axis == 0 else weight.T)[None]


def from_rows(weighted: WeightedNode, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``weight_rows`` undone: in the layout of the weight."""
    if weighted.node.op_type == "Conv":
        return rows.reshape(weighted.weight_array().shape)
    return rows[0] if weighted.channel_axis == 0 else np.ascontiguousarray(rows[0].T)


def has_columns(weighted: WeightedNode) -> bool:
    """False for what ``sample_columns`` does not unfold: convolutions of signals or volumes, a transposed input."""
    if weighted.node.op_type == "Conv":
        return weighted.weight_array().ndim == 4
    return weighted.weight_array().ndim == 2 and not _is_transposed(weighted)


def sample_columns(
    weighted: WeightedNode, activation: npt.NDArray[np.floating], positions: int, first: int
) -> npt.NDArray[np.float32]:
    """Some of the columns that the layer multiplies, chosen by the number of the image alone.

    Args:
        weighted: a layer that ``has_columns``.
        activation: what it reads, the first axis the image: (n, C, H, W) for Conv.
        positions: columns per image, spread over the image; all where there are fewer.
        first: number of the first image, so that the choice does not depend on the batches.

    Returns:
        (groups, n · positions, inputs per output), image by image.
    """
    if weighted.node.op_type != "Conv":
        found = activation.reshape(len(activation), -1, activation.shape[-1])
        picked = [image[_spread(found.shape[1], positions, first + i)] for i, image in enumerate(found)]
        return np.concatenate(picked).astype(np.float32, copy=False)[None]
    kernel = weighted.weight_array().shape[2:]
    starts = [_starts(weighted, axis, activation.shape[2 + axis], kernel[axis]) for axis in (0, 1)]
    dilations = _integers(weighted, "dilations", [1, 1])
    count, groups = len(starts[0]) * len(starts[1]), weighted.groups
    columns = []
    for number, image in enumerate(activation, first):
        chosen = _spread(count, positions, number)
        rows, inside_y = _taps(starts[0][chosen // len(starts[1])], kernel[0], dilations[0], image.shape[1])
        cols, inside_x = _taps(starts[1][chosen % len(starts[1])], kernel[1], dilations[1], image.shape[2])
        patches = image[:, rows[:, :, None], cols[:, None, :]]  # (C, positions, kernel height, kernel width)
        patches *= inside_y[:, :, None] & inside_x[:, None, :]  # zero padding
        grouped = patches.reshape(groups, -1, len(chosen), kernel[0] * kernel[1])
        columns.append(grouped.transpose(0, 2, 1, 3).reshape(groups, len(chosen), -1))
    return np.concatenate(columns, axis=1).astype(np.float32, copy=False)


def _spread(count: int, positions: int, number: int) -> npt.NDArray[np.intp]:
    """``positions`` of ``count`` places at equal distances, shifted from image to image."""
    if positions >= count:
        return np.arange(count)
    shift = number * _GOLDEN % 1.0
    return ((np.arange(positions) + shift) * count / positions).astype(np.intp)


def _starts(weighted: WeightedNode, axis: int, size: int, kernel: int) -> npt.NDArray[np.intp]:
    """The first row (axis 0) or column (axis 1) of the input under the filter at each output position."""
    stride = _integers(weighted, "strides", [1, 1])[axis]
    reach = (kernel - 1) * _integers(weighted, "dilations", [1, 1])[axis] + 1
    pads = _integers(weighted, "pads", [0, 0, 0, 0])
    before, after = pads[axis], pads[axis + 2]
    automatic = weighted.node.attributes.get("auto_pad")
    mode = "NOTSET" if automatic is None else automatic.as_string()
    if mode.startswith("SAME"):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        before = (total + 1) // 2 if mode == "SAME_LOWER" else total // 2
        after = total - before
    elif mode == "VALID":
        before = after = 0
    return np.arange((size + before + after - reach) // stride + 1) * stride - before


def _taps(
    starts: npt.NDArray[np.intp], kernel: int, dilation: int, size: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """(positions, kernel) indices into the input, kept inside, and which of them were inside."""
    found = starts[:, None] + np.arange(kernel) * dilation
    return np.clip(found, 0, size - 1), (found >= 0) & (found < size)


def _is_transposed(weighted: WeightedNode) -> bool:
    attribute = weighted.node.attributes.get("transA")
    return attribute is not None and attribute.as_int() == 1


def _integers(weighted: WeightedNode, name: str, default: list[int]) -> list[int]:
    attribute = weighted.node.attributes.get(name)
    return default if attribute is None else list(attribute.as_ints())
