"""A model inside an application: threads, loading and closing, forks: ``python -m tests.bench.embedding [RUNTIME …]``.

Each runtime has a process of its own. Every answer of 16 threads must equal that of one thread, bit for bit; memory
(RSS, which other processes do not change) may grow by 5 MiB over all loads after the first ``_WARM_UP``, descriptors
and threads by none. By hand, minutes: ``--calls`` and ``--loads`` make it shorter. Engines are tried on the driver of
tests/simulated_cuda.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import alexdeploy
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import AlexdeployError, UsageError
from alexdeploy.runners.base import Runner
from alexdeploy.zoo.checkpoint import save_checkpoint, untrained
from tests.helpers.graphs import Array, conv_lrn_gemm
from tests.helpers.kserve import grpc_server, http_server

RUNTIMES = ("onnxruntime-cpu", "openvino", "pytorch", "kserve-http", "kserve-grpc")
THREADS, ROUNDS, MOST_MIB = 16, 20, 5.0
_WARM_UP = 20
CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog"))
HEAD = ("runtime", "runner: differ", "Classifier", "loads", "MiB", "files", "threads", "fork", "spawn", "close")
FORMAT = "{:16} {:>15} {:>15} {:>6} {:>6} {:>5} {:>7} {:>8} {:>6} {:>7}"


def main() -> None:
    """Print a row for each runtime; exit with 1 where one misses a bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtimes", nargs="*", default=RUNTIMES, metavar="RUNTIME")
    parser.add_argument("--calls", type=int, default=10_000, help="of each of the 16 threads")
    parser.add_argument("--loads", type=int, default=500)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.runtimes[0], given.calls, given.loads)))
        return
    print(FORMAT.format(*HEAD), flush=True)
    failed = False
    for runtime in given.runtimes:
        options = ["--one", runtime, "--calls", str(given.calls), "--loads", str(given.loads)]
        done = subprocess.run([sys.executable, "-m", __spec__.name, *options], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            print(f"{runtime:16} ended with {done.returncode}", flush=True)
            failed = True
            continue
        row, good = json.loads(done.stdout)
        print(FORMAT.format(*row), flush=True)
        failed |= not good
    sys.exit(failed)


def measured(runtime: str, calls: int, loads: int) -> tuple[list[str], bool]:
    """The row, and whether it meets the bars."""
    with opener(runtime) as (load, path):
        with load() as runner:
            wrong = by_threads(runner.infer, [batch_for(runner, 1 + seed % 5, seed) for seed in range(32)], calls)
            forked = in_a_fork(runner)
        growth, files, threads = load_and_close(load, loads)  # a server of ours has all its threads by now
        labels = None
        if path is not None:
            with alexdeploy.Classifier(path, runtime=runtime) as classifier:
                random_ = np.random.default_rng(0)
                pixels = [random_.integers(0, 256, (1, 9, 12, 3), np.uint8) for _ in range(32)]
                labels = by_threads(classifier, pixels, calls)
        spawned = "-" if path is None else in_a_spawn(load, path, runtime)
        closed = while_called(load)
    total = THREADS * calls
    row = [runtime, f"{wrong}/{total}", "-" if labels is None else f"{labels}/{total}", str(loads), f"{growth:.1f}"]
    row += [f"{files:+d}", f"{threads:+d}", forked, spawned, closed]
    good = not wrong and not labels and growth <= MOST_MIB and not files and not threads
    return row, good and forked == "refused" and spawned in ("-", "equal") and closed == "right"


@contextlib.contextmanager
def opener(runtime: str) -> Iterator[tuple[Callable[[], Runner], Path | None]]:
    """What loads it, and the file, where there is one."""
    if runtime.startswith("kserve"):
        from alexdeploy.runners.kserve import KServeRunner

        with grpc_server() if "grpc" in runtime else http_server() as found:
            yield lambda: KServeRunner(found if isinstance(found, str) else found[0], "double"), None
        return
    with TemporaryDirectory() as folder:
        path = Path(folder, "lenet.safetensors" if runtime == "pytorch" else "model.onnx")
        if runtime == "pytorch":
            save_checkpoint(path, untrained("lenet", 10, seed=0))
        else:
            onnx.save(with_weights(4 << 20), path)
        yield lambda: alexdeploy.load(path, runtime=runtime), path


def with_weights(size: int) -> onnx.ModelProto:
    """A small network with as many bytes of weights beside it, which it maps and packs and does not use."""
    proto = conv_lrn_gemm()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((256, size // 1024), np.float32), "large"))
    proto.graph.node.append(helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("most", onnx.TensorProto.FLOAT, ()))
    helper.set_model_props(proto, {METADATA_KEY: CONTRACT.to_json()})
    return proto


def batch_for(runner: Runner, count: int, seed: int = 0) -> Array:
    shape = (min(count, 4), *(int(size) for size in runner.input.shape[1:]))
    return np.random.default_rng(seed).random(shape, np.float32)


def by_threads(call: Callable[[Any], Any], inputs: list[Array], calls: int) -> int:
    """How many answers of all threads differ from those of one; other exceptions than none are differences."""
    expected = [call(one) for one in inputs]

    def work(thread: int) -> int:
        order, wrong = random.Random(thread), 0
        for _ in range(calls):
            index = order.randrange(len(inputs))
            wrong += not np.array_equal(call(inputs[index]), expected[index])
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


def load_and_close(load: Callable[[], Runner], loads: int) -> tuple[float, int, int]:
    """Growth after the warm-up: MiB of memory, open files, threads."""

    def once() -> None:
        with load() as runner:
            runner.infer(batch_for(runner, 2))

    for _ in range(_WARM_UP):
        once()
    before = used()
    for _ in range(loads):
        once()
    time.sleep(0.5)  # threads of a server end by themselves
    rss, files, threads = (now - then for now, then in zip(used(), before, strict=True))
    return rss / (1 << 20), files, threads


def used() -> tuple[int, int, int]:
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    rss = next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Rss:"))
    return rss, len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


def in_a_fork(runner: Runner) -> str:
    """What a child says to a call while other threads of its parent call: each of the rounds must be refused."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(0.001):
            runner.infer(batch_for(runner, 2))

    callers = [threading.Thread(target=go_on) for _ in range(4)]
    for caller in callers:
        caller.start()
    codes = set()
    for _ in range(ROUNDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            signal.alarm(30)  # ends it where it waits
            try:
                runner.infer(batch_for(runner, 2))
            except UsageError:
                runner.close()
                os._exit(0)
            os._exit(1)
        codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    ended.set()
    for caller in callers:
        caller.join()
    return {0: "refused", 1: "answers"}.get(max(codes), "hangs") if len(codes) == 1 else "mixed"


def in_a_spawn(load: Callable[[], Runner], path: Path, runtime: str) -> str:
    with load() as runner, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        right = runner.infer(batch_for(runner, 2))
        return "equal" if np.array_equal(pool.submit(answer_of, path, runtime).result(120), right) else "differs"


def answer_of(path: Path, runtime: str) -> Array:
    with alexdeploy.load(path, runtime=runtime) as runner:
        return runner.infer(batch_for(runner, 2))


def while_called(load: Callable[[], Runner]) -> str:
    """Close beneath four threads, each of the rounds: every call gives the right answer or is refused in words."""
    for _ in range(ROUNDS):
        runner = load()
        batch = batch_for(runner, 2)
        right = runner.infer(batch)

        def ask(runner: Runner = runner, batch: Array = batch, right: Array = right) -> bool:
            try:
                while np.array_equal(runner.infer(batch), right):
                    pass
            except AlexdeployError:
                return True
            return False

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask) for _ in range(4)]
            time.sleep(0.02)
            runner.close()
            if not all(one.result() for one in asked):
                return "wrong"
    return "right"


if __name__ == "__main__":
    main()
