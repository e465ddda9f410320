"""The bench itself: every artifact on every runtime that takes it, accuracy on the data set, latency per batch size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexdeploy.bench.accuracy import Accuracy, judge
from alexdeploy.bench.environment import environment
from alexdeploy.bench.intervals import paired_ratio, summarize
from alexdeploy.bench.limits import Machine, limit, machine_rates
from alexdeploy.bench.results import BenchReport, Choice, Row
from alexdeploy.bench.server import Server, serve
from alexdeploy.bench.timing import BOUNDARIES, Timings, time_runners
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import GateError, InputError, UnavailableError, UsageError
from alexdeploy.metrics import agreement, topk_accuracy
from alexdeploy.optional import require
from alexdeploy.runners.artifact import RUNTIMES, Artifact, open_artifact
from alexdeploy.runners.base import Runner
from alexdeploy.specs import Progress

DEFAULT_SECONDS = 20.0
_SCORING_BATCH = 64


@dataclass
class _Candidate:
    artifact: Artifact
    runtime: str
    runner: Runner | None = None
    reason: str | None = None
    logits: npt.NDArray[np.float32] | None = None
    layers_ms: dict[str, float] = field(default_factory=dict)
    server: Server | None = None


def run_bench(
    paths: Sequence[Path],
    dataset: ImageDataset,
    *,
    batches: Sequence[int] = (1, 8),
    runtimes: Sequence[str] | Mapping[Path, Sequence[str]] = (),
    seconds: float = DEFAULT_SECONDS,
    max_drop: float | None = None,
    server_ms: float | None = None,
    progress: Progress = lambda what, share: None,
) -> BenchReport:
    """Score and time artifacts on the same images.

    Args:
        paths: checkpoints, ONNX files and engines; the first that runs is the reference.
        dataset: images to judge on.
        batches: batch sizes to time.
        runtimes: limit to these, all files or file by file; empty means the usual one of each file.
        seconds: for the whole bench. All images are judged and ten rounds are timed even where that takes longer.
        max_drop: choose the fastest whose top-1 is at most this many percentage points below the reference's.
        server_ms: latency bound of a server; half of ``seconds`` then goes to the rates it can keep.
        progress: called with what is being done and the share of it that is.

    Raises:
        UnavailableError: ``server_ms`` without LoadGen.
        InputError: an unusable file, contracts that differ, or labels that do not match the data set.
        UsageError: a file that none of ``runtimes`` takes.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import run_bench
        >>> from alexdeploy.data.sources import load_dataset
        >>> report = run_bench([Path("model.onnx"), Path("int8.onnx")], load_dataset("digits", "val"), seconds=1)
        >>> [row.batch for row in report.rows]
        [1, 8, 1, 8]
    """
    if server_ms is not None:
        require("mlperf_loadgen")
    started = time.perf_counter()
    here = environment()
    candidates = _candidates([open_artifact(path) for path in paths], runtimes)
    _check_contracts(candidates, dataset)
    with contextlib.ExitStack() as stack:
        for candidate in candidates:
            try:
                candidate.runner = stack.enter_context(candidate.artifact.runner(candidate.runtime))
            except (UnavailableError, GateError) as error:  # no GPU, or built for another one
                candidate.reason = str(error)
        running = {i: c.runner for i, c in enumerate(candidates) if c.runner is not None}
        labels = _score(candidates, running, dataset, progress)
        progress("limits of this machine", 0.0)
        machine = None if all(runner.on_gpu for runner in running.values()) else machine_rates()
        contract = candidates[0].artifact.contract
        images, _ = next(dataset.batches(contract, batches[0]))
        for index, runner in running.items():
            progress("time by layer", 0.0)
            candidates[index].layers_ms = runner.layer_times_ms(images)
        deadline = started + (seconds if server_ms is None else seconds / 2)
        timings = time_runners(running, dataset, contract, batches, deadline, progress)
        if server_ms is not None:
            images, _ = next(dataset.batches(contract, batches[-1]))
            _serve(candidates, running, images, timings, batches[-1], server_ms, seconds / 2, progress)
    accuracy = _judge(candidates, labels)
    rows = _rows(candidates, batches, timings, labels, machine)
    return BenchReport(
        environment=here,
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        classes=list(dataset.classes),
        images=len(labels),
        seconds=round(time.perf_counter() - started, 1),
        machine=machine,
        rows=rows,
        accuracy=accuracy,
        choices=choose(rows, max_drop) if max_drop is not None else [],
    )


def _serve(
    candidates: Sequence[_Candidate],
    running: dict[int, Runner],
    images: npt.NDArray[np.float32],
    timings: Timings,
    batch: int,
    bound_ms: float,
    seconds: float,
    progress: Progress,
) -> None:
    for index, runner in running.items():
        candidates[index].server = serve(
            runner,
            np.resize(images, (batch, *images.shape[1:])),
            bound_ms=bound_ms,
            capacity_per_s=1000 * batch / float(np.median(timings[index, batch, "host"])),
            seconds=seconds / len(running),
            progress=partial(progress, "server"),
        )


def _rows(
    candidates: Sequence[_Candidate],
    batches: Sequence[int],
    timings: Timings,
    labels: npt.NDArray[np.int64],
    machine: Machine | None,
) -> list[Row]:
    reference = next((index for index, c in enumerate(candidates) if c.runner is not None), None)
    rows = []
    for index, candidate in enumerate(candidates):
        if candidate.runner is None or reference is None:
            rows += [_row(candidate, batch, status="skipped", reason=candidate.reason) for batch in batches]
            continue
        score = _scores(candidate, candidates[reference], labels)
        layers = None if candidate.runner.on_gpu else candidate.artifact.layers()
        for batch in batches:
            figures = _figures(timings, index, reference, batch)
            if layers is not None and machine is not None:
                image_bytes = 4 * prod(candidate.artifact.contract.input_shape)
                figures["limit"] = limit(layers, image_bytes, batch, figures["latency_ms"].p50, machine)
            if batch == batches[0]:
                figures["layers_ms"] = candidate.layers_ms
            if batch == batches[-1]:
                figures["server"] = candidate.server
            rows.append(_row(candidate, batch, status="ok", **score, **figures))
    return rows


def choose(rows: Sequence[Row], max_drop: float) -> list[Choice]:
    """The fastest row of each batch size whose top-1 is at most ``max_drop`` percentage points below the first's."""
    running = [row for row in rows if row.latency_ms is not None and row.top1 is not None]
    choices = []
    for batch in dict.fromkeys(row.batch for row in running):
        same = [row for row in running if row.batch == batch]
        gate = (same[0].top1 or 0.0) - max_drop / 100
        good = [row for row in same if (row.top1 or 0.0) >= gate]
        best = max(good, key=lambda row: row.images_per_s or 0.0)
        reason = (
            f"fastest of {len(good)} that meet the gate (top-1 >= {gate:.2%}), of {len(same)} measured: "
            f"{best.latency_ms.p50 if best.latency_ms else 0:.3g} ms, top-1 {best.top1:.2%}"
        )
        choices.append(Choice(batch, best.artifact, best.runtime, reason))
    return choices


def _candidates(
    artifacts: Sequence[Artifact], runtimes: Sequence[str] | Mapping[Path, Sequence[str]]
) -> list[_Candidate]:
    found: list[_Candidate] = []
    for artifact in artifacts:
        asked = runtimes.get(artifact.path, ()) if isinstance(runtimes, Mapping) else runtimes
        chosen = [name for name in artifact.runtimes if name in asked] if asked else artifact.runtimes[:1]
        if not chosen:
            raise UsageError(
                f"{artifact.path} does not run on {', '.join(asked)}; it runs on {', '.join(artifact.runtimes)}"
                f" (runtimes: {', '.join(RUNTIMES)})"
            )
        found += [_Candidate(artifact, name) for name in chosen]
    return found


def _check_contracts(candidates: Sequence[_Candidate], dataset: ImageDataset) -> None:
    """One preprocessing for all, and classes that the data set knows."""
    first = candidates[0].artifact
    for candidate in candidates:
        artifact = candidate.artifact
        if artifact.contract.fingerprint != first.contract.fingerprint:
            raise InputError(
                f"{artifact.path} and {first.path} have different preprocessing contracts; bench them separately"
            )
        dataset.labelled(artifact.contract, artifact.classes, str(artifact.path))


def _score(
    candidates: Sequence[_Candidate], running: dict[int, Runner], dataset: ImageDataset, progress: Progress
) -> npt.NDArray[np.int64]:
    """Run the whole data set through every candidate, batch by batch; returns the labels."""
    outputs: dict[int, list[npt.NDArray[np.float32]]] = {index: [] for index in running}
    labels: list[npt.NDArray[np.int64]] = []
    for images, truth in dataset.batches(candidates[0].artifact.contract, _SCORING_BATCH):
        labels.append(truth)
        for index, runner in running.items():
            outputs[index].append(runner.infer(images))
        progress("accuracy", sum(map(len, labels)) / len(dataset))
    for index, output in outputs.items():
        candidates[index].logits = np.concatenate(output)
    return np.concatenate(labels)


def _judge(candidates: Sequence[_Candidate], labels: npt.NDArray[np.int64]) -> list[Accuracy]:
    judged: list[Accuracy] = []
    for candidate in candidates:
        if candidate.logits is not None:
            reference = judged[0].wrong if judged else None
            judged.append(judge(str(candidate.artifact.path), candidate.runtime, candidate.logits, labels, reference))
    return judged


def _scores(candidate: _Candidate, reference: _Candidate, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    assert candidate.logits is not None
    assert reference.logits is not None
    return {
        "top1": topk_accuracy(candidate.logits, labels, 1),
        "top5": topk_accuracy(candidate.logits, labels, 5),
        "agreement": agreement(candidate.logits, reference.logits),
    }


def _figures(timings: Timings, index: int, reference: int, batch: int) -> dict[str, Any]:
    rounds = {boundary: timings[index, batch, boundary] for boundary in BOUNDARIES}
    host = summarize(rounds["host"])
    same_call = rounds["device"] is rounds["host"]
    return {
        "latency_ms": host,
        "device_ms": host if same_call else summarize(rounds["device"]),
        "end_to_end_ms": summarize(rounds["end_to_end"]),
        "images_per_s": 1000 * batch / host.p50,
        "ratio": paired_ratio(rounds["host"], timings[reference, batch, "host"]) if index != reference else None,
        "samples_ms": {
            boundary: samples.tolist() for boundary, samples in rounds.items() if boundary != "device" or not same_call
        },
    }


def _row(candidate: _Candidate, batch: int, **figures: Any) -> Row:
    artifact = candidate.artifact
    return Row(
        artifact=str(artifact.path),
        runtime=candidate.runtime,
        precision=artifact.precision.value,
        batch=batch,
        size_bytes=artifact.size_bytes,
        **figures,
    )
