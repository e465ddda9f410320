"""FP32 on a GPU is FP32: PyTorch's own flags, seen from inside the network, on a machine without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from alexdeploy.errors import DeviceLostError, UnavailableError
from alexdeploy.runners.pytorch import PyTorchRunner
from alexdeploy.zoo.checkpoint import untrained

IMAGES = np.zeros((1, 1, 28, 28), np.float32)
BACKENDS: Any = torch.backends


def flags() -> tuple[str, str]:
    return BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cuda.matmul.fp32_precision


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> PyTorchRunner:
    """It takes itself to be on a GPU once its weights lie on the CPU."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    opened = PyTorchRunner(untrained("mnist-cnn", 10, seed=0))
    opened.on_gpu = True
    return opened


@pytest.fixture(params=["default", "by the old names", "highest"])
def _application(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the application has set for itself."""
    places = (BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.cuda.matmul)
    before = [place.fp32_precision for place in places]
    if request.param == "by the old names":
        BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cudnn.allow_tf32 = True
    elif request.param == "highest":
        BACKENDS.cudnn.allow_tf32 = False
    yield
    BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32 = False, True  # PyTorch's, before the names it now has
    for place, precision in zip(places, before, strict=True):
        place.fp32_precision = precision


@pytest.mark.usefixtures("_application")
@pytest.mark.parametrize("call_of", [lambda r: r.infer(IMAGES), lambda r: r.device_call(IMAGES)()])
def test_no_tf32_inside_and_the_applications_choice_outside(
    runner: PyTorchRunner, call_of: Callable[[PyTorchRunner], object]
) -> None:
    seen = []
    assert runner._model is not None
    runner._model.register_forward_hook(lambda *_: seen.append(flags()))
    before = flags(), BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32
    call_of(runner)
    assert seen == [("ieee", "ieee")]
    assert (flags(), BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32) == before


@pytest.mark.usefixtures("_application")
def test_what_the_application_sets_for_all_later_still_counts(runner: PyTorchRunner) -> None:
    """Convolutions and products inherit it, as they would without a call of ours."""
    BACKENDS.cudnn.conv.fp32_precision = BACKENDS.cuda.matmul.fp32_precision = "none"
    try:
        BACKENDS.fp32_precision = "tf32"
        runner.infer(IMAGES)
        assert flags() == ("tf32", "tf32")
        BACKENDS.fp32_precision = "ieee"
        assert flags() == ("ieee", "ieee")
    finally:
        BACKENDS.fp32_precision = "none"


def test_a_call_that_fails_restores_it_too(runner: PyTorchRunner) -> None:
    before = flags()
    with pytest.raises(RuntimeError):
        runner._run(torch.zeros(1, 5, 28, 28))
    assert flags() == before


@pytest.mark.parametrize("call_of", [lambda r: r.infer(IMAGES), lambda r: r.device_call(IMAGES)()])
def test_a_fault_of_the_device_is_told_and_every_later_call_refused(
    runner: PyTorchRunner, call_of: Callable[[PyTorchRunner], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["CUDA out of memory. Tried to allocate 2 MiB.", "CUDA error: misaligned address\nSearch for `cudaError"]

    def synchronize(device: object) -> None:  # noqa: ARG001
        raise RuntimeError(said.pop(0))

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(UnavailableError, match=r"^PyTorch: CUDA out of memory. Tried to allocate 2 MiB.$"):
        call_of(runner)
    for _ in range(2):
        with pytest.raises(DeviceLostError, match=r"^PyTorch: CUDA error: misaligned address; the GPU is lost"):
            call_of(runner)


def test_calls_that_overlap_do_not_undo_each_other(runner: PyTorchRunner) -> None:
    """The first ends while the second is still inside."""
    before, seen = flags(), {}
    inside, first_has_ended = threading.Barrier(2), threading.Event()

    def look(*_: object) -> None:
        name = threading.current_thread().name
        inside.wait(10)
        if name == "second":
            assert first_has_ended.wait(10)
        seen[name] = flags()

    assert runner._model is not None
    runner._model.register_forward_hook(look)
    first, second = (threading.Thread(target=runner.infer, args=(IMAGES,), name=name) for name in ("first", "second"))
    for thread in (first, second):
        thread.start()
    first.join()
    first_has_ended.set()
    second.join()
    assert seen == {"first": ("ieee", "ieee"), "second": ("ieee", "ieee")}
    assert flags() == before
