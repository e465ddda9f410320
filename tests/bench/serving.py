"""A network on Triton's server beside the same runner in one process: answers, rates, latencies, memory.

Run it by hand, on a machine that does nothing else, with ``python -m tests.serving.install`` done before::

    python -m tests.bench.serving fp32.onnx int8.onnx --images ../shared/data/flowers/train --out serving

It writes ``serving.md`` (also printed) and ``serving.json``. All settings of the server are models of one server, and
take turns with the runner in this process: in each round every one of them is driven for ``--seconds`` at each number
of requests in flight, in random order.

The clients are threads of this process, one request at a time each, with requests that were encoded beforehand and a
connection of their own. They run on the same cores as what they ask; ``client ms`` is the CPU time of this process for
an image, which in a deployment other machines spend. In the rows "in one process" it is the whole work.

``queued`` is one worker that runs together whatever waits, up to 32 images, as the server's dynamic batching does.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import queue
import random
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import tritonclient.http
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

import alexdeploy
from alexdeploy.bench.environment import environment
from alexdeploy.data.decode import image_from_bytes
from alexdeploy.data.preprocess import preprocess
from alexdeploy.metrics import relative_error
from alexdeploy.runners.artifact import open_artifact
from alexdeploy.triton.publish import publish
from tests.serving.asking import as_bytes
from tests.serving.server import Server, running

MOST = 32
IN_FLIGHT = (1, 4, 16)
SETTINGS = ((1, 0), (1, 2000), (2, 0), (2, 2000))  # instances, microseconds that a request waits for others
DRIVEN = 32  # photographs that are sent again and again
MANY, MANY_IN_FLIGHT, PARTS = 10_000, 32, 5
READY_S = 5.0
Arrays = dict[str, npt.NDArray[Any]]
Ask = Callable[[int], Any]


class Http:
    """One connection that sends prepared requests."""

    def __init__(self, server: Server, prepared: list[Any]) -> None:
        self._connection = http.client.HTTPConnection(server.http.removeprefix("http://"))
        self._prepared = prepared

    @staticmethod
    def prepare(model: str, arrays: Arrays) -> Any:
        inputs = []
        for name, array in arrays.items():
            inputs.append(tritonclient.http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        body, length = tritonclient.http.InferenceServerClient.generate_request_body(inputs)
        return f"/v2/models/{model}/infer", bytes(body), {"Inference-Header-Content-Length": str(length)}

    def __call__(self, index: int) -> bytes:
        self._connection.request("POST", *self._prepared[index % len(self._prepared)])
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(content[:300])
        self._length = int(response.headers["Inference-Header-Content-Length"])
        return content

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        content = self(index)
        return np.frombuffer(content[self._length :], np.float32)

    def label(self, index: int) -> tuple[str, float]:
        result = tritonclient.http.InferenceServerClient.parse_response_body(self(index), header_length=self._length)
        return result.as_numpy("label")[0, 0].decode(), float(result.as_numpy("probability")[0, 0])

    def close(self) -> None:
        self._connection.close()


class Grpc:
    """One channel that sends prepared requests."""

    def __init__(self, server: Server, prepared: list[Any]) -> None:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(server.grpc.removeprefix("grpc://"), own)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._prepared = prepared

    @staticmethod
    def prepare(model: str, arrays: Arrays) -> Any:
        request = service_pb2.ModelInferRequest(model_name=model)
        for name, array in arrays.items():
            request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            text = array.dtype == np.object_
            request.raw_input_contents.append(serialize_byte_tensor(array).item() if text else array.tobytes())
        return request

    def __call__(self, index: int) -> Any:
        return self._stub.ModelInfer(self._prepared[index % len(self._prepared)])

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        return np.frombuffer(self(index).raw_output_contents[0], np.float32)

    def label(self, index: int) -> tuple[str, float]:
        answer = self(index)
        found = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
        return found["label"][4:].decode(), float(np.frombuffer(found["probability"], np.float32)[0])

    def close(self) -> None:
        self._channel.close()


Client = Http | Grpc
PROTOCOLS: dict[str, type[Http] | type[Grpc]] = {"HTTP": Http, "gRPC": Grpc}


def opener(protocol: str, server: Server, model: str, requests: list[Arrays]) -> Callable[[], Client]:
    """Connections that send requests which are encoded once for all of them."""
    kind = PROTOCOLS[protocol]
    prepared = [kind.prepare(model, request) for request in requests]
    return lambda: kind(server, prepared)


class Queued:
    """A runner that one worker feeds with whatever waits."""

    def __init__(self, infer: Callable[[Any], Any]) -> None:
        self._infer = infer
        self._waiting: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def __call__(self, image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        answer: Future[Any] = Future()
        self._waiting.put((image, answer))
        logits: npt.NDArray[np.float32] = answer.result()
        return logits

    def close(self) -> None:
        self._waiting.put(None)
        self._worker.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < MOST and not self._waiting.empty():
                entry = self._waiting.get()
                if entry is None:
                    self._waiting.put(None)
                    break
                batch.append(entry)
            for (_, answer), row in zip(batch, self._infer(np.concatenate([x for x, _ in batch])), strict=True):
                answer.set_result(row)


@dataclass
class Samples:
    """Of one candidate at one number in flight: milliseconds of every request, and of each round its rate."""

    ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    client_ms: list[float] = field(default_factory=list)
    images: int = 0
    calls: int = 0  # of the model, where a server counts them

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.ms, share))


@dataclass(frozen=True)
class Candidate:
    """``open`` gives a thread what it asks; ``model`` counts the calls."""

    open: Callable[[ExitStack], Ask]
    server: Server | None = None
    model: str = ""


def drive(candidate: Candidate, in_flight: int, seconds: float, samples: Samples) -> None:
    """Threads that ask one after the other; the first answer of each is not counted."""
    start = threading.Barrier(in_flight + 1)
    found: list[list[float]] = [[] for _ in range(in_flight)]
    deadline = 0.0

    def work(place: int) -> None:
        with ExitStack() as stack:
            ask = candidate.open(stack)
            ask(place)
            start.wait()
            start.wait()
            index = place
            while (began := time.perf_counter()) < deadline:
                ask(index)
                found[place].append((time.perf_counter() - began) * 1e3)
                index += in_flight

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(in_flight)]
    for thread in threads:
        thread.start()
    start.wait()
    before = counters(candidate)
    cpu, began = time.process_time(), time.perf_counter()
    deadline = began + seconds
    start.wait()
    for thread in threads:
        thread.join()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    after = counters(candidate)
    count = sum(map(len, found))
    samples.ms += [ms for place in found for ms in place]
    samples.rates.append(count / took)
    samples.client_ms.append(cpu / max(count, 1) * 1e3)
    samples.images += after[0] - before[0]
    samples.calls += after[1] - before[1]


def counters(candidate: Candidate) -> tuple[int, int]:
    """(images, calls) of the network so far."""
    if candidate.server is None:
        return 0, 0
    with urllib.request.urlopen(f"{candidate.server.http}/v2/models/{candidate.model}/stats") as answer:
        (found,) = json.load(answer)["model_stats"]
    return found["inference_count"], found["execution_count"]


def name_of(instances: int, delay_us: int) -> str:
    return f"n{instances}d{delay_us}"


@dataclass(frozen=True)
class Subject:
    """A file with its photographs, as files and as the network takes them."""

    path: Path
    photographs: list[bytes]
    inputs: list[npt.NDArray[Any]]
    input: str


def subject_of(path: Path, folder: Path, count: int) -> Subject:
    files = sorted(folder.rglob("*.jpg"))
    photographs = [file.read_bytes() for file in random.Random(0).sample(files, count)]
    contract = open_artifact(path).contract
    inputs = [preprocess(image_from_bytes(photo), contract)[None] for photo in photographs]
    with alexdeploy.load(path, runtime="onnxruntime-cpu") as runner:
        return Subject(path, photographs, inputs, runner.input.name)


def requests_of(subject: Subject, count: int) -> tuple[list[Arrays], list[Arrays]]:
    """With tensors, and with encoded images."""
    tensors: list[Arrays] = [{subject.input: array} for array in subject.inputs[:count]]
    return tensors, [{"image": as_bytes(photo)} for photo in subject.photographs[:count]]


def candidates(subject: Subject, server: Server, stack: ExitStack) -> dict[str, dict[str, Candidate]]:
    """By what is sent: tensors or photographs."""
    runner = stack.enter_context(alexdeploy.load(subject.path, runtime="onnxruntime-cpu"))
    classifier = stack.enter_context(alexdeploy.Classifier(subject.path, runtime="onnxruntime-cpu"))
    queued = Queued(runner.infer)
    stack.callback(queued.close)
    photographs, inputs, contract = subject.photographs[:DRIVEN], subject.inputs[:DRIVEN], classifier.contract

    def classified(index: int) -> object:
        return classifier([Image.open(io.BytesIO(photographs[index % len(photographs)]))])

    def decoded_and_queued(index: int) -> object:
        image = Image.open(io.BytesIO(photographs[index % len(photographs)]))
        logits = queued(preprocess(image, contract)[None])
        return contract.labels[int(logits.argmax())]

    def asks(ask: Ask) -> Candidate:
        return Candidate(lambda _: ask)

    tensors = {
        "in one process, a thread each": asks(lambda index: runner.infer(inputs[index % len(inputs)])),
        "in one process, queued": asks(lambda index: queued(inputs[index % len(inputs)])),
    }
    images = {
        "in one process, a thread each": asks(classified),
        "in one process, queued": asks(decoded_and_queued),
    }
    of_tensors, of_images = requests_of(subject, DRIVEN)
    for instances, delay_us in SETTINGS:
        model = name_of(instances, delay_us)
        for protocol in PROTOCOLS:
            row = f"{protocol}, {instances} instance{'s' * (instances > 1)}, {delay_us} µs"
            tensors[row] = Candidate(partial(_entered, opener(protocol, server, model, of_tensors)), server, model)
            image_opener = opener(protocol, server, f"{model}-image", of_images)
            images[row] = Candidate(partial(_entered, image_opener), server, model)
    return {"tensors": tensors, "photographs": images}


def _entered(open_client: Callable[[], Client], stack: ExitStack) -> Ask:
    client = open_client()
    stack.callback(client.close)
    return client


@contextmanager
def served(subject: Subject, work: Path) -> Iterator[tuple[Server, float]]:
    """A server of all settings, and how long one of a single setting takes until it is ready."""
    single = work / "single"
    publish(subject.path, single, name=name_of(1, 0), image=True, max_batch=MOST)
    began = time.perf_counter()
    with running(single, work / "single.log"):
        ready_s = time.perf_counter() - began
    for instances, delay_us in SETTINGS:
        publish(
            subject.path,
            work / "repository",
            name=name_of(instances, delay_us),
            image=True,
            max_batch=MOST,
            instances=instances,
            max_delay_us=delay_us,
        )
    with running(work / "repository", work / "log") as server:
        yield server, ready_s


def answers(subject: Subject, server: Server) -> dict[str, Any]:
    """How many photographs are answered to the last bit, one in each request."""
    found: dict[str, Any] = {"photographs": len(subject.photographs)}
    with alexdeploy.load(subject.path, runtime="onnxruntime-cpu") as runner:
        expected = [runner.infer(array)[0] for array in subject.inputs]
    with alexdeploy.Classifier(subject.path, runtime="onnxruntime-cpu") as classifier:
        labels = [classifier([Image.open(io.BytesIO(photo))])[0] for photo in subject.photographs]
    stock = ort.InferenceSession(subject.path, providers=["CPUExecutionProvider"])
    plain = np.concatenate([stock.run(None, {subject.input: array})[0] for array in subject.inputs])
    found["relative to a plain session"] = relative_error(np.stack(expected), plain)
    found["top-1 of a plain session"] = int((np.stack(expected).argmax(1) == plain.argmax(1)).sum())
    of_tensors, of_images = requests_of(subject, len(labels))
    for protocol in PROTOCOLS:
        network = opener(protocol, server, name_of(1, 0), of_tensors)()
        image = opener(protocol, server, f"{name_of(1, 0)}-image", of_images)()
        everyone = range(len(labels))
        found[f"{protocol}: logits bit-equal"] = sum(np.array_equal(network.logits(i), expected[i]) for i in everyone)
        found[f"{protocol}: label and probability equal"] = sum(image.label(i) == labels[i] for i in everyone)
        network.close()
        image.close()
    return found


def many(subject: Subject, server: Server, count: int) -> dict[str, Any]:
    """``count`` requests over HTTP at 32 in flight, each answer compared, and memory after each fifth of them."""
    with alexdeploy.load(subject.path, runtime="onnxruntime-cpu") as runner:
        expected = np.concatenate([runner.infer(array) for array in subject.inputs])
    open_client = opener("HTTP", server, name_of(2, 0), requests_of(subject, len(expected))[0])
    wrong: list[int] = []
    answered: list[int] = []
    memory_mb = [memory(server)]

    def work(indices: range) -> None:
        client = open_client()
        for index in indices:
            row = client.logits(index)
            nearest = np.abs(expected - row).max(axis=1)
            own = nearest[index % len(expected)]
            (answered if own == nearest.min() and own <= 1e-3 * np.abs(expected).max() else wrong).append(index)
        client.close()

    each = count // PARTS
    for part in range(PARTS):
        first = part * each
        threads = [
            threading.Thread(target=work, args=(range(first + place, first + each, MANY_IN_FLIGHT),))
            for place in range(MANY_IN_FLIGHT)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        memory_mb.append(memory(server))
    return {"requests": count, "answered with their own": len(answered), "wrong": len(wrong), "memory MB": memory_mb}


def huge(server: Server) -> dict[str, Any]:
    """A body of 1 GB where an image is expected."""
    before = memory(server)
    client = opener("HTTP", server, f"{name_of(1, 0)}-image", [{"image": as_bytes(bytes(1 << 30))}])()
    began = time.perf_counter()
    try:
        client(0)
        said = "answered"
    except RuntimeError as error:
        said = str(error)
    client.close()
    return {"said": said, "seconds": time.perf_counter() - began, "memory MB": [before, memory(server)]}


def memory(server: Server) -> int:
    """MB of the server and the processes of its models, what they share counted once."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    total = 0
    for pid in (str(server.pid), *children):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total // 1024


def measure(subject: Subject, server: Server, seconds: float, rounds: int) -> dict[str, Any]:
    """Samples by what is sent, candidate and number in flight."""
    with ExitStack() as stack:
        kinds = candidates(subject, server, stack)
        samples = {(kind, name, n): Samples() for kind, found in kinds.items() for name in found for n in IN_FLIGHT}
        for number in range(rounds):
            for kind, name, n in random.sample(list(samples), len(samples)):
                drive(kinds[kind][name], n, seconds, samples[kind, name, n])
            print(f"{subject.path.name}: round {number + 1} of {rounds}", flush=True)
    return {kind: {name: {n: samples[kind, name, n] for n in IN_FLIGHT} for name in kinds[kind]} for kind in kinds}


def markdown(name: str, report: dict[str, Any]) -> str:
    lines = [f"## {name}", "", f"Ready {report['ready_s']:.1f} s after its start (bar {READY_S:g} s)."]
    lines += [f"- {key}: {value}" for part in ("answers", "many", "huge") for key, value in report[part].items()]
    for kind, table in report["rates"].items():
        lines += ["", f"### {kind}, one in each request", ""]
        head = " | ".join(f"{n} in flight: images/s | p50 ms | p99 ms | batch | client ms" for n in IN_FLIGHT)
        lines += [f"| | {head} |", f"| --- |{' --: |' * (5 * len(IN_FLIGHT))}"]
        for row, cells in table.items():
            lines.append(f"| {row} | {' | '.join(map(_cell, cells.values()))} |")
        lines += ["", *_verdicts(table)]
    return "\n".join(lines) + "\n"


def _cell(samples: Samples) -> str:
    rate = f"{statistics.median(samples.rates):.0f} ({min(samples.rates):.0f}–{max(samples.rates):.0f})"
    batch = f"{samples.images / samples.calls:.1f}" if samples.calls else ""
    client = statistics.median(samples.client_ms)
    return f"{rate} | {samples.percentile(50):.1f} | {samples.percentile(99):.1f} | {batch} | {client:.2f}"


def _verdicts(table: dict[str, dict[int, Samples]]) -> Iterator[str]:
    """The server's setting with the highest rate beside the queued runner."""
    for n in IN_FLIGHT:
        queued = table["in one process, queued"][n]
        served = {row: cells[n] for row, cells in table.items() if not row.startswith("in one process")}
        best = max(served, key=lambda row: statistics.median(served[row].rates))
        rate = statistics.median(served[best].rates) / statistics.median(queued.rates)
        p50, p99 = (served[best].percentile(p) / queued.percentile(p) for p in (50, 99))
        yield f"- {n} in flight, {best} over queued: {rate:.2f} × images/s, {p50:.2f} × p50, {p99:.2f} × p99"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="ONNX files with a contract of the same photographs")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--count", type=int, default=200, help="photographs")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5, help="0 leaves the rates out")
    parser.add_argument("--many", type=int, default=MANY, help="requests at 32 in flight")
    parser.add_argument("--out", type=Path, default=Path("serving"), help="writes OUT.md and OUT.json")
    options = parser.parse_args()
    reports: dict[str, Any] = {}
    for path in options.models:
        subject = subject_of(path, options.images, options.count)
        with tempfile.TemporaryDirectory() as folder, served(subject, Path(folder)) as (server, ready_s):
            reports[path.name] = {
                "ready_s": ready_s,
                "answers": answers(subject, server),
                "rates": measure(subject, server, options.seconds, options.rounds) if options.rounds else {},
                "many": many(subject, server, options.many),
                "huge": huge(server),
            }
        print(markdown(path.name, reports[path.name]), flush=True)
    place = environment()
    head = f"{time.strftime('%Y-%m-%d')}: {place['cpu']}, {place['cores']} cores, load {os.getloadavg()[0]:.1f}.\n\n"
    text = head + "\n".join(markdown(name, report) for name, report in reports.items())
    options.out.with_suffix(".md").write_text(text)
    result = {"environment": place, "reports": reports}
    options.out.with_suffix(".json").write_text(json.dumps(result, default=asdict, indent=1))


if __name__ == "__main__":
    main()
