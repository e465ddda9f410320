from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from alexdeploy.graph.weighted import WeightedNode, weighted_nodes
from alexdeploy.quantize.columns import from_rows, has_columns, sample_columns, weight_rows
from tests.helpers.graphs import make_model, run

ALL = 10**6


def layer(op: str, shape: tuple[int, ...], **attributes: Any) -> tuple[ir.Model, WeightedNode]:
    weight = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    node = helper.make_node(op, ["input", "w"], ["logits"], "layer", **attributes)
    taken: tuple[int | str, ...] = (7, "batch") if attributes.get("transA") else ("batch", 7)
    if op == "Conv":
        taken = ("batch", 3, *[8] * (len(shape) - 2))
    model = ir.from_proto(make_model([node], {"w": weight}, shape=taken, rank=len(taken)))
    return model, weighted_nodes(model)[0]


CONVOLUTIONS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((4, 3, 3, 3), {}),
    ((4, 3, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ((4, 3, 3, 3), {"pads": [2] * 4, "dilations": [2, 2]}),
    ((4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((4, 3, 2, 2), {"auto_pad": "SAME_LOWER"}),
    ((6, 1, 3, 3), {"group": 3, "pads": [1] * 4}),
]


@pytest.mark.parametrize(("shape", "attributes"), CONVOLUTIONS)
def test_rows_times_columns_are_what_onnx_runtime_convolves(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    model, weighted = layer("Conv", shape, **attributes)
    batch = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = run(model, batch)[0]
    found = weight_rows(weighted) @ sample_columns(weighted, batch, ALL, 0).transpose(0, 2, 1)
    by_image = found.reshape(shape[0], 2, *expected.shape[2:]).transpose(1, 0, 2, 3)
    np.testing.assert_allclose(by_image, expected, atol=1e-5)
    np.testing.assert_array_equal(from_rows(weighted, weight_rows(weighted)), weighted.weight_array())


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_same_of_a_gemm(transposed: int) -> None:
    _, weighted = layer("Gemm", (5, 7) if transposed else (7, 5), transB=transposed)
    batch = np.random.default_rng(3).standard_normal((4, 7)).astype(np.float32)
    weight = weighted.weight_array()
    found = weight_rows(weighted)[0] @ sample_columns(weighted, batch, 1, 0)[0].T
    np.testing.assert_allclose(found.T, batch @ (weight.T if transposed else weight), atol=1e-5)
    np.testing.assert_array_equal(from_rows(weighted, weight_rows(weighted)), weight)


def test_the_columns_are_those_that_torch_unfolds_and_depend_on_the_image_alone() -> None:
    _, weighted = layer("Conv", (4, 3, 3, 3), pads=[1] * 4)
    images = np.random.default_rng(4).standard_normal((5, 3, 8, 8)).astype(np.float32)
    unfolded = torch.nn.functional.unfold(torch.from_numpy(images), 3, padding=1).numpy()
    whole = sample_columns(weighted, images, 6, 10)
    assert whole.shape == (1, 30, 27)
    for number in range(5):
        alone = sample_columns(weighted, images[number : number + 1], 6, 10 + number)[0]
        np.testing.assert_array_equal(whole[0, 6 * number : 6 * number + 6], alone)
        places = [int(np.flatnonzero((column == unfolded[number].T).all(axis=1))[0]) for column in alone]
        assert all(np.diff(places) > 0), "six different places, in order"
    other = sample_columns(weighted, images[:1], 6, 11)
    assert not np.array_equal(other, sample_columns(weighted, images[:1], 6, 10)), "another image, other places"


def test_what_cannot_be_unfolded_is_told() -> None:
    assert has_columns(layer("Conv", (4, 3, 3, 3))[1])
    assert has_columns(layer("Gemm", (7, 5))[1])
    assert not has_columns(layer("Gemm", (7, 5), transA=1)[1])
    assert not has_columns(layer("Conv", (4, 3, 3))[1])
