"""A runner of ours behind HTTP, as KServe's protocol v2 has it: one request at a time, with counters."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import numpy as np

from alexdeploy.arrays import Batch, Logits
from alexdeploy.runners.base import Runner
from tests.helpers.kserve import RefusedError, _Handler

KINDS = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8"}


class Served:
    """The model ``name``, largest batch 8. A test may change its ``answer`` while it runs."""

    def __init__(self, runner: Runner, name: str) -> None:
        self.runner, self.name, self.url = runner, name, ""
        self.lock = threading.Lock()
        self.requests = 0
        self.has_counters = True

    def answer(self, batch: Batch) -> Logits:
        """Logits of the batch; replace it to plant a fault."""
        return self.runner.infer(batch)

    def described(self) -> dict[str, Any]:
        takes = self.runner.input
        inputs = [{"name": "input", "datatype": KINDS[takes.dtype], "shape": [-1, *takes.shape[1:]]}]
        outputs = [{"name": "logits", "datatype": "FP32", "shape": [-1, self.runner.classes]}]
        return {"name": self.name, "versions": ["1"], "platform": "", "inputs": inputs, "outputs": outputs}

    def statistics(self) -> dict[str, Any]:
        """Two images an execution, 3 ms in the queue and 1 ms in the model each."""
        count = self.requests
        spent = {
            "success": {"count": count},
            "queue": {"count": count, "ns": 3_000_000 * count},
            "compute_infer": {"count": count, "ns": 1_000_000 * count},
        }
        one = {"inference_count": count, "execution_count": count // 2, "inference_stats": spent}
        return {"model_stats": [{"name": self.name, "version": "1", **one}]}


class _ModelHandler(_Handler):
    disable_nagle_algorithm = True  # else an answer in two pieces waits 40 ms for the client's acknowledgement

    def _answer(self, body: bytes) -> tuple[bytes, bytes]:
        served: Served = self.server.served  # type: ignore[attr-defined]
        parts = self.path.strip("/").split("/")
        if parts[:3] != ["v2", "models", served.name]:
            raise RefusedError(404, "NOT_FOUND", f"Request for unknown model: '{parts[2]}' is not found")
        if parts[3:] == ["infer"]:
            return self._infer(served.name, body)
        if parts[3:] == ["stats"]:
            if not served.has_counters:
                raise RefusedError(404, "NOT_FOUND", "no statistics")
            return json.dumps(served.statistics()).encode(), b""
        found = {"name": served.name, "max_batch_size": 8} if parts[3:] == ["config"] else served.described()
        return json.dumps(found).encode(), b""

    def _infer(self, model: str, body: bytes) -> tuple[bytes, bytes]:
        served: Served = self.server.served  # type: ignore[attr-defined]
        size = int(self.headers["Inference-Header-Content-Length"])
        [given] = json.loads(body[:size])["inputs"]
        batch = np.frombuffer(body[size:], served.runner.input.dtype).reshape(given["shape"])
        with served.lock:
            served.requests += 1
            logits = served.answer(batch)
        data = logits.tobytes()
        size_of = {"binary_data_size": len(data)}
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "parameters": size_of}
        return json.dumps({"model_name": model, "outputs": [output]}).encode(), data


@contextlib.contextmanager
def serve(runner: Runner, name: str) -> Iterator[Served]:
    """The server, with its ``url``, on a port of the loopback."""
    served = Served(runner, name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _ModelHandler)
    server.daemon_threads = True
    server.peers, server.served = set(), served  # type: ignore[attr-defined]
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
