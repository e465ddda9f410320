"""The TensorRT runner with every CUDA call executed; run by tests/unit/runners/test_tensorrt.py."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from alexdeploy.cuda import arrays
from alexdeploy.cuda.open import open_device
from alexdeploy.errors import AlexdeployError, UnavailableError, UsageError
from alexdeploy.runners.tensorrt import TensorRTRunner, _abandon
from alexdeploy.specs import BuilderName
from tests.helpers.foreign_graphs import Foreign, half_throughout, pixels, several_outputs
from tests.helpers.graphs import Array, images
from tests.simulated_cuda import engine_double
from tests.simulated_cuda.conftest import BINDING, PROFILE, expected, write_engine

MOST = PROFILE[2]
OPENING = 4  # driver calls until the device is open: one of machine.py, cuInit, cuDeviceGet, cuDevicePrimaryCtxRetain
SIZES = (1, MOST, MOST + 1, 3 * MOST, 2, 1, 3, MOST, 2, 3 * MOST, 1)


def test_layers_are_timed_in_a_context_of_their_own(engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        before = runner.infer(images(3))
        assert runner.layer_times_ms(images(3)) == {"conv1": 1.0, "logits": 2.0}
        assert runner.layer_times_ms(images(100)) == {"conv1": 1.0, "logits": 2.0}
        np.testing.assert_array_equal(runner.infer(images(3)), before)


def test_every_batch_size_is_bit_for_bit_what_onnx_runtime_gives(engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        for index, size in enumerate(SIZES * 2):
            batch = images(size, seed=index)
            np.testing.assert_array_equal(runner.infer(batch), expected(batch))
        assert (runner.input.name, runner.input.shape, runner.classes) == ("input", ("batch", 3, 8, 8), 4)


def test_a_batch_below_the_profile_is_filled_up(tmp_path: Path) -> None:
    with TensorRTRunner(write_engine(tmp_path / "fixed.engine", profile=(4, 4, 4))) as runner:
        for size in (1, 3, 5):
            batch = images(size)
            padded = np.concatenate([batch, np.zeros((-size % 4, 3, 8, 8), np.float32)])
            np.testing.assert_array_equal(runner.infer(batch), expected(padded)[:size])


def test_nothing_is_allocated_after_the_first_calls(sim: ctypes.CDLL, engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        for size in SIZES * 2:
            runner.infer(images(size))
        before = sim.sim_allocated()
        for size in SIZES * 5:
            runner.infer(images(size))
        assert sim.sim_allocated() == before


def test_a_batch_size_becomes_a_graph_where_that_is_ours_to_do(engine: Path, builder: str) -> None:
    with TensorRTRunner(engine, contexts=1) as runner:
        for _ in range(3):
            runner.infer(images(2))
        with runner._pool.lend() as execution:
            graphs = {size: prepared.graph is not None for size, prepared in execution._prepared.items()}
    assert graphs == ({} if builder == "tensorrt-rtx" else {(2, 3, 8, 8): True})


def test_more_batch_sizes_than_graphs(tmp_path: Path) -> None:
    with TensorRTRunner(write_engine(tmp_path / "wide.engine", profile=(1, 8, 12))) as runner:
        for size in [*range(1, 13), *range(12, 0, -1), 12, 11, 12]:
            batch = images(size, seed=size)
            np.testing.assert_array_equal(runner.infer(batch), expected(batch, 12))


def test_a_missing_synchronisation_would_be_seen(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TensorRTRunner(engine) as runner:
        with runner._pool.lend() as execution:
            kind = type(execution.stream)
        with monkeypatch.context() as patch:
            patch.setattr(kind, "synchronize", lambda self: None)
            assert np.isnan(runner.infer(images(2))).all()


def test_a_refused_enqueue_leaves_the_runner_usable(engine: Path) -> None:
    batch = images(3)
    with TensorRTRunner(engine) as runner:
        for _ in range(3):
            engine_double.IExecutionContext._refuse_enqueue = 3  # the first may be a capture, the next its echo
            with pytest.raises(UnavailableError, match=r"could not be enqueued: .*told to fail"):
                [runner.infer(batch) for _ in range(2)]
            engine_double.IExecutionContext._refuse_enqueue = 0
            np.testing.assert_array_equal(runner.infer(batch), expected(batch))


@pytest.mark.parametrize("refused", [1, 2, 3], ids=["once", "and its echo", "three times"])
def test_a_capture_that_fails_is_tried_three_times(tmp_path: Path, refused: int) -> None:
    batch = images(3)
    with TensorRTRunner(write_engine(tmp_path / "model.engine"), contexts=1) as runner:
        runner.infer(batch)
        for call in range(5):
            at_once = {1: (1,), 2: (2,), 3: (1, 1, 1)}[refused]
            engine_double.IExecutionContext._refuse_enqueue = at_once[call] if call < len(at_once) else 0
            np.testing.assert_array_equal(runner.infer(batch), expected(batch))
        with runner._pool.lend() as execution:
            assert (execution._prepared[3, 3, 8, 8].graph is None) == (refused == 3)


def test_a_closed_runner_says_so(engine: Path) -> None:
    runner = TensorRTRunner(engine)
    runner.close()
    runner.close()
    with pytest.raises(UsageError, match="closed"):
        runner.infer(images(1))


def test_a_forked_process_is_refused_and_touches_no_driver(sim: ctypes.CDLL, engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        runner.infer(images(1))
        held, right = sim.sim_live(), runner.infer(images(2))
        child = os.fork()
        if not child:
            signal.alarm(20)  # ends it where it waits
            refused = 0
            for call in (lambda: runner.infer(images(2)), lambda: runner.infer_on_device(None, None)):
                try:
                    call()
                except UsageError as error:
                    refused += "forked" in str(error)
            runner.close()
            _abandon(runner._held, runner._process)  # as at the end of the process
            os._exit(7 if refused == 2 and sim.sim_live() == held else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        np.testing.assert_array_equal(runner.infer(images(2)), right)


def test_an_engine_that_tensorrt_refuses(tmp_path: Path) -> None:
    path = write_engine(tmp_path / "model.engine", plan=b"no plan")
    with pytest.raises(UnavailableError, match="cannot be loaded: Serialization assertion"):
        TensorRTRunner(path)


def test_a_call_on_device_memory(engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        for size in (1, MOST, MOST + 1):
            call = runner.device_call(images(size))
            for _ in range(4):
                call()
        del call


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_eight_threads_and_a_late_one(sim: ctypes.CDLL, tmp_path: Path) -> None:
    import torch  # its CUDA must not get in the way

    assert torch.ones(2).sum() == 2
    failures: list[str] = []
    sizes = (1, 2, MOST, MOST + 1)
    batches = {(thread, size): images(size, seed=31 * thread + size) for thread in range(9) for size in sizes}
    answers = {key: expected(batch) for key, batch in batches.items()}

    def work(thread: int, calls: int) -> None:
        try:
            for call in range(calls):
                key = (thread, sizes[call % len(sizes)])
                if not np.array_equal(runner.infer(batches[key]), answers[key]):
                    failures.append(f"thread {thread}, call {call}: wrong answer")
        except Exception as error:
            failures.append(f"thread {thread}: {type(error).__name__}: {error}")
        if sim.sim_depth():
            failures.append("a context was left current")

    def run(*threads: threading.Thread) -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with TensorRTRunner(write_engine(tmp_path / "model.engine")) as runner:
        run(*(threading.Thread(target=work, args=(index, 100)) for index in range(8)))
        gc.collect()
        memory, allocated = _rss_bytes(), sim.sim_allocated()
        run(*(threading.Thread(target=work, args=(index, 400)) for index in range(8)))
        gc.collect()
        assert failures == []
        assert sim.sim_allocated() == allocated
        assert _rss_bytes() - memory < 16e6
        run(threading.Thread(target=work, args=(8, 20)))
    assert failures == []


def test_a_failure_of_any_driver_call_is_one_clear_error(sim: ctypes.CDLL, tmp_path: Path) -> None:
    path = write_engine(tmp_path / "model.engine")
    batches = [images(size, seed=size) for size in (1, 2, MOST, MOST + 1)]
    answers = [expected(batch) for batch in batches]
    failed: list[str] = []
    for call in range(1, 121):
        errors: list[AlexdeployError] = []
        runner = None
        if call <= OPENING:
            open_device.cache_clear()
            gc.collect()
            sim.sim_fail_at(call)
        else:
            open_device()
            sim.sim_fail_at(call - OPENING)
        try:
            runner = TensorRTRunner(path)
            while not sim.sim_failed():
                for batch, answer in zip(batches, answers, strict=True):
                    np.testing.assert_array_equal(runner.infer(batch), answer)
        except AlexdeployError as error:
            errors.append(error)
        failed.append(sim.sim_failed().decode())
        if runner is not None:
            for batch, answer in zip(batches, answers, strict=True):
                np.testing.assert_array_equal(runner.infer(batch), answer)
            runner.close()
        assert len(errors) <= 1
        assert all("CUDA" in str(error) for error in errors), errors
        assert sim.sim_live() == 0, f"leak after {failed[-1]} failed"
        assert sim.sim_depth() == 0
    seen = {"cuInit", "cuMemAlloc_v2", "cuStreamCreate", "cuMemcpyHtoDAsync_v2", "cuStreamSynchronize"}
    seen |= {"cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch"}
    assert seen <= set(failed)


def test_a_failure_while_closing_leaks_nothing(sim: ctypes.CDLL, tmp_path: Path) -> None:
    path = write_engine(tmp_path / "model.engine")
    for call in range(1, 100):
        runner = TensorRTRunner(path, contexts=1)
        for _ in range(3):
            runner.infer(images(2))
        sim.sim_fail_at(call)
        with contextlib.suppress(UnavailableError):
            runner.close()
        failed = sim.sim_failed()
        sim.sim_fail_at(-1)
        assert sim.sim_live() == 0, f"leak after {failed.decode()} failed"
        with pytest.raises(UsageError, match="closed"):
            runner.infer(images(1))
        if not failed:
            break
    assert call > 8


class OnDevice:
    """Device memory with both protocols, its content still under way on a stream of its own."""

    def __init__(self, device: Any, array: Array, *, tell_stream: bool = True) -> None:
        self.stream = device.stream()
        self._memory = device.allocate(array.nbytes + 256)
        self._source = device.pinned(array.shape, array.dtype)
        self._source.array[...] = array
        self.stream.upload(self._memory.pointer, self._source.array)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self._memory.pointer, False),
            "version": 3,
            "stream": self.stream.handle if tell_stream else None,
        }

    def read(self, stream: Any) -> Array:
        stream.download(self._source.array, self._memory.pointer)
        stream.synchronize()
        return np.array(self._source.array)

    def release(self) -> None:
        self.stream.synchronize()
        for thing in (self._source, self._memory, self.stream):
            thing.release()


def test_arrays_on_the_device_are_used_where_they_lie(engine: Path) -> None:
    device, batch = open_device(), images(3)
    with TensorRTRunner(engine) as runner, device.current():
        source, target = OnDevice(device, batch), OnDevice(device, np.zeros((3, 4), np.float32))
        runner.infer_on_device(source, target)
        reader = device.stream()
        np.testing.assert_array_equal(target.read(reader), expected(batch))
        unordered = OnDevice(device, images(3, seed=5), tell_stream=False)
        runner.infer_on_device(unordered, target)
        assert not np.array_equal(target.read(reader), expected(images(3, seed=5))), "a missing order is seen"
        for thing in (source, target, unordered, reader):
            thing.release()


def test_a_callers_stream_is_followed_and_led(engine: Path) -> None:
    device, batch = open_device(), images(2)
    with TensorRTRunner(engine) as runner, device.current():
        source, target = OnDevice(device, batch), OnDevice(device, np.zeros((2, 4), np.float32))
        target.stream.synchronize()
        runner.infer_on_device(source, target, stream=source.stream.handle)
        np.testing.assert_array_equal(target.read(source.stream), expected(batch))
        for thing in (source, target):
            thing.release()


class Exported:
    """Device memory that only DLPack tells of; the producer puts its work before the consumer's stream."""

    def __init__(self, array: OnDevice) -> None:
        self._array = array
        shape = array.__cuda_array_interface__["shape"]
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        pointer = array.__cuda_array_interface__["data"][0]
        self._tensor = arrays._DLTensor(pointer, 2, 0, len(shape), 2, 32, 1, self._shape, None, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self._tensor.device_id)

    def __dlpack__(self, *, stream: int) -> object:
        assert stream > 2, "the consumer names its stream"
        follower = self._array.stream
        follower.lead(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self._tensor), b"dltensor", None)


def test_dlpack_is_asked_for_the_runners_stream(engine: Path) -> None:
    device, batch = open_device(), images(4)
    with TensorRTRunner(engine) as runner, device.current():
        source, target = OnDevice(device, batch), OnDevice(device, np.zeros((4, 4), np.float32))
        runner.infer_on_device(Exported(source), Exported(target))
        np.testing.assert_array_equal(target.read(target.stream), expected(batch))
        elsewhere = Exported(source)
        elsewhere._tensor.device_id = 1
        with pytest.raises(UsageError, match="on CUDA device 1"):
            runner.infer_on_device(elsewhere, target)
        for thing in (source, target):
            thing.release()


@pytest.mark.skipif(BINDING == "cuda-python", reason="PyCUDA's own arrays")
def test_gpu_arrays_of_pycuda(engine: Path) -> None:
    from pycuda import gpuarray

    device, batch = open_device(), images(3)
    with TensorRTRunner(engine) as runner, device.current():
        source, target = gpuarray.to_gpu(batch), gpuarray.empty((3, 4), np.float32)
        runner.infer_on_device(source, target)
        np.testing.assert_array_equal(target.get(), expected(batch))
        del source, target


def test_arrays_that_the_engine_cannot_take(engine: Path) -> None:
    device = open_device()
    with TensorRTRunner(engine, contexts=1) as runner, device.current():
        good, out = OnDevice(device, images(2)), OnDevice(device, np.zeros((2, 4), np.float32))
        wrong = {
            "not on the GPU": images(2),
            r"expected \(2, 3, 8, 8\)": OnDevice(device, images(2)[:, :2].copy()),
            "lies outside the profile": OnDevice(device, images(9)),
            "float64": OnDevice(device, images(2).astype(np.float64)),
        }
        large = OnDevice(device, np.zeros((9, 4), np.float32))
        with runner._pool.lend() as before:
            pass
        for words, array in wrong.items():
            with pytest.raises(UsageError, match=words):
                runner.infer_on_device(array, large if "outside" in words else out)
        good.__cuda_array_interface__["strides"] = (4, 4, 4, 4)
        with pytest.raises(UsageError, match="not C-contiguous"):
            runner.infer_on_device(good, out)
        good.__cuda_array_interface__.update(strides=None, data=(good._memory.pointer + 4, False))
        with pytest.raises(UsageError, match="multiple of 256"):
            runner.infer_on_device(good, out)
        with runner._pool.lend() as after:
            assert after is before, "nothing was thrown away for it"
        for thing in (good, out, large, *wrong.values()):
            if isinstance(thing, OnDevice):
                thing.release()


def test_an_engine_of_any_size_runs_at_every_size_it_accepts(tmp_path: Path, builder: BuilderName) -> None:
    model = any_size_network()
    shapes = [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 12, 16]]
    plan = engine_double.make_plan(model, (shapes[0], shapes[1], shapes[2]))
    path = write_engine(tmp_path / "any.engine", builder, plan=plan)
    session = engine_double.open_session(model)
    random = np.random.default_rng(0)
    with TensorRTRunner(path, contexts=1) as runner:
        assert runner.input.shape == ("batch", 3, "size2", "size3")
        for height, width in [(8, 8), (12, 16), (9, 13), (8, 8), (12, 8)] * 3:
            for count in (1, 4, 6):
                batch = random.random((count, 3, height, width), dtype=np.float32)
                wanted = session.run(None, {"input": batch})[0].mean(axis=(2, 3))
                np.testing.assert_allclose(runner.infer(batch), wanted, rtol=1e-5, atol=1e-6)
                runner.device_call(batch)()
        for height, width in [(7, 8), (12, 17)]:
            with pytest.raises(UsageError, match=r"lie outside the engine's profile 1x3x8x8:2x3x8x8:4x3x12x16"):
                runner.infer(np.zeros((1, 3, height, width), np.float32))


@pytest.mark.parametrize("make", [pixels, half_throughout, several_outputs])
def test_an_engine_of_another_type_or_layout_takes_its_own(make: Callable[[], Foreign], tmp_path: Path) -> None:
    foreign = make()
    if make is several_outputs:  # the double knows no int64
        del foreign.model.graph.output[1]
    model = foreign.model.SerializeToString()
    shape, dtype = foreign.contract.input_shape, foreign.contract.input_type
    path = write_engine(tmp_path / "own.engine", plan=engine_double.make_plan(model, PROFILE))
    session = engine_double.open_session(model)
    batch = (np.random.default_rng(0).random((6, *shape)) * 255).astype(dtype)
    pieces = [session.run([foreign.logits], {"image": piece})[0] for piece in (batch[:MOST], batch[MOST:])]
    with TensorRTRunner(path) as runner:
        assert (runner.input.shape, runner.input.dtype, runner.classes) == (("batch", *shape), dtype, 4)
        answer = runner.infer(batch)
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, np.concatenate(pieces))
        runner.device_call(batch)()
        wide = batch.astype(np.float32)
        if dtype == "uint8":
            with pytest.raises(UsageError, match=r"type float32; expected \(N, 8, 8, 3\) uint8"):
                runner.infer(wide)
        else:  # a float16 engine rounds them
            np.testing.assert_array_equal(runner.infer(wide), answer)


def any_size_network() -> bytes:
    """A convolution of stride 2 on images of any size: (batch, 4, about half, about half)."""
    weights = numpy_helper.from_array(np.random.default_rng(1).random((4, 3, 3, 3), dtype=np.float32), "weights")
    node = helper.make_node("Conv", ["input", "weights"], ["logits"], "conv1", strides=[2, 2], pads=[1, 1, 1, 1])
    start = helper.make_tensor_value_info("input", 1, ["batch", 3, "height", "width"])
    end = helper.make_tensor_value_info("logits", 1, ["batch", 4, "rows", "columns"])
    graph = helper.make_graph([node], "any-size", [start], [end], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())
