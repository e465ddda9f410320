"""A network on Triton's server beside the same runner in one process: answers, rates, latencies, memory.

Run it by hand, on a machine that does nothing else, with ``python -m tests.serving.install`` done before::

    python -m tests.bench.serving fp32.onnx int8.onnx --images ../shared/data/flowers/train --out serving

It writes ``serving.md`` (also printed) and ``serving.json``; two files of ``alexnet-half`` take about 8 minutes on two
cores. All settings of the server are models of one server, and take turns with the runner in this process: in each
round every one of them is driven for ``--seconds`` at each number of requests in flight, in random order. Every answer
is compared with the right one, after its turn; exits with 1 after a lost or wrong answer.

The clients are threads of this process, one request at a time each, with requests that were encoded beforehand and
connections of their own. They run on the same cores as what they ask; ``client ms`` is the CPU time of this process for
an image, which in a deployment other machines spend. In the rows "here" it is the whole work.

``queued`` is ``bench``'s one worker that runs together whatever waits, up to 32 images, as dynamic batching does.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

import alexdeploy
from alexdeploy.arrays import Batch, Logits
from alexdeploy.bench.environment import environment
from alexdeploy.bench.load_rounds import Expected, problem_of
from alexdeploy.bench.measure import no_garbage_collection
from alexdeploy.bench.traffic import Ask, Request, keep_in_flight
from alexdeploy.bench.waiting import QueuedRunner
from alexdeploy.contract import Contract
from alexdeploy.data.decode import image_from_bytes
from alexdeploy.data.preprocess import preprocess
from alexdeploy.errors import AlexdeployError
from alexdeploy.machine import cores
from alexdeploy.metrics import relative_error, rerun_tolerance, softmax
from alexdeploy.runners.artifact import open_artifact
from alexdeploy.runners.kserve import KServeRunner
from alexdeploy.triton.publish import publish
from tests.bench.serving_clients import PROTOCOLS, Arrays, Clients, label_of, logits_of
from tests.bench.serving_report import QUEUED, Rates, Samples, is_right, markdown
from tests.serving.asking import as_bytes
from tests.serving.server import Server, running

MOST = 32
IN_FLIGHT = {"tensors": (1, 4, 16), "photographs": (16,)}
SETTINGS = ((1, 0), (1, 500), (2, 0), (2, 500))  # instances, microseconds that a request waits for others
THREADS = (1, 2)  # of the runner here
DRIVEN = 32  # photographs that are sent again and again
MANY, MANY_IN_FLIGHT, PARTS = 10_000, 32, 5


@dataclass(frozen=True)
class Candidate:
    """``open`` gives what threads ask with the index of a photograph, (1,), for one turn; ``network`` counts."""

    open: Callable[[ExitStack], Ask]
    network: KServeRunner | None = None


@dataclass(frozen=True)
class Subject:
    """A file with its photographs, as files and as the network takes them, and what is right.

    ``probabilities`` are 0 but for the label of each: what the models for photographs tell.
    """

    path: Path
    contract: Contract
    input: str
    photographs: list[bytes]
    inputs: list[Batch]
    logits: Logits
    probabilities: Logits
    bound: float

    def right(self, kind: str, count: int) -> Expected:
        answers = self.logits if kind == "tensors" else self.probabilities
        return Expected(np.arange(count), answers[:count], self.bound)

    def requests(self, count: int) -> dict[str, list[Arrays]]:
        tensors: list[Arrays] = [{self.input: array} for array in self.inputs[:count]]
        return {"tensors": tensors, "photographs": [{"image": as_bytes(photo)} for photo in self.photographs[:count]]}

    def likeliest(self, logits: Logits) -> Logits:
        """(N, classes): the largest probability in its place, 0 elsewhere."""
        found = softmax(logits)
        return np.where(np.arange(found.shape[1]) == found.argmax(1)[:, None], found, np.float32(0))


def subject_of(path: Path, folder: Path, count: int) -> Subject:
    files = sorted(folder.rglob("*.jpg"))
    photographs = [file.read_bytes() for file in random.Random(0).sample(files, count)]
    artifact = open_artifact(path)
    contract = artifact.contract
    inputs = [preprocess(image_from_bytes(photo), contract)[None] for photo in photographs]
    with alexdeploy.load(path, runtime="onnxruntime-cpu") as runner:
        logits = np.concatenate([runner.infer(array) for array in inputs])
        input_name = runner.input.name
    with alexdeploy.Classifier(path, runtime="onnxruntime-cpu") as classifier:
        labels = [classifier([Image.open(io.BytesIO(photo))])[0] for photo in photographs]
    probabilities = np.zeros_like(logits)
    for row, (label, probability) in zip(probabilities, labels, strict=True):
        row[contract.labels.index(label)] = probability
    bound = rerun_tolerance(artifact.precision)
    return Subject(path, contract, input_name, photographs, inputs, logits, probabilities, bound)


def drive(candidate: Candidate, right: Expected, in_flight: int, seconds: float, samples: Samples) -> None:
    """One turn. A request that fails, or is answered wrongly, is kept with the reason."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(in_flight))
        ask = candidate.open(stack)
        before = candidate.network.counters() if candidate.network else None
        with no_garbage_collection():
            cpu = time.process_time()
            taken = keep_in_flight(pool, ask, right.images, in_flight, seconds)
            cpu = time.process_time() - cpu
        after = candidate.network.counters() if candidate.network else None
    sent = [*taken.early, *taken.requests]
    samples.ms += [(request.ended_s - request.due_s) * 1e3 for request in taken.requests]
    samples.rates.append(taken.completed / taken.seconds)
    samples.client_ms.append(cpu / len(sent) * 1e3)
    samples.requests += len(sent)
    samples.failed += filter(None, (problem_of(request, right) for request in sent))
    if before is not None and after is not None:
        counted = after - before
        samples.images += counted.inferences
        samples.calls += counted.executions


def name_of(instances: int, delay_us: int) -> str:
    return f"n{instances}d{delay_us}"


def candidates(subject: Subject, server: Server, stack: ExitStack) -> dict[str, dict[str, Candidate]]:
    """By what is sent: tensors or photographs."""
    found: dict[str, dict[str, Candidate]] = {"tensors": {}, "photographs": {}}
    for threads in THREADS:
        row = f"{QUEUED}, {_some(threads, 'thread')}"
        runner = stack.enter_context(alexdeploy.load(subject.path, runtime="onnxruntime-cpu", threads=threads))
        queued = stack.enter_context(QueuedRunner(runner, MOST))
        of_tensor, of_photograph = partial(_infer, subject, queued), partial(_classify, subject, queued)
        found["tensors"][row] = _always(of_tensor)
        found["photographs"][row] = _always(of_photograph)
    requests = subject.requests(DRIVEN)
    for instances, delay_us in SETTINGS:
        name = name_of(instances, delay_us)
        network = stack.enter_context(KServeRunner(server.http, name))
        for protocol in PROTOCOLS:
            how = f"{_some(instances, 'instance')} × {_some(threads_of(instances), 'thread')}"
            row = f"{protocol}, {how}, {delay_us} µs"
            for kind, model in (("tensors", name), ("photographs", f"{name}-image")):
                asking = partial(_asking, subject, kind, Clients(protocol, server, model, requests[kind]))
                found[kind][row] = Candidate(asking, network)
    return found


def _always(ask: Ask) -> Candidate:
    return Candidate(lambda _: ask)


def threads_of(instances: int) -> int:
    """That the server gives each instance."""
    return max(1, cores() // instances)


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def _infer(subject: Subject, queued: QueuedRunner, index: Batch) -> Logits:
    return queued.infer(subject.inputs[int(index[0])])


def _classify(subject: Subject, queued: QueuedRunner, index: Batch) -> Logits:
    photo = image_from_bytes(subject.photographs[int(index[0])])
    return subject.likeliest(queued.infer(preprocess(photo, subject.contract)[None]))


def _asking(subject: Subject, kind: str, clients: Clients, stack: ExitStack) -> Ask:
    stack.callback(clients.close)

    def ask(index: Batch) -> Logits:
        answer = clients.ask(int(index[0]))
        return logits_of(answer) if kind == "tensors" else as_row(subject.contract, *label_of(answer))

    return ask


def as_row(contract: Contract, label: str, probability: float) -> Logits:
    row = np.zeros((1, len(contract.labels)), np.float32)
    row[0, contract.labels.index(label)] = probability
    return row


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
    count = len(subject.photographs)
    stock = ort.InferenceSession(subject.path, providers=["CPUExecutionProvider"])
    plain = np.concatenate([stock.run(None, {subject.input: array})[0] for array in subject.inputs])
    found: dict[str, Any] = {
        "photographs": count,
        "relative to a plain session": relative_error(subject.logits, plain),
        "top-1 of a plain session": int((subject.logits.argmax(1) == plain.argmax(1)).sum()),
    }
    requests, name = subject.requests(count), name_of(1, 0)
    for protocol in PROTOCOLS:
        with ExitStack() as stack:
            tensors = _asking(subject, "tensors", Clients(protocol, server, name, requests["tensors"]), stack)
            images = Clients(protocol, server, f"{name}-image", requests["photographs"])
            photographs = _asking(subject, "photographs", images, stack)
            for what, ask, right in (
                ("logits bit-equal", tensors, subject.logits),
                ("label and probability equal", photographs, subject.probabilities),
            ):
                equal = [np.array_equal(ask(np.array([index])), right[index][None]) for index in range(count)]
                found[f"{protocol}: {what}"] = sum(equal)
    return found


def many(subject: Subject, server: Server, count: int) -> dict[str, Any]:
    """``count`` requests over HTTP at 32 in flight, each answer compared, and memory after each fifth of them."""
    right = subject.right("tensors", len(subject.inputs))
    clients = Clients("HTTP", server, name_of(2, 0), subject.requests(len(subject.inputs))["tensors"])
    problems: list[str | None] = []
    memory_mb, began = [memory(server)], time.perf_counter()

    def one(number: int) -> str | None:
        index, answer, error = number % len(right.images), None, None
        try:
            answer = logits_of(clients.ask(index))
        except AlexdeployError as failure:
            error = str(failure)
        return problem_of(Request(index, 0.0, 0.0, answer, error), right)

    with ThreadPoolExecutor(MANY_IN_FLIGHT) as pool:
        for part in np.array_split(np.arange(count), PARTS):
            problems += pool.map(one, part.tolist())
            memory_mb.append(memory(server))
    clients.close()
    wrong = [problem for problem in problems if problem is not None]
    return {
        "requests at 32 in flight": count,
        "answered with their own": len(problems) - len(wrong),
        "lost or wrong": len(wrong),
        "the first of those": next(iter(wrong), None),
        "their seconds": round(time.perf_counter() - began, 1),
        "memory MB (PSS), before and after each fifth": memory_mb,
    }


def huge(server: Server) -> dict[str, Any]:
    """A body of 1 GB where an image is expected."""
    before, began = memory(server), time.perf_counter()
    clients = Clients("HTTP", server, f"{name_of(1, 0)}-image", [{"image": as_bytes(bytes(1 << 30))}])
    try:
        clients.ask(0)
        said = "answered"
    except AlexdeployError as error:
        said = str(error)
    clients.close()
    return {"1 GB": said, "its seconds": round(time.perf_counter() - began, 1), "MB": [before, memory(server)]}


def memory(server: Server) -> int:
    """MB of the server and the processes of its models, what they share counted once."""
    children = [pid for task in Path(f"/proc/{server.pid}/task").glob("*/children") for pid in task.read_text().split()]
    total = 0
    for pid in (str(server.pid), *children):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total // 1024


def measure(subject: Subject, server: Server, seconds: float, rounds: int) -> Rates:
    """Samples by what is sent, candidate and number in flight."""
    with ExitStack() as stack:
        kinds = candidates(subject, server, stack)
        found = {kind: {row: {n: Samples() for n in IN_FLIGHT[kind]} for row in kinds[kind]} for kind in kinds}
        turns = [(kind, row, n) for kind, rows in found.items() for row, cells in rows.items() for n in cells]
        for number in range(rounds):
            for kind, row, n in random.sample(turns, len(turns)):
                drive(kinds[kind][row], subject.right(kind, DRIVEN), n, seconds, found[kind][row][n])
            print(f"{subject.path.name}: round {number + 1} of {rounds}", flush=True)
    return found


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="ONNX files with a contract of the same photographs")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--count", type=int, default=200, help="photographs")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="0 leaves the rates out")
    parser.add_argument("--many", type=int, default=MANY, help="requests at 32 in flight")
    parser.add_argument("--out", type=Path, default=Path("serving"), help="writes OUT.md and OUT.json")
    return parser.parse_args()


def main() -> int:
    """The exit status."""
    options = options_given()
    place, reports = environment(), {}
    head = (
        f"{time.strftime('%Y-%m-%d %H:%M')}: {place['cpu']}, {place['cores']} cores, load {os.getloadavg()[0]:.1f} "
        f"before; ONNX Runtime {ort.__version__}; {options.rounds} rounds of {options.seconds:g} s in random order; "
        f"batches up to {MOST}; {DRIVEN} photographs in turn; images/s: median (smallest–largest) of the rounds; ms of "
        "all requests.\n\n"
    )
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
        text = head + "\n".join(markdown(name, report) for name, report in reports.items())
        options.out.with_suffix(".md").write_text(text)
        result = {"environment": place, "reports": reports}
        options.out.with_suffix(".json").write_text(json.dumps(result, default=asdict, indent=1))
    return 0 if all(map(is_right, reports.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
