from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from alexdeploy.errors import InputError
from alexdeploy.graph.model import load_onnx
from tests.helpers.graphs import Array, make_model, run

DENSE = np.zeros((192, 4), np.float32)
DENSE[[0, 7, 191], [3, 0, 2]] = 1.5, -2, 4
PLACES = np.argwhere(DENSE)


def saved(folder: Path, indices: Array, count: int = 3) -> Path:
    """A MatMul with a sparse matrix of so many values."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "w"], ["logits"], "fc"),
    ]
    model = make_model(nodes, {"w": DENSE}, rank=2)
    values = numpy_helper.from_array(DENSE[tuple(PLACES.T)][:count], "w")
    model.graph.ClearField("initializer")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "places"), DENSE.shape)
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("indices", [PLACES, np.ravel_multi_index(tuple(PLACES.T), DENSE.shape)], ids=["rows", "flat"])
def test_a_sparse_weight_has_its_values_in_their_places(indices: Array, tmp_path: Path) -> None:
    model = load_onnx(saved(tmp_path, indices))
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), DENSE)
    batch = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, batch)[0], batch.reshape(2, -1) @ DENSE, rtol=1e-5)


@pytest.mark.parametrize(
    ("indices", "count"),
    [
        (np.array([0, 1, 768]), 3),
        (np.array([-1, 1, 2]), 3),
        (np.array([0, 1]), 3),
        (np.array([[0, 4], [1, 0], [2, 0]]), 3),
    ],
    ids=["beyond", "negative", "too few", "beyond its axis"],
)
def test_indices_that_do_not_fit_are_refused_in_a_line(indices: Array, count: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a valid ONNX model: .+") as caught:
        load_onnx(saved(tmp_path, indices.astype(np.int64), count))
    assert "\n" not in str(caught.value)


def test_a_sparse_weight_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([0, 1, 2]))
    model = onnx.load(path)
    model.graph.sparse_initializer[0].dims[:] = [1 << 40, 1 << 20]
    onnx.save(model, path)
    with pytest.raises(InputError, match="is more than 536870912 values"):
        load_onnx(path)
