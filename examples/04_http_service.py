"""Serve a model over HTTP with the standard library alone. All threads share one model.

    python examples/04_http_service.py model.onnx 8000
    curl --data-binary @photo.jpg localhost:8000

POST an image to get its label; GET answers when the model is loaded. It listens on this machine only: put a reverse
proxy with TLS and a rate limit in front of it.
"""

from __future__ import annotations

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from alexdeploy import Classifier
from alexdeploy.data.dataset import UNREADABLE
from alexdeploy.errors import AlexdeployError, DeviceLostError

MAX_BYTES = 10 << 20
MAX_PIXELS = 50_000_000  # a small file can unpack to a huge image


class Service(ThreadingHTTPServer):
    """One model, one thread per request."""

    def __init__(self, classifier: Classifier, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.classifier = classifier
        self.lost: DeviceLostError | None = None


class Handler(BaseHTTPRequestHandler):
    """Answers in JSON: a label with its probability, or an error with the reason."""

    server: Service
    timeout = 10  # seconds that a client may keep its thread waiting

    def do_GET(self) -> None:
        self.answer(200, {"classes": self.server.classifier.contract.labels})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.answer(411, {"error": "the request has no Content-Length"})
        elif int(length) > MAX_BYTES:
            self.answer(413, {"error": f"{length} bytes; at most {MAX_BYTES} are accepted"})
        else:
            self.classify(self.rfile.read(int(length)))

    def classify(self, body: bytes) -> None:
        """Decode apart from the model, so that only the client's mistakes are answered as such."""
        try:
            image = Image.open(io.BytesIO(body))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS} are accepted")
            image.load()
        except UNREADABLE as error:
            self.answer(400, {"error": str(error)})
            return
        try:
            [(label, probability)] = self.server.classifier([image])
        except AlexdeployError as error:
            self.log_error("%s", error)
            self.answer(503, {"error": "the model failed; the log of the service has the reason"})
            if isinstance(error, DeviceLostError):  # no later request could succeed
                self.server.lost = error
                self.server.shutdown()
            return
        self.answer(200, {"label": label, "probability": probability})

    def answer(self, status: int, content: dict[str, object]) -> None:
        """One JSON object."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(model: str, port: str) -> None:
    """Serve until interrupted; port 0 takes a free one."""
    with Classifier(model) as classifier, Service(classifier, int(port)) as service:
        print(f"listening on http://127.0.0.1:{service.server_port}", flush=True)
        service.serve_forever()
        if service.lost is not None:
            raise service.lost


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except AlexdeployError as error:  # one clear line instead of a traceback
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)  # 6 where a supervisor should start the service again
    except KeyboardInterrupt:
        pass
