"""A small server of KServe's protocol v2, HTTP and gRPC, written from the protocol's text and not from our client.

Its models: ``double`` (x FP32 [-1, 2, 2] → the four values times two, as ``y`` FP32 [-1, 4]), ``half`` and ``pixels``
(the same from FP16 and UINT8), ``echo`` (bytes → the same bytes and their length), ``two`` (two rows of scores),
``odd`` (of a type that nobody knows), ``none`` (without inputs) and ``slow`` (``double`` after a while). Batches beyond
4 are refused.
"""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

DOUBLES = {"double": "FP32", "half": "FP16", "pixels": "UINT8", "slow": "FP32"}
NUMPY = {"FP32": "<f4", "FP16": "<f2", "UINT8": "u1", "INT32": "<i4"}
SLOW_S = 5.0
VERSIONS = ["1", "2", "10"]
STATISTICS = {
    "model_stats": [
        {
            "name": "double",
            "version": version,
            "inference_count": 12 * scale,
            "execution_count": 5 * scale,
            "inference_stats": {
                "success": {"count": 6 * scale, "ns": 1000},
                "fail": {"count": scale},
                "queue": {"count": 6, "ns": 100 * scale},
                "compute_input": {"count": 6, "ns": 1},
                "compute_infer": {"count": 6, "ns": 20 * scale},
                "compute_output": {"count": 6, "ns": 3},
            },
        }
        for version, scale in (("1", 1), ("2", 2))
    ],
    "a_field_of_the_future": True,
}


class RefusedError(Exception):
    """(HTTP status, name of the gRPC status, message)."""


def metadata(model: str, version: str) -> dict[str, Any]:
    if version not in ("", *VERSIONS):
        raise RefusedError(404, "NOT_FOUND", f"Request for unknown model: '{model}' version {version} is not found")
    if model in DOUBLES:
        inputs, outputs = [("x", DOUBLES[model], [-1, 2, 2])], [("y", "FP32", [-1, 4])]
    elif model == "echo":
        inputs, outputs = [("image", "BYTES", [-1, 1])], [("same", "BYTES", [-1, 1]), ("length", "INT32", [-1, 1])]
    elif model == "two":
        inputs, outputs = [("x", "FP32", [-1, 2, 2])], [("y", "FP32", [-1, 4]), ("z", "FP32", [-1, 4])]
    elif model == "odd":
        inputs, outputs = [("x", "FP4", [-1, 2, 2])], [("y", "FP32", [-1, 4])]
    elif model == "none":
        inputs, outputs = [], []
    else:
        raise RefusedError(404, "NOT_FOUND", f"Request for unknown model: '{model}' is not found")
    tensors = [
        [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in tensors]
        for tensors in (inputs, outputs)
    ]
    return {"name": model, "versions": VERSIONS, "platform": "", "inputs": tensors[0], "outputs": tensors[1]}


def configuration(model: str) -> dict[str, Any]:
    return {
        "name": model,
        "max_batch_size": 4,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2, 2]}],
        "parameters": {"file": {"string_value": "model.onnx"}},
        "version_policy": {"all": {}},
        "dynamic_batching": {"max_queue_delay_microseconds": 7},
    }


def answer(model: str, name: str, kind: str, shape: list[int], raw: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """By name (type, shape, bytes) of each output."""
    if shape[0] > 4:
        raise RefusedError(400, "INVALID_ARGUMENT", "inference request batch-size must be <= 4")
    if model == "slow":
        time.sleep(SLOW_S)
    if model == "echo":
        lengths = [struct.pack("<i", length) for length in _lengths(raw)]
        return {"same": ("BYTES", shape, raw), "length": ("INT32", shape, b"".join(lengths))}
    if name != "x" or kind != DOUBLES[model]:
        raise RefusedError(400, "INVALID_ARGUMENT", f"unexpected inference input '{name}' of type {kind}")
    values = np.frombuffer(raw, NUMPY[kind]).reshape(shape[0], 4).astype("<f4") * 2
    return {"y": ("FP32", [shape[0], 4], values.tobytes())}


def classes(raw: bytes, count: int) -> tuple[str, list[int], bytes]:
    """Triton's classification extension."""
    rows = np.frombuffer(raw, "<f4").reshape(-1, 4)
    texts = [f"{row[index]:f}:{index}:name {index}" for row in rows for index in np.argsort(-row)[:count]]
    encoded = b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)
    return "BYTES", [len(rows), count], encoded


def _lengths(raw: bytes) -> Iterator[int]:
    position = 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        yield length
        position += 4 + length


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._respond(b"")

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        if len(body := self.rfile.read(size)) == size:  # else the client has gone
            self._respond(body)

    def _respond(self, body: bytes) -> None:
        peers: set[int] = self.server.peers  # type: ignore[attr-defined]
        peers.add(self.client_address[1])
        status, head, tail = 200, b"", b""
        try:
            head, tail = self._answer(body)
        except RefusedError as error:
            status, head = error.args[0], json.dumps({"error": error.args[2]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(head) + len(tail)))
        if tail:
            self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(head + tail)

    def _answer(self, body: bytes) -> tuple[bytes, bytes]:
        parts = self.path.strip("/").split("/")
        if parts[:2] != ["v2", "models"]:
            return b"<html>Welcome!</html>", b""
        model, rest = parts[2], parts[3:]
        version = rest[1] if rest[:1] == ["versions"] else ""
        found, what = metadata(model, version), rest[-1] if rest[-1:] in (["infer"], ["stats"], ["config"]) else ""
        if what == "config":
            return json.dumps(configuration(model)).encode(), b""
        if what == "stats":
            if model != "double":
                raise RefusedError(404, "NOT_FOUND", "no statistics")
            return json.dumps(STATISTICS).encode(), b""
        return self._infer(model, body) if what else (json.dumps(found).encode(), b"")

    def _infer(self, model: str, body: bytes) -> tuple[bytes, bytes]:
        size = int(self.headers["Inference-Header-Content-Length"])
        request, raw = json.loads(body[:size]), body[size:]
        [given] = request["inputs"]
        assert given["parameters"]["binary_data_size"] == len(raw)
        outputs = answer(model, given["name"], given["datatype"], given["shape"], raw)
        described, data = [], b""
        for wanted in request["outputs"]:
            kind, shape, content = outputs[wanted["name"]]
            if count := wanted["parameters"].get("classification"):
                kind, shape, content = classes(content, count)
            held = {"binary_data_size": len(content)}
            described.append({"name": wanted["name"], "datatype": kind, "shape": shape, "parameters": held})
            data += content
        return json.dumps({"model_name": model, "outputs": described}).encode(), data


@contextlib.contextmanager
def http_server() -> Iterator[tuple[str, set[int]]]:
    """(its URL, the ports that its clients have come from)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.peers = set()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.peers  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def grpc_server() -> Iterator[str]:
    """Its URL."""
    import grpc
    from google.protobuf.json_format import ParseDict
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc.service_pb2_grpc import (
        GRPCInferenceServiceServicer,
        add_GRPCInferenceServiceServicer_to_server,
    )

    class Servicer(GRPCInferenceServiceServicer):  # type: ignore[misc]
        def _described(self, request: Any, context: Any) -> dict[str, Any]:
            try:
                return metadata(request.name, request.version)
            except RefusedError as error:
                context.abort(getattr(grpc.StatusCode, error.args[1]), error.args[2])
                raise

        def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
            return ParseDict(self._described(request, context), messages.ModelMetadataResponse())

        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
            self._described(request, context)
            return ParseDict({"config": configuration(request.name)}, messages.ModelConfigResponse())

        def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
            if request.name != "double":
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "no statistics")
            return ParseDict(STATISTICS, messages.ModelStatisticsResponse(), ignore_unknown_fields=True)

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            [given], [raw] = request.inputs, request.raw_input_contents
            try:
                outputs = answer(request.model_name, given.name, given.datatype, list(given.shape), raw)
            except RefusedError as error:
                context.abort(getattr(grpc.StatusCode, error.args[1]), error.args[2])
            response = messages.ModelInferResponse(model_name=request.model_name)
            for wanted in request.outputs:
                kind, shape, content = outputs[wanted.name]
                if count := wanted.parameters["classification"].int64_param:
                    kind, shape, content = classes(content, count)
                response.outputs.add(name=wanted.name, datatype=kind, shape=shape)
                response.raw_output_contents.append(content)
            return response

    server = grpc.server(ThreadPoolExecutor(8))
    add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
