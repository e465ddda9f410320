"""Arrays in pickles, against what NumPy itself writes; and what would crash NumPy, or run something."""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

import numpy as np
import pytest

from alexdeploy.pickled import load_arrays


def restored(data: bytes) -> Any:
    return load_arrays(io.BytesIO(data))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f8", "u1", "<i8", ">i2", "?"])
def test_arrays_come_back_as_numpy_wrote_them(kind: str, order: Any) -> None:
    array = np.arange(6).reshape(2, 3).astype(kind, order=order)
    found = restored(pickle.dumps({"a": array, "b": [array]}, 4))
    np.testing.assert_array_equal(found["a"], array)
    assert found["a"].dtype == array.dtype
    assert found["b"][0] is found["a"]


def test_an_array_that_python_2_wrote_comes_back() -> None:
    data = (  # pickle.dumps(numpy.array([1.0, 2.0], "<f4"), 2) of Python 2.7 with NumPy 1.16
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01bq\x04\x87q\x05Rq\x06"
        b"(K\x01K\x02\x85q\x07cnumpy\ndtype\nq\x08U\x02f4q\tK\x00K\x01\x87q\nRq\x0b(K\x03U\x01<q\x0cNNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tq\rb\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x0etq\x0fb."
    )
    found = restored(data)
    assert (found.dtype, found.tolist()) == (np.dtype("<f4"), [1.0, 2.0])


def test_objects_in_an_array_come_back() -> None:
    layers = {"conv1": [np.ones((2, 2), np.float32), np.zeros(2, np.float32)]}
    found = restored(pickle.dumps(np.array(layers, dtype=object), 4)).item()
    np.testing.assert_array_equal(found["conv1"][0], layers["conv1"][0])
    listed = np.empty(2, object)
    listed[:] = [[1, 2], [3, 4]]
    assert restored(pickle.dumps(listed, 4)).tolist() == [[1, 2], [3, 4]]


class Made:
    """An array with a state that somebody made up."""

    def __init__(self, shape: Any, kind: Any, content: Any, is_fortran: bool = False) -> None:
        self.state = (1, shape, kind, is_fortran, content)

    def __reduce__(self) -> tuple[Any, ...]:
        return (*np.empty(0).__reduce__()[:2], self.state)


@pytest.mark.parametrize(
    "made",
    [
        Made((2, 3), np.dtype("<f4"), b"short"),
        Made((1 << 40,), np.dtype("u1"), b""),
        Made((-1,), np.dtype("u1"), b"1234"),
        Made((2,), np.dtype("O"), b"\x01" * 16),  # pointers, if they were believed
        Made((2,), np.dtype("O"), [1]),
        Made((2,), "f4", bytes(8)),
        Made((1,), np.dtype("u1"), 5),
        Made(3, np.dtype("u1"), b"123"),
        Made((1,), np.dtype([("a", "O")]), bytes(8)),
    ],
)
def test_a_state_that_is_made_up_is_refused(made: Made) -> None:
    with pytest.raises((pickle.UnpicklingError, ValueError, TypeError)):
        restored(pickle.dumps(made, 4))


def test_nothing_else_is_run() -> None:
    class Calls:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("false",)

    with pytest.raises(pickle.UnpicklingError, match=r"it wants to run \w+\.system"):
        restored(pickle.dumps(Calls()))


def test_a_number_of_parts_takes_no_memory_by_itself() -> None:
    with pytest.raises((pickle.UnpicklingError, EOFError, KeyError)):
        restored(b"\x80\x02Nr\xff\xff\xff\x7f")  # "keep this as part 2147483647": 32 GB in the unpickler in C
