"""What is at the door of every runner on the CPU: the right answer to any form of the same array, or one clear line."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import alexdeploy
from alexdeploy.errors import UsageError
from alexdeploy.runners.base import Runner
from alexdeploy.specs import TensorSpec
from alexdeploy.zoo.checkpoint import save_checkpoint, untrained
from tests.helpers.graphs import Array, conv_lrn_gemm, images
from tests.helpers.kserve import grpc_server, http_server

RUNTIMES = ("onnxruntime-cpu", "openvino", "pytorch", "kserve-http", "kserve-grpc")


@pytest.fixture(scope="module", params=RUNTIMES)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    if request.param.startswith("kserve"):
        pytest.importorskip("tritonclient", reason="tritonclient is not installed")
        from alexdeploy.runners.kserve import KServeRunner

        with (
            grpc_server() if "grpc" in request.param else http_server() as found,
            KServeRunner(found if isinstance(found, str) else found[0], "double") as opened,
        ):
            yield opened
        return
    pytest.importorskip(request.param.partition("-")[0].replace("pytorch", "torch"))
    source: Path | bytes = conv_lrn_gemm().SerializeToString()
    if request.param == "pytorch":  # of one channel, whose axis NumPy calls contiguous whichever way it runs
        source = tmp_path_factory.mktemp("base") / "lenet.safetensors"
        save_checkpoint(source, untrained("lenet", 10, seed=0))
    with alexdeploy.load(source, runtime=request.param) as opened:
        yield opened


def batch_for(runner: Runner, count: int = 3) -> Array:
    return images(count, tuple(int(size) for size in runner.input.shape[1:]))


def unaligned(batch: Array) -> Array:
    moved = np.zeros(batch.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(batch.shape)
    moved[...] = batch
    return moved


def read_only(batch: Array) -> Array:
    batch = batch.copy()
    batch.flags.writeable = False
    return batch


class Subclass(np.ndarray[Any, np.dtype[Any]]):
    pass


FORMS: dict[str, Callable[[Array], Array]] = {
    "Fortran order": np.asfortranarray,
    "first axis reversed": lambda batch: batch[::-1],
    "second axis reversed": lambda batch: batch[:, ::-1],
    "all axes reversed": lambda batch: batch[::-1, ::-1, ::-1],
    "every second": lambda batch: np.repeat(batch, 2, axis=0)[::2],
    "broadcast": lambda batch: np.broadcast_to(batch[:1], batch.shape),
    "read-only": read_only,
    "unaligned": unaligned,
    "a subclass": lambda batch: batch.view(Subclass),
    "no mask": np.ma.masked_array,
    "a mask of nothing": lambda batch: np.ma.masked_array(batch, np.zeros(batch.shape, bool)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.filterwarnings("error")
def test_any_form_of_an_array_has_the_same_answer_and_stays_as_it_is(
    runner: Runner, form: Callable[[Array], Array]
) -> None:
    batch = form(batch_for(runner))
    before = np.array(batch)
    answer = runner.infer(batch)
    assert type(answer) is np.ndarray
    kept = answer.copy()
    np.testing.assert_array_equal(runner.infer(np.ascontiguousarray(before)), answer)
    np.testing.assert_array_equal(batch, before)
    runner.infer(batch_for(runner, 2) + 1)
    np.testing.assert_array_equal(answer, kept)


WRONG: dict[str, tuple[Callable[[Array], Any], str]] = {
    **{
        f"type {kind}": (partial(np.ndarray.astype, dtype=kind), f"type {np.dtype(kind)}; expected")
        for kind in ("float64", "float16", "uint8", "int64", "bool", "object", "complex64", ">f4")
    },
    "channels last": (lambda batch: np.moveaxis(batch, 1, -1)[..., None, :], "got a batch of shape"),
    "one image": (lambda batch: batch[0], "got a batch of shape"),
    "no images": (lambda batch: batch[:0], r"shape \(0, "),
    "too large": (lambda batch: np.concatenate([batch, batch], -1), "got a batch of shape"),
    "no axes": (lambda batch: np.array(1, np.float32), r"shape \(\)"),
    "NaN": (lambda batch: with_value(batch, np.nan), "image 1 of the batch holds NaN"),
    "infinity": (lambda batch: with_value(batch, -np.inf), "image 1 of the batch holds infinity"),
    "masked": (lambda batch: np.ma.masked_array(batch, batch > 0), "got a MaskedArray"),
    "a list": (list, "got a list; expected a NumPy array"),
    "a generator": (iter, "expected a NumPy array"),
    "a number": (lambda batch: batch.flat[0], "got a float32; expected a NumPy array"),
    "text": (lambda batch: "a.jpg", "got a str"),
    "a path": (lambda batch: Path("a.jpg"), "got a PosixPath"),
    "bytes": (lambda batch: batch.tobytes(), "got a bytes"),
    "None": (lambda batch: None, "got a NoneType"),
    "a picture": (lambda batch: Image.new("RGB", (8, 8)), "got a Image"),
    "a tensor": (lambda batch: torch.from_numpy(batch), "got a Tensor"),
    "a tensor with a gradient": (lambda batch: torch.from_numpy(batch).requires_grad_(), "got a Tensor"),
    "a tensor of bfloat16": (lambda batch: torch.from_numpy(batch).bfloat16(), "got a Tensor"),
}


def with_value(batch: Array, value: float) -> Array:
    """In a corner, which pooling and ReLU lose."""
    batch = batch.copy()
    batch[(1, *[0] * (batch.ndim - 1))] = value
    return batch


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=list(WRONG))
def test_what_is_no_batch_is_one_clear_line(runner: Runner, make: Callable[[Array], Any], words: str) -> None:
    given = make(batch_for(runner))
    for call in (runner.infer, runner.device_call):
        with pytest.raises(UsageError, match=words) as caught:
            call(given)
        assert str(caught.value).startswith(f"{runner.runtime}: ")
        assert "\n" not in str(caught.value)


class Half(Runner):
    runtime = "half"
    input = TensorSpec("input", (-1, 3, 4, 4), "float16")

    def infer(self, batch: Array) -> Array:
        self.check_batch(batch)
        return np.zeros((len(batch), 1), np.float32)


def test_of_float16_every_value_is_taken_but_nan_and_infinity() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for value in [*every[::97].tolist(), 65504.0, -65504.0, np.inf, -np.inf, np.nan]:
        batch = with_value(np.ones((2, 3, 4, 4), np.float16), value)
        for form in (batch, np.asfortranarray(batch), np.repeat(batch, 2, axis=3)[..., ::2]):
            if np.isfinite(value):
                assert Half().infer(form).shape == (2, 1)
            else:
                with pytest.raises(UsageError, match="half: image 1 of the batch holds "):
                    Half().infer(form)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps, lambda one: pickle.dumps({"model": one})])
def test_it_is_neither_copied_nor_pickled(runner: Runner, take: Callable[[object], object]) -> None:
    with pytest.raises(
        UsageError, match="a loaded model cannot be copied or pickled; load the file where it is needed"
    ):
        take(runner)


@pytest.mark.parametrize("source", [None, 3, True, ["model.onnx"], conv_lrn_gemm(), torch.nn.Linear(2, 2)])
@pytest.mark.parametrize("take", [alexdeploy.load, alexdeploy.Classifier])
def test_what_is_no_file_is_refused(take: Callable[[Any], object], source: object) -> None:
    with pytest.raises(UsageError, match=f"got a {type(source).__name__} in place of a model file; give its path or"):
        take(source)


def test_any_path_and_any_buffer_is_a_file(tmp_path: Path) -> None:
    class Named:
        def __fspath__(self) -> str:
            return str(tmp_path / "model.onnx")

    content = conv_lrn_gemm().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content)
    sources: list[Any] = [Named(), bytearray(content), memoryview(content)]
    for source in sources:
        with alexdeploy.load(source, runtime="onnxruntime-cpu") as opened:
            assert opened.classes == 4
