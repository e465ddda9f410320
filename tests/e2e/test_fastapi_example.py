"""The service of examples/ under good, bad, slow and too many clients, on loopback."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from alexdeploy.contract import METADATA_KEY, Contract
from tests.helpers.docs import ROOT
from tests.helpers.graphs import conv_lrn_gemm, run

EXAMPLE = str(ROOT / "examples" / "04_fastapi_service.py")
LABELS = ("ant", "bee", "cat", "dog")
CONTRACT = Contract(color="rgb", resize=256, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS)
# the example with other limits or another model, in a process of its own
DRIVER = """
import runpy, sys, threading, time
from alexdeploy.errors import DeviceLostError, GateError

class Fake:
    def __init__(self, model): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def __call__(self, images): return self.answer(images[0].width)

names = runpy.run_path(sys.argv[1])["main"].__globals__
{change}
names["main"](sys.argv[2], "0")
"""


@contextmanager
def service(folder: Path, change: str = "") -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    """Its address, its process and its log."""
    model = conv_lrn_gemm()
    helper.set_model_props(model, {METADATA_KEY: CONTRACT.to_json()})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    start = ["-c", DRIVER.format(change=change), EXAMPLE, "model.onnx"] if change else [EXAMPLE, "model.onnx", "0"]
    log = folder / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, *start], cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), log.read_text()
        try:
            yield line.removeprefix("listening on http://").strip(), process, log
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with service(tmp_path_factory.mktemp("service")) as (found, process, log):
        yield found
        assert process.poll() is None
        assert "Traceback" not in log.read_text()


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def picture(seed: int) -> Image.Image:
    """Two by three patches of colour: what lies in the middle differs from image to image."""
    patches = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((48, 32), Image.Resampling.NEAREST)


def expected(seed: int) -> tuple[str, float]:
    """Label and probability, with the preprocessing written out."""
    resized = picture(seed).resize((384, 256), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized.crop((188, 124, 196, 132)), np.float32) / 255
    (logits,) = run(conv_lrn_gemm(), ((pixels - 0.5) / 0.25).transpose(2, 0, 1)[None].astype(np.float32))
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    return LABELS[int(shares.argmax())], float(shares.max())


def ask(address: str, body: bytes | None = None, path: str = "/") -> tuple[int, Any, Any]:
    """Status, answer and headers."""
    client = http.client.HTTPConnection(address, timeout=60)
    try:
        client.request("GET" if body is None else "POST", path, body)
        answer = client.getresponse()
        text = answer.read().decode()
    finally:
        client.close()
    is_json = answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(text) if is_json else text, answer.headers


def value(address: str, name: str) -> float:
    """Of a metric."""
    lines = ask(address, path="/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split()[0] == name)


NEEDLE = encoded(Image.new("L", (1, 60_000)))
BAD = {
    "empty": (b"", 400, "0 bytes are no image"),
    "text": (b"SECRET", 400, "no image"),
    "DDS": (encoded(Image.new("RGB", (8, 8)), "dds"), 400, "no image"),
    "AVIF": (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1SECRET", 400, "no image"),
    "cut off": (encoded(picture(0))[:-40], 400, "cut off"),
    "too many pixels": (encoded(Image.new("1", (10_000, 10_000))), 400, "at most 50000000"),
    "needle": (NEEDLE, 400, "1 x 60000 pixels become 256 x 15360000"),
    "too many bytes": (bytes((10 << 20) + 1), 413, "at most 10485760"),
}


@pytest.mark.parametrize(("body", "status", "reason"), BAD.values(), ids=list(BAD))
def test_bad_requests_are_the_clients_mistakes(address: str, body: bytes, status: int, reason: str) -> None:
    found, answer, _ = ask(address, body)
    assert found == status
    assert reason in answer["detail"]
    assert "\n" not in answer["detail"]
    assert "SECRET" not in answer["detail"]


def raw(address: str, *parts: bytes, pause: float = 0) -> bytes:
    """What comes back on a connection until it is closed, or until the first answer's head."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        received = b""
        while b"\r\n\r\n" not in received and (more := client.recv(65536)):
            received += more
    return received


HEAD = b"POST / HTTP/1.1\r\nHost: here\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([HEAD + b"Content-Length: 99999999999\r\n\r\n"], b"413"),
        ([HEAD + b"Content-Length: many\r\n\r\n"], b"400"),
        ([HEAD + b"Content-Length: -1\r\n\r\n"], b"400"),
        ([HEAD + b"Content-Length: 3\r\n\r\nmore than that"], b"400"),
        ([HEAD + b"\r\n"], b"400"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"100000\r\n" + bytes(1 << 20) + b"\r\n"] * 11], b"413"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"], b"400"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n"], b"400"),
        ([b"no HTTP\r\n\r\n"], b"400"),
        ([b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"], b"405"),
        ([b"DELETE / HTTP/1.1\r\nHost: here\r\n\r\n"], b"405"),
        ([b"POST /metrics HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"], b"405"),
        ([b"GET /etc/passwd HTTP/1.1\r\nHost: here\r\n\r\n"], b"404"),
    ],
    ids=[
        *["huge length", "no number", "below 0", "too short", "no length", "chunks for ever", "chunks", "odd chunk"],
        *["no HTTP", "GET", "DELETE", "POST elsewhere", "another path"],
    ],
)
def test_no_head_and_no_way_to_send_a_body_gets_past_the_limits(
    address: str, parts: list[bytes], status: bytes
) -> None:
    assert raw(address, *parts).startswith(b"HTTP/1.1 " + status)


def test_32_clients_of_whom_some_are_bad_get_their_own_answers_and_memory_stays(address: str) -> None:
    bodies = [encoded(picture(seed)) for seed in range(16)]
    truth = [expected(seed) for seed in range(16)]
    assert len({label for label, _ in truth}) > 1
    assert min(np.diff(sorted(probability for _, probability in truth))) > 1e-3  # so that no answer passes for another
    bad = [content for content in BAD.values() if len(content[0]) < 1 << 20]

    def client(number: int) -> None:
        for turn in range(20):
            if (number + turn) % 5 == 0:
                body, status, reason = bad[(number + turn) // 5 % len(bad)]
                found, answer, _ = ask(address, body)
                assert found == status
                assert reason in answer["detail"]
            else:
                seed = (number * 7 + turn) % 16
                found, answer, _ = ask(address, bodies[seed])
                assert (found, answer["label"]) == (200, truth[seed][0])
                assert answer["probability"] == pytest.approx(truth[seed][1], rel=1e-4)

    def load() -> tuple[float, float]:
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(client, range(32)))
        return value(address, 'requests_total{status="200"}'), value(address, "process_resident_memory_bytes")

    good, _ = load()
    _, before = load()
    again, after = load()
    assert again - good == 2 * 32 * 20 * 4 / 5
    assert after - before < 20e6
    assert value(address, "requests_in_flight") == 0


def test_probes_and_metrics(address: str) -> None:
    assert ask(address, path="/health")[:2] == (200, {"status": "alive"})
    assert ask(address, path="/ready")[:2] == (200, {"status": "ready"})
    names = ('requests_total{status="200"}', 'requests_total{status="400"}', "request_seconds_count")
    before = [value(address, name) for name in names]
    ask(address, encoded(picture(0)))
    ask(address, b"SECRET")
    assert [value(address, name) - old for name, old in zip(names, before, strict=True)] == [1, 1, 2]


def test_slow_clients_are_hung_up_on(tmp_path: Path) -> None:
    with service(tmp_path, "names.update(SECONDS=1, MAX_BYTES=1000)") as (address, _, _):
        chunks, refused = b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 9999\r\n\r\n"
        for head, part in [
            (b"POST / HT", b"T"),
            (HEAD + b"Content-Length: 900\r\n\r\n", b"a"),
            (HEAD + chunks, b"1\r\na\r\n"),
            (HEAD + refused, b"a"),  # goes on after it was refused
        ]:
            with pytest.raises(ConnectionError):
                raw(address, head, *[part] * 100, pause=0.1)
        assert raw(address) == b""
        assert ask(address, encoded(picture(0)))[0] == 200


def test_too_many_requests_are_sent_away_at_once(tmp_path: Path) -> None:
    change = """
class Slow(Fake):
    def answer(self, width):
        while not __import__("os").path.exists("go"): time.sleep(0.02)
        return [(str(width), 1.0)]
names.update(Classifier=Slow, THREADS=2, WAITING=3)
"""
    with service(tmp_path, change) as (address, _, _), ThreadPoolExecutor(5) as pool:
        running = [pool.submit(ask, address, encoded(Image.new("L", (9 + i, 9)))) for i in range(5)]
        while ask(address, path="/ready")[0] == 200:
            time.sleep(0.02)
        status, answer, headers = ask(address, encoded(Image.new("L", (9, 9))))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "wait" in answer["detail"]
        assert ask(address, path="/health")[0] == 200
        (tmp_path / "go").touch()
        assert [future.result()[1]["label"] for future in running] == ["9", "10", "11", "12", "13"]
        assert ask(address, path="/ready")[0] == 200


def test_a_model_that_fails_is_503_and_a_line_in_the_log(tmp_path: Path) -> None:
    change = """
class Broken(Fake):
    def answer(self, width): raise GateError("logits are NaN")
names["Classifier"] = Broken
"""
    with service(tmp_path, change) as (address, _, log):
        status, answer, _ = ask(address, encoded(picture(0)))
        assert status == 503
        assert "NaN" not in answer["detail"]
        assert "the model failed: logits are NaN" in log.read_text()
        assert ask(address, path="/health")[0] == 200


def test_a_lost_gpu_ends_the_process_with_6_though_a_thread_hangs(tmp_path: Path) -> None:
    change = """
class Lost(Fake):
    def answer(self, width):
        if width == 1: time.sleep(1000)
        raise DeviceLostError("CUDA: an illegal memory access was encountered")
names.update(Classifier=Lost, SECONDS=1)
"""
    with service(tmp_path, change) as (address, process, log), ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(ask, address, encoded(Image.new("L", (1, 1))))
        while value(address, "requests_in_flight") != 1:
            time.sleep(0.02)
        assert ask(address, encoded(picture(0)))[0] == 503
        assert process.wait(30) == 6
        assert log.read_text().endswith("error: CUDA: an illegal memory access was encountered\n")
        assert hanging.result()[0] == 500


def test_sigterm_answers_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    change = """
class Slow(Fake):
    def answer(self, width):
        time.sleep(1)
        return [("done", 1.0)]
names["Classifier"] = Slow
"""
    with service(tmp_path, change) as (address, process, log), ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, address, encoded(picture(0)))
        while value(address, "requests_in_flight") != 1:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        assert running.result()[:2] == (200, {"label": "done", "probability": 1.0})
        assert process.wait(30) == 0
        assert log.read_text() == ""
        with pytest.raises(OSError, match="refused"):
            ask(address, path="/health")


def test_a_taken_port_and_a_missing_model_are_one_line(address: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    for path, port, code, reason in ((model, "0", 3, "model.onnx"), (None, address.split(":")[1], 1, "in use")):
        if path is None:
            found = conv_lrn_gemm()
            helper.set_model_props(found, {METADATA_KEY: CONTRACT.to_json()})
            model.write_bytes(found.SerializeToString())
        result = subprocess.run([sys.executable, EXAMPLE, model, port], capture_output=True, text=True, check=False)
        assert result.returncode == code
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 1
