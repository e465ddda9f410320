from __future__ import annotations

import contextlib
import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient", reason="tritonclient is not installed")

from alexdeploy.errors import InputError, UnavailableError, UsageError
from alexdeploy.runners.kserve import Counters, KServeRunner
from alexdeploy.specs import TensorSpec
from tests.helpers.kserve import grpc_server, http_server


@pytest.fixture(scope="module")
def http() -> Iterator[tuple[str, set[int]]]:
    with http_server() as server:
        yield server


@pytest.fixture(scope="module")
def grpc() -> Iterator[str]:
    with grpc_server() as url:
        yield url


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, http: tuple[str, set[int]]) -> str:
    return http[0] if request.param == "http" else request.getfixturevalue("grpc")


def images(count: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(count).integers(0, 100, (count, 2, 2)).astype(dtype)


@pytest.mark.parametrize(("model", "dtype"), [("double", "float32"), ("half", "float16"), ("pixels", "uint8")])
def test_images_of_every_type_are_answered(url: str, model: str, dtype: str) -> None:
    batch = images(3, dtype)
    with KServeRunner(url, model) as runner:
        assert runner.runtime == f"kserve-{url[:4]}"
        assert runner.input == TensorSpec("x", (-1, 2, 2), dtype)
        assert runner.classes == 4
        assert runner.versions == ["1", "2", "10"]
        logits = runner.infer(batch)
        assert logits.dtype == np.float32
        assert (logits == batch.reshape(3, 4).astype(np.float32) * 2).all()
        logits[:] = 0  # the caller owns it
        with pytest.raises(UsageError, match=r"expected \(N, 2, 2\)"):
            runner.infer(images(3, "float64"))


def test_arrays_need_not_be_contiguous(url: str) -> None:
    batch = images(4)[::2].transpose(0, 2, 1)
    with KServeRunner(url, "double") as runner:
        assert (runner.infer(batch) == batch.reshape(2, 4) * 2).all()


def test_any_bytes_go_both_ways(url: str) -> None:
    given = np.array([[b"\x00\xff\x00"], [b""], ["grün".encode()]], object)
    with KServeRunner(url, "echo") as runner:
        found = runner.ask({"image": given})
        assert found["same"].tolist() == given.tolist()
        assert found["length"].tolist() == [[3], [0], [5]]
        with pytest.raises(InputError, match="expected float32, float16, uint8 images"):
            runner.infer(given)


def test_classes_in_order_with_their_names(url: str) -> None:
    with KServeRunner(url, "double") as runner:
        found = runner.ask({"x": np.array([[[1, 4], [2, 3]]], np.float32)}, top=2)
    assert found["y"].tolist() == [[b"8.000000:1:name 1", b"6.000000:3:name 3"]]


def test_what_the_server_refuses(url: str) -> None:
    with pytest.raises(InputError, match=r"'nothing': .*unknown model: 'nothing'"):
        KServeRunner(url, "nothing")
    with pytest.raises(InputError, match=r"'double, version 7': .*version 7 is not found"):
        KServeRunner(url, "double", version="7")
    with KServeRunner(url, "double", version="2") as runner:
        with pytest.raises(InputError, match="batch-size must be <= 4"):
            runner.infer(images(5))
        with pytest.raises(InputError, match="unexpected inference input 'z'"):
            runner.ask({"z": images(1)})
        with pytest.raises(UsageError, match="'x' is an array of type <U1"):
            runner.ask({"x": np.array(["1"])})
        assert len(runner.infer(images(4))) == 4  # and is as good as before


def test_a_model_whose_logits_are_not_known(url: str) -> None:
    with KServeRunner(url, "two") as runner:
        assert runner.classes is None
        with pytest.raises(InputError, match=r"has the outputs y .*, z "):
            runner.infer(images(1))


@pytest.mark.parametrize(("model", "why"), [("odd", "has 'x' of type 'FP4'"), ("none", "has 0 inputs and 0 outputs")])
def test_a_model_that_cannot_be_asked(url: str, model: str, why: str) -> None:
    with pytest.raises(UnavailableError, match=why):
        KServeRunner(url, model)


def test_configuration(url: str) -> None:
    with KServeRunner(url, "double") as runner:
        config = runner.config()
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("double", 4, [2, 2])
    assert config.input[0].data_type == 11  # TYPE_FP32
    assert config.parameters["file"].string_value == "model.onnx"
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert config.dynamic_batching.max_queue_delay_microseconds == 7


def test_counters_of_all_versions(url: str) -> None:
    with KServeRunner(url, "double") as runner:
        found = runner.counters()
    assert found == Counters(inferences=36, executions=15, queue_ns=300, compute_ns=68, requests=18, failed=3)
    assert found - Counters(6, 5, 100, 8, 8, 3) == Counters(30, 10, 200, 60, 10, 0)


def test_a_server_that_does_not_count(url: str) -> None:
    with KServeRunner(url, "half") as runner:
        assert runner.counters() is None


def test_threads_share_it_and_get_their_own_answers(url: str) -> None:
    with KServeRunner(url, "double") as runner, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> bool:
            batch = np.full((1 + number % 4, 2, 2), number, np.float32)
            return bool((runner.infer(batch) == 2 * number).all())

        assert all(pool.map(ask, range(400)))


def test_each_thread_keeps_its_connection(http: tuple[str, set[int]]) -> None:
    url, peers = http
    with KServeRunner(url, "double") as runner, ThreadPoolExecutor(3) as pool:
        barrier, before = threading.Barrier(3), len(peers)

        def ask(_: int) -> None:
            barrier.wait()
            for _ in range(5):
                runner.infer(images(1))

        list(pool.map(ask, range(3)))
    assert len(peers) - before == 3


def test_a_thread_that_ends_leaves_nothing(http: tuple[str, set[int]]) -> None:
    with KServeRunner(http[0], "double") as runner:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            thread = threading.Thread(target=runner.infer, args=(images(1),))
            thread.start()
            thread.join()
        gc.collect()
        deadline = time.monotonic() + 5  # the fake server has its ends of them in this process
        while len(list(Path("/proc/self/fd").iterdir())) > before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_connection_that_the_server_closed_is_opened_again() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: "
    tensors = [b'[{"name": "%s", "datatype": "FP32", "shape": [-1, 2, 2]}]' % name for name in (b"x", b"y")]
    content = b'{"inputs": %s, "outputs": %s}' % tuple(tensors)
    answer = head + b"%d\r\n\r\n%s" % (len(content), content)
    # which closes after each answer
    with answered_with(answer) as address, KServeRunner(address, "double", timeout_s=5) as runner:
        assert runner.versions == []
        assert [runner.config().name for _ in range(2)] == ["", ""]


def test_after_close(url: str) -> None:
    runner = KServeRunner(url, "double")
    runner.close()
    runner.close()
    with pytest.raises(UsageError, match="closed"):
        runner.infer(images(1))


def test_closing_during_calls_gives_right_answers_or_one_refusal(url: str) -> None:
    def ask(runner: KServeRunner) -> None:
        while True:
            np.testing.assert_array_equal(runner.infer(images(2)), images(2).reshape(2, 4) * 2)

    for _ in range(15):
        with KServeRunner(url, "double") as runner, ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, runner) for _ in range(4)]
            time.sleep(0.02)
            runner.close()
            for one in asked:
                assert isinstance(
                    one.exception(60), UsageError if "grpc" not in url else (UsageError, UnavailableError)
                )


def test_no_answer_in_time(url: str) -> None:
    with KServeRunner(url, "slow", timeout_s=0.3) as runner:
        for _ in range(2):  # the second waits no longer than the first
            started = time.monotonic()
            with pytest.raises(UnavailableError, match=r"no answer about 'slow' \(.*; start the server"):
                runner.infer(images(1))
            assert time.monotonic() - started < 3
        assert runner.config().name == "slow"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_listens(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UnavailableError, match=r"(?s)^[^\n]*no answer about 'double' [^\n]*refused[^\n]*$"):
        KServeRunner(f"{scheme}://127.0.0.1:{port}", "double", timeout_s=5)


def test_the_other_protocol(http: tuple[str, set[int]], grpc: str) -> None:
    with pytest.raises(UnavailableError, match=r"(?s)^[^\n]*no answer[^\n]*$"):
        KServeRunner(http[0].replace("http", "grpc"), "double", timeout_s=5)
    with pytest.raises(UnavailableError, match=r"(?s)^[^\n]*no answer[^\n]*$"):
        KServeRunner(grpc.replace("grpc", "http"), "double", timeout_s=5)


@contextlib.contextmanager
def answered_with(content: bytes) -> Iterator[str]:
    """A server that says this, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)  # which ends accept


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<html>Hi</html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1, 2, 3]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"inputs": 5}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\n\xff\n\nx",
        b'HTTP/1.1 503 Oh\r\nContent-Length: 18\r\n\r\n{"error": "a\\nbc"}',
        b'HTTP/1.1 429 Oh\r\nContent-Length: 17\r\n\r\n{"error": "busy"}',
        b"SSH-2.0-OpenSSH_9\r\n",
        b"",
    ],
)
def test_something_else_answers(content: bytes) -> None:
    with answered_with(content) as address, pytest.raises(UnavailableError, match=rf"(?s)^{address}: [^\n]*$"):
        KServeRunner(address, "double", timeout_s=5)


def test_a_server_that_fails_says_why() -> None:
    content = b'{"error": "the model\\nis gone"}'
    answer = b"HTTP/1.1 500 Oh\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
    why = "fails on a request to 'double': 500: the model is gone; see the server's log"
    with answered_with(answer) as address, pytest.raises(UnavailableError, match=why):
        KServeRunner(address, "double", timeout_s=5)


@pytest.mark.parametrize(
    "url",
    [
        *("", "ftp://host:1", "http://", "http://host:port", "grpc://host", "grpc://host:1/path", "http://[::1"),
        *("http://user:secret@host:8000", "http://host:8000/?a=b", "http://host:8000/#a"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError, match="expected where a server listens, such as http://127"):
        KServeRunner(url, "double")


def test_importing_the_client_changes_no_sockets_and_threads() -> None:
    code = """
import socket, ssl, threading, time, select, queue
kept = socket.socket, ssl.SSLContext, threading.Thread, threading.Lock, time.sleep, select.select, queue.SimpleQueue
import alexdeploy.runners.kserve, sys
assert "tritonclient" not in sys.modules
import tritonclient.http, tritonclient.grpc
now = socket.socket, ssl.SSLContext, threading.Thread, threading.Lock, time.sleep, select.select, queue.SimpleQueue
assert all(a is b for a, b in zip(kept, now))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
