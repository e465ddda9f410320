"""The web service of docs/guide/embed.md runs as printed, without torch, under several clients at once."""

from __future__ import annotations

import io
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.preprocess import preprocess
from tests.helpers.docs import ROOT, python_blocks
from tests.helpers.graphs import conv_lrn_gemm, run

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog"))
PREAMBLE = "import sys\nfor name in ('torch', 'torchvision'): sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the service answers; it must not have failed in the end, nor may a client have a traceback in its log."""
    tmp_path = tmp_path_factory.mktemp("service")
    model = conv_lrn_gemm()
    helper.set_model_props(model, {METADATA_KEY: CONTRACT.to_json()})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (block,) = (b for b in python_blocks(ROOT / "docs" / "guide" / "embed.md") if "serve_forever" in b)
    block = block.replace("8000", str(port)).replace("timeout = 20", "timeout = 2")
    (tmp_path / "service.py").write_text(PREAMBLE + block)
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen([sys.executable, "service.py"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        for _ in range(300):
            assert service.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        assert service.poll() is None
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        service.kill()
        service.wait()


def test_the_web_service_of_the_guide(address: str) -> None:
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 12, 3), np.uint8)) for i in range(8)]

    def ask(picture: Image.Image) -> dict[str, object]:
        file = io.BytesIO()
        picture.save(file, "png")
        with urllib.request.urlopen(address, file.getvalue(), timeout=30) as answer:
            found: dict[str, object] = json.load(answer)
        return found

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, pictures * 10))
    for picture, answer in zip(pictures * 10, answers, strict=True):
        (logits,) = run(conv_lrn_gemm(), preprocess(picture, CONTRACT)[None])
        probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum()
        assert answer["label"] == CONTRACT.labels[int(probabilities.argmax())]
        assert answer["probability"] == pytest.approx(probabilities.max(), rel=1e-4)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(address, b"not an image", timeout=30)


PNG = io.BytesIO()
Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(PNG, "png")
REQUESTS = {
    "no length": (b"POST / HTTP/1.1\r\n\r\n", 411),
    "no number": (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 411),
    "negative": (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
    "huge": (b"POST / HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n", 411),
    "of 5000 digits": (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 411),
    "chunked": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nSECR\r\n0\r\n\r\n", 411),
    "less than it says": (b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\nSECRET", None),
    "a head without end": (b"POST / HTTP/1.1\r\nX: ", None),
    "text": (b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nSECRET", 400),
    "cut off": (b"POST / HTTP/1.1\r\nContent-Length: 60\r\n\r\n" + PNG.getvalue()[:50].ljust(60), 400),
    "headers of 100 kB": (b"POST / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    "GET": (b"GET /SECRET HTTP/1.1\r\n\r\n", 501),
    "HEAD": (b"HEAD / HTTP/1.1\r\n\r\n", 501),
    "no HTTP": (b"hello\r\n\r\n", None),
    "HTTP/1.0": (b"POST /x HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(PNG.getvalue()) + PNG.getvalue(), 200),
}


@pytest.mark.parametrize(("request_", "status"), REQUESTS.values(), ids=list(REQUESTS))
def test_whatever_a_client_sends_is_answered_or_its_connection_closed(
    address: str, request_: bytes, status: int | None
) -> None:
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30) as client:
        client.sendall(request_)
        answer = b""
        while more := client.recv(65536):
            answer += more
    assert b"SECR" not in answer
    assert (int(answer.split()[1]) if answer.startswith(b"HTTP/") else None) == status


@pytest.mark.parametrize("request_", [REQUESTS["HTTP/1.0"][0], REQUESTS["less than it says"][0], b"POST / HT"])
def test_a_client_that_leaves_early_is_no_matter(address: str, request_: bytes) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
            client.sendall(request_)
            time.sleep(0.02)
