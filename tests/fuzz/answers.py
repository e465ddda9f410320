"""Targets that are answers: what a server of KServe's protocol sends over one connection of HTTP."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

from alexdeploy.runners import kserve
from tests.fuzz.mutate import any_bytes, json_value, splice
from tests.fuzz.target import Target
from tests.helpers.kserve import STATISTICS, configuration, metadata

_BETWEEN = b"\n--8<--\n"  # of answers


class _Stream(io.BytesIO):
    """What all answers are read from, which the end of one must not close."""

    def close(self) -> None:
        pass


class _Connection(HTTPConnection):
    """To a server that has said everything already."""

    said = b""

    def connect(self) -> None:
        self.sock: Any = mock.Mock()
        self.sock.makefile.return_value = _Stream(self.said)


def _answer(head: bytes, tail: bytes = b"", status: bytes = b"200 OK") -> bytes:
    lengths = f"Content-Length: {len(head) + len(tail)}\r\nInference-Header-Content-Length: {len(head)}\r\n".encode()
    return b"HTTP/1.1 " + status + b"\r\n" + lengths + b"\r\n" + head + tail


def _tensors(*tensors: tuple[str, str, list[int], bytes]) -> bytes:
    described = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, kind, shape, raw in tensors
    ]
    head = json.dumps({"model_name": "double", "outputs": described}).encode()
    return _answer(head, b"".join(raw for *_, raw in tensors))


def _conversations() -> Sequence[bytes]:
    """Metadata, logits, the best classes, configuration and counters, in the order of ``_check``."""
    told = _answer(json.dumps(metadata("double", "")).encode())
    logits = _tensors(("y", "FP32", [1, 4], np.ones(4, "<f4").tobytes()))
    label = b"2.0:1:ant"
    best = _tensors(("y", "BYTES", [1, 1], struct.pack("<I", len(label)) + label))
    config, counted = (_answer(json.dumps(form).encode()) for form in (configuration("double"), STATISTICS))
    plain = json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()
    refused = _answer(b'{"error": "no such model"}', status=b"404 Not Found")
    return [
        _BETWEEN.join([told, logits, best, config, counted]),
        _BETWEEN.join([told, _answer(plain), best, config, refused]),
    ]


def _one_answer(random: Random, data: bytes) -> bytes:
    """Mutate the JSON, the binary part or the whole of one answer; the lengths are right where they were."""
    answers = data.split(_BETWEEN)
    at = random.randrange(len(answers))
    head, _, body = answers[at].partition(b"\r\n\r\n")
    end = body.rfind(b"}") + 1
    action = random.randrange(4)
    if action == 0:
        answers[at] = any_bytes(random, answers[at])
    elif action == 1:
        answers[at] = _answer(body[:end], any_bytes(random, body[end:]))
    elif action == 2 and random.random() < 0.2:
        answers[at] = splice(random, head, random.choice(answers))
    else:
        answers[at] = _answer(json_value(random, body[:end]), body[end:])
    return _BETWEEN.join(answers)


def _check(path: Path) -> None:
    _Connection.said = path.read_bytes().replace(_BETWEEN, b"")
    with (
        mock.patch.object(kserve, "HTTPConnection", _Connection),
        kserve.KServeRunner("http://server", "double", timeout_s=1) as runner,
    ):
        batch = np.zeros((1, 2, 2), np.float32)
        runner.infer(batch)
        runner.ask({"x": batch}, top=1)
        runner.config()
        runner.counters()


TARGETS = (Target("kserve_http", _conversations, _check, "answers", (_one_answer,)),)
