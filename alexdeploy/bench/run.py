"""The bench itself: every artifact on every runtime that takes it, accuracy on the data set, latency per batch size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alexdeploy.bench.environment import environment
from alexdeploy.bench.measure import Latency, measure, summarize
from alexdeploy.compare import agreement, topk_accuracy
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError, UnavailableError, UsageError
from alexdeploy.runners.artifact import RUNTIMES, Artifact, open_artifact, open_runner
from alexdeploy.runners.base import Runner

_SCORING_BATCH = 64
_MIN_CALLS = 20


@dataclass(frozen=True)
class Row:
    """One line of the table. Accuracy is of the artifact on that runtime and the same for each of its batch sizes.

    ``agreement`` is the share of images with the same top-1 as the reference, the first row that ran.
    """

    artifact: str
    runtime: str
    precision: str
    batch: int
    size_bytes: int
    status: Literal["ok", "skipped"]
    reason: str | None = None
    latency_ms: Latency | None = None
    images_per_s: float | None = None
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class BenchReport:
    """``images`` is the number of images that accuracy was judged on."""

    environment: dict[str, Any]
    dataset: str
    images: int
    rows: list[Row]


@dataclass
class _Candidate:
    artifact: Artifact
    runtime: str
    runner: Runner | None = None
    reason: str | None = None
    logits: npt.NDArray[np.float32] | None = None


def bench(
    paths: Sequence[Path],
    dataset: ImageDataset,
    *,
    batches: Sequence[int] = (1, 8),
    runtimes: Sequence[str] = (),
    seconds: float = 1.0,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> BenchReport:
    """Score and time artifacts on the same images.

    Args:
        paths: checkpoints, ONNX files and engines; the first that runs is the reference.
        dataset: images to judge on.
        batches: batch sizes to time.
        runtimes: limit to these; empty means every runtime that takes the file.
        seconds: least time measured per row.
        progress: called with what is being done and the share of it that is.

    Raises:
        InputError: an unusable file, contracts that differ, or labels that do not match the data set.
        UsageError: a file that none of ``runtimes`` takes.
    """
    candidates = _candidates([open_artifact(path) for path in paths], runtimes)
    _check_contracts(candidates, dataset)
    with contextlib.ExitStack() as stack:
        for candidate in candidates:
            try:
                candidate.runner = stack.enter_context(open_runner(candidate.artifact, candidate.runtime))
            except UnavailableError as error:
                candidate.reason = str(error)
        labels = _score(candidates, dataset, progress)
        latencies = _time(candidates, dataset, batches, seconds, progress)
    reference = next((c.logits for c in candidates if c.logits is not None), None)
    rows = [
        _row(candidate, batch, latencies.get((index, batch)), labels, reference)
        for index, candidate in enumerate(candidates)
        for batch in batches
    ]
    return BenchReport(environment(), dataset.name, len(labels), rows)


def _candidates(artifacts: Sequence[Artifact], runtimes: Sequence[str]) -> list[_Candidate]:
    found: list[_Candidate] = []
    for artifact in artifacts:
        chosen = [name for name in artifact.runtimes if not runtimes or name in runtimes]
        if not chosen:
            raise UsageError(
                f"{artifact.path} does not run on {', '.join(runtimes)}; it runs on {', '.join(artifact.runtimes)}"
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
        dataset.check_labels(artifact.contract, artifact.classes, str(artifact.path))


def _score(
    candidates: Sequence[_Candidate], dataset: ImageDataset, progress: Callable[[str, float], None]
) -> npt.NDArray[np.int64]:
    """Run the whole data set through every candidate, batch by batch; returns the labels."""
    running = [candidate for candidate in candidates if candidate.runner is not None]
    outputs: list[list[npt.NDArray[np.float32]]] = [[] for _ in running]
    labels: list[npt.NDArray[np.int64]] = []
    for images, truth in dataset.batches(candidates[0].artifact.contract, _SCORING_BATCH):
        labels.append(truth)
        for output, candidate in zip(outputs, running, strict=True):
            assert candidate.runner is not None
            output.append(candidate.runner.infer(images))
        progress("accuracy", sum(map(len, labels)) / len(dataset))
    for output, candidate in zip(outputs, running, strict=True):
        candidate.logits = np.concatenate(output)
    return np.concatenate(labels)


def _time(
    candidates: Sequence[_Candidate],
    dataset: ImageDataset,
    batches: Sequence[int],
    seconds: float,
    progress: Callable[[str, float], None],
) -> dict[tuple[int, int], Latency]:
    """Latency by (candidate index, batch size), on real images."""
    source, _ = next(iter(dataset.batches(candidates[0].artifact.contract, max(batches))))
    latencies: dict[tuple[int, int], Latency] = {}
    for batch in batches:
        images = np.take(source, range(batch), axis=0, mode="wrap")
        running = [(i, c.runner) for i, c in enumerate(candidates) if c.runner is not None]
        calls = [partial(runner.infer, images) for _, runner in running]
        samples = measure(calls, seconds=seconds, min_calls=_MIN_CALLS, progress=partial(progress, f"batch {batch}"))
        for (index, _), sample in zip(running, samples, strict=True):
            latencies[index, batch] = summarize(sample)
    return latencies


def _row(
    candidate: _Candidate,
    batch: int,
    latency: Latency | None,
    labels: npt.NDArray[np.int64],
    reference: npt.NDArray[np.float32] | None,
) -> Row:
    artifact, logits = candidate.artifact, candidate.logits
    if latency is None or logits is None or reference is None:
        status: Literal["ok", "skipped"] = "skipped"
    else:
        status = "ok"
    return Row(
        artifact=str(artifact.path),
        runtime=candidate.runtime,
        precision=artifact.precision.value,
        batch=batch,
        size_bytes=artifact.size_bytes,
        status=status,
        reason=candidate.reason,
        latency_ms=latency,
        images_per_s=1000 * batch / latency.p50 if latency else None,
        top1=topk_accuracy(logits, labels, 1) if logits is not None else None,
        top5=topk_accuracy(logits, labels, 5) if logits is not None else None,
        agreement=agreement(logits, reference) if logits is not None and reference is not None else None,
    )
