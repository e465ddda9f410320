"""Serve a model over HTTP with FastAPI. All threads share one model, and no client can take more than its part.

    pip install fastapi uvicorn prometheus-client
    python examples/04_fastapi_service.py model.onnx 8000
    curl --data-binary @photo.jpg localhost:8000

POST / takes an image and answers with its label. GET /health: it runs. GET /ready: it takes requests. GET /metrics: for
Prometheus. It listens on this machine only: put a reverse proxy with TLS and a rate limit in front of it. Requests are
not joined to batches; Triton does that, see docs/guide/embed.md.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Awaitable, Callable

import anyio
import h11
import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from alexdeploy import Classifier
from alexdeploy.data.decode import image_from_bytes
from alexdeploy.errors import AlexdeployError, DeviceLostError, InputError

MAX_BYTES = 10 << 20
MAX_PIXELS = 50_000_000  # a small file can unpack to a huge image; at this size one takes 0.4 GB in each thread
THREADS = 4  # that decode and classify
WAITING = 64  # requests that wait for a thread; more would only wait longer than their clients do
CONNECTIONS = 256  # each holds at most MAX_BYTES; uvicorn answers 503 on more, to probes as well
SECONDS = 20  # that a client may take for a request, and a running request when the service ends

REQUESTS = Counter("requests", "Requests answered, by HTTP status", ["status"])
LATENCY = Histogram("request_seconds", "From a request's head to its answer")
IN_FLIGHT = Gauge("requests_in_flight", "Requests that have no answer yet")
LOG = logging.getLogger("uvicorn.error")


class Impatient(H11Protocol):
    """Closes the connection of a client that is too slow; uvicorn waits for the rest of a head or a body for ever."""

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.timer = self.loop.call_later(SECONDS, self.close_if_slow)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.timer.cancel()
        self.timer = self.loop.call_later(SECONDS, self.close_if_slow)

    def close_if_slow(self) -> None:
        """Not while a whole request waits for its answer; the next time to look is after that."""
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.transport.close()


def service(classifier: Classifier, stop: Callable[[DeviceLostError], None]) -> FastAPI:
    """The application; it calls ``stop`` when the GPU is lost."""
    app = FastAPI(openapi_url=None)  # no pages of documentation, which load scripts from elsewhere
    limiter = anyio.CapacityLimiter(THREADS)

    def check_room() -> None:
        if limiter.statistics().tasks_waiting >= WAITING:
            raise HTTPException(503, "too many requests wait; try again", {"Retry-After": "1"})

    def classify(content: bytes) -> tuple[str, float]:
        [answer] = classifier([image_from_bytes(content, max_pixels=MAX_PIXELS)])
        return answer

    @app.post("/")
    async def label(request: Request) -> dict[str, object]:
        check_room()
        content = await body_of(request)
        check_room()  # it may have filled up meanwhile
        try:
            name, probability = await run_sync(classify, content, limiter=limiter)
        except InputError as error:  # the client's mistake; the line holds nothing of the file
            raise HTTPException(400, str(error)) from None
        except AlexdeployError as error:
            LOG.error("the model failed: %s", error)
            if isinstance(error, DeviceLostError):  # no later request could succeed
                stop(error)
            raise HTTPException(503, "the model failed; the log of the service has the reason") from None
        return {"label": name, "probability": probability}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        check_room()
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.middleware("http")
    async def measure(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path in ("/health", "/ready", "/metrics"):
            return await answer(request)
        status = 500  # what nobody foresaw
        try:
            with IN_FLIGHT.track_inprogress(), LATENCY.time():
                response = await answer(request)
            status = response.status_code
            return response
        finally:
            REQUESTS.labels(status).inc()

    return app


async def body_of(request: Request) -> bytes:
    """The body, counted as it comes: its length may not be named, or wrongly."""
    too_long = HTTPException(413, f"the body is too long; at most {MAX_BYTES} bytes are accepted")
    if int(request.headers.get("Content-Length", 0)) > MAX_BYTES:  # a number, or h11 had refused it
        raise too_long
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > MAX_BYTES:
                raise too_long
    except ClientDisconnect:  # nobody reads this answer; it is counted
        raise HTTPException(400, "the body was cut off") from None
    return bytes(content)


def main(model: str, port: str) -> None:
    """Serve until SIGTERM or SIGINT, and answer first what is running; port 0 takes a free one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when all is answered
    warnings.filterwarnings(
        "ignore", module="PIL"
    )  # about odd files: one line each, which clients could fill a log with
    lost: list[DeviceLostError] = []

    def stop(error: DeviceLostError) -> None:
        lost.append(error)
        server.should_exit = True

    with Classifier(model) as classifier, socket.create_server(("127.0.0.1", int(port))) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                service(classifier, stop),
                http=Impatient,
                ws="none",
                log_level="warning",
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=SECONDS,
            )
        )
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        server.run([listener])
        if lost:
            print(f"error: {lost[0]}", file=sys.stderr, flush=True)
            os._exit(lost[0].exit_code)  # a thread may hang in the driver: wait for none. A supervisor starts it again


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (AlexdeployError, OSError) as error:  # one clear line instead of a traceback
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        pass
