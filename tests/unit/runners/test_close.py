"""Close means closed: what a runner holds is released at once, and later calls are refused."""

from __future__ import annotations

import gc
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import alexdeploy
from alexdeploy.arrays import Batch
from alexdeploy.errors import UsageError
from alexdeploy.runners.base import Runner
from alexdeploy.zoo.checkpoint import save_checkpoint, untrained
from tests.helpers.graphs import conv_lrn_gemm, images
from tests.helpers.kserve import grpc_server, http_server

RUNTIMES = ("onnxruntime-cpu", "openvino", "pytorch")
HOLDS = {"onnxruntime-cpu": "_opened", "openvino": "_opened", "pytorch": "_model"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with weights that are mapped, and a checkpoint."""
    folder = tmp_path_factory.mktemp("close")
    onnx.save(with_large_weights(), folder / "model.onnx")
    save_checkpoint(folder / "lenet.safetensors", untrained("lenet", 10, seed=0))
    return folder


def with_large_weights() -> onnx.ModelProto:
    """A graph one of whose initializers is of a megabyte, unused by the answer and yet a weight."""
    proto = conv_lrn_gemm()
    large = numpy_helper.from_array(np.ones((512, 512), np.float32), "large")
    proto.graph.initializer.append(large)
    proto.graph.node.append(onnx.helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, ()))
    return proto


def opened(folder: Path, runtime: str) -> Runner:
    return alexdeploy.load(folder / ("lenet.safetensors" if runtime == "pytorch" else "model.onnx"), runtime=runtime)


def batch_for(runner: Runner) -> Batch:
    return images(2) if runner.runtime != "pytorch" else np.zeros((2, 1, 28, 28), np.float32)


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_closed_runner_refuses_every_call(folder: Path, runtime: str) -> None:
    runner = opened(folder, runtime)
    batch = batch_for(runner)
    call = runner.device_call(batch)
    call()
    runner.close()
    runner.close()
    for late in (call, lambda: runner.infer(batch), lambda: runner.device_call(batch)()):
        with pytest.raises(UsageError, match="the runner is closed; load the file again"):
            late()
    if runtime == "onnxruntime-cpu":
        with pytest.raises(UsageError, match="closed"):
            runner.layer_times_ms(batch)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.usefixtures("without_garbage_collection")
def test_what_it_holds_is_gone_without_the_garbage_collector(folder: Path, runtime: str) -> None:
    runner = opened(folder, runtime)
    runner.infer(batch_for(runner))
    held = weakref.ref(getattr(runner, HOLDS[runtime]))
    runner.close()
    assert held() is None


@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("many", [False, True], ids=["load", "Classifier"])
def test_no_file_stays_open_or_mapped(folder: Path, many: bool) -> None:
    def once() -> None:
        if many:
            alexdeploy.Classifier(folder / "labelled.onnx").close()
        else:
            opened(folder, "onnxruntime-cpu").close()

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(folder)) + len(list(Path("/proc/self/fd").iterdir()))

    if many:
        from tests.unit.runners.test_classifier import save

        save(conv_lrn_gemm(), folder / "labelled.onnx")
    once()
    before = mapped()
    for _ in range(5):
        once()
    assert mapped() == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_closing_during_calls_gives_right_answers_or_one_refusal(folder: Path, runtime: str) -> None:
    runner = opened(folder, runtime)
    batch = batch_for(runner)
    right = runner.infer(batch)
    wrong: list[str] = []
    answers = [0] * 4
    one_each = threading.Barrier(5)

    def ask(number: int) -> None:
        for _ in range(200):
            try:
                if not np.array_equal(runner.infer(batch), right):
                    wrong.append("another answer")
            except UsageError as error:
                if "closed" not in str(error):
                    wrong.append(str(error))
                return
            except Exception as error:
                wrong.append(repr(error))
                return
            answers[number] += 1
            if answers[number] == 1:
                one_each.wait(60)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    one_each.wait(60)
    runner.close()
    for thread in threads:
        thread.join()
    assert min(answers) > 0
    assert wrong == []


@pytest.fixture(params=[*RUNTIMES, "kserve-http", "kserve-grpc"])
def open_one(request: pytest.FixtureRequest, folder: Path) -> Iterator[Callable[[], Runner]]:
    if not request.param.startswith("kserve"):
        yield lambda: opened(folder, request.param)
        return
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    from alexdeploy.runners.kserve import KServeRunner

    with grpc_server() if "grpc" in request.param else http_server() as found:
        yield lambda: KServeRunner(found if isinstance(found, str) else found[0], "double")


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_process_forked_after_the_load_is_refused_and_never_waits(open_one: Callable[[], Runner], how: str) -> None:
    runner = open_one()
    sizes = tuple(int(size) for size in runner.input.shape[1:])
    if runner.runtime == "openvino":
        runner.infer(images(40, sizes))  # starts its other threads
    batch = images(2, sizes)
    right = runner.infer(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: that is what is tried here
        child = os.fork()
    if not child:
        signal.alarm(20)  # ends it where it waits
        try:
            runner.infer(batch)
        except UsageError as error:
            code = 7 if "forked" in str(error) else 8
        else:
            code = 9
        if how == "close":
            runner.close()
        else:
            del runner
            gc.collect()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    np.testing.assert_array_equal(runner.infer(batch), right, "the parent goes on")
    runner.close()
