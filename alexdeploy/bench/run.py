"""The bench itself: every artifact on every runtime that takes it, accuracy on the data set, latency per batch size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alexdeploy.arrays import Batch, Labels, Logits
from alexdeploy.bench.accuracy import Accuracy, judge
from alexdeploy.bench.candidates import (
    SCORING_BATCH,
    Candidate,
    candidates_of,
    check_device,
    check_one_network,
    contracts_of,
    first_inputs,
    for_batches,
    running,
)
from alexdeploy.bench.choice import choose
from alexdeploy.bench.environment import environment
from alexdeploy.bench.gpu_state import GpuState, GpuWatch
from alexdeploy.bench.gpu_times import time_on_gpu
from alexdeploy.bench.intervals import paired_ratio, summarize
from alexdeploy.bench.limits import Machine, limit, machine_rates
from alexdeploy.bench.not_faster import slow_int8
from alexdeploy.bench.results import BenchReport, Row
from alexdeploy.bench.server import serve
from alexdeploy.bench.timing import BOUNDARIES, RunnerFailedError, Timings, time_runners
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import GateError, InputError, UnavailableError
from alexdeploy.files import printable
from alexdeploy.machine import gpu_ids
from alexdeploy.metrics import agreement, topk_accuracy
from alexdeploy.optional import require
from alexdeploy.runners.artifact import EngineArtifact, open_artifact
from alexdeploy.runners.base import Runner
from alexdeploy.runners.runtimes import on_device
from alexdeploy.specs import Progress, cuda_ordinal

DEFAULT_SECONDS = 20.0
_EVENTS_SHARE = 0.2  # of the time, where there are runners with such times


def run_bench(
    paths: Sequence[Path],
    dataset: ImageDataset,
    *,
    batches: Sequence[int] = (1, 8),
    runtimes: Sequence[str] | Mapping[Path, Sequence[str]] = (),
    seconds: float = DEFAULT_SECONDS,
    max_drop: float | None = None,
    server_ms: float | None = None,
    device: str | None = None,
    progress: Progress = lambda what, share: None,
) -> BenchReport:
    """Score and time artifacts on the same images, each preprocessed as the file's own contract says.

    Without labels, or with other classes than the model's, accuracy is None and the report says why.

    Args:
        paths: checkpoints, ONNX files and engines; the first that runs is the reference.
        dataset: images to judge on; its classes are matched with the model's by name.
        batches: batch sizes to time.
        runtimes: limit to these, all files or file by file; empty means the usual one of each file.
        seconds: for the whole bench. All images are judged and ten rounds are timed even where that takes longer.
        max_drop: choose the fastest whose top-1 is at most this many percentage points below the reference's, or
            without labels whose agreement with the reference is at most that far below 100 %.
        server_ms: latency bound of a server; half of ``seconds`` then goes to the rates it can keep.
        device: the GPU for the runtimes that run on one, ``cuda:1`` for the second; None for the first.
        progress: called with what is being done and the share of it that is.

    Raises:
        UnavailableError: ``server_ms`` without LoadGen.
        InputError: an unusable file, images that a file cannot take, or files that are no versions of one network.
        GateError: an answer that is NaN or infinite.
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
    ordinal = cuda_ordinal(device)
    here = environment(ordinal)
    candidates = candidates_of([open_artifact(path) for path in paths], runtimes)
    check_device(candidates, device)
    check_one_network(candidates)
    first = candidates[0].artifact
    outputs = next((c.artifact.classes for c in candidates if c.artifact.classes is not None), None)
    matched = dataset.matched(first.contract, outputs, str(first.path))
    with contextlib.ExitStack() as stack:
        for candidate in candidates:
            try:
                options = on_device(candidate.runtime, device) | for_batches(candidate.runtime, batches)
                candidate.runner = candidate.artifact.runner(candidate.runtime, **options)
                stack.callback(candidate.close)
            except (UnavailableError, GateError) as error:  # no GPU, or built for another one
                candidate.reason = str(error)
        labels = _score(candidates, matched, progress)
        progress("limits of this machine", 0.0)
        machine = None if all(runner.on_gpu for runner in running(candidates).values()) else machine_rates()
        progress("time by layer", 0.0)
        _time_layers(candidates, first_inputs(dataset, contracts_of(candidates), batches[0]))
        deadline = started + (seconds if server_ms is None else seconds / 2)
        timings, states = _time(candidates, dataset, batches, deadline, ordinal, progress)
        if server_ms is not None:
            inputs = first_inputs(dataset, contracts_of(candidates), batches[-1])
            _serve(candidates, inputs, timings, batches[-1], server_ms, seconds / 2, progress)
        known = labels if matched.is_labelled else None
        rows = _rows(candidates, batches, timings, known, machine)
        slow = slow_int8(rows, candidates)
    return BenchReport(
        environment=here,
        dataset=printable(dataset.name),
        dataset_fingerprint=dataset.fingerprint,
        classes=[printable(name) for name in matched.classes] if matched.is_labelled else [],
        images=len(labels),
        seconds=round(time.perf_counter() - started, 1),
        machine=machine,
        rows=rows,
        accuracy=_judge(candidates, known) if known is not None else [],
        choices=choose(rows, max_drop) if max_drop is not None else [],
        gpu_states=states,
        not_faster=slow,
        taken=printable(dataset.taken) + (f", {len(dataset.skipped)} of them unreadable" if dataset.skipped else ""),
        unlabelled="" if matched.is_labelled else printable(matched.unlabelled or f"{dataset.name} has no labels"),
    )


def _time_layers(candidates: Sequence[Candidate], inputs: Mapping[int, Batch]) -> None:
    for index, runner in running(candidates).items():
        try:
            candidates[index].layers_ms = runner.layer_times_ms(inputs[index])
            candidates[index].layer_types = dict(runner.layer_types)
        except UnavailableError as error:
            candidates[index].drop(error)


def _card(runners: Iterable[Runner], ordinal: int) -> str | None:
    """The GPU to watch; None where nothing runs on one."""
    ids = gpu_ids(ordinal) if any(runner.on_gpu for runner in runners) else None
    return ids.card if ids is not None else None


def _time(
    candidates: Sequence[Candidate],
    dataset: ImageDataset,
    batches: Sequence[int],
    deadline: float,
    ordinal: int,
    progress: Progress,
) -> tuple[Timings, list[GpuState]]:
    """All against each other by the clock; then each runner that can by CUDA events, in the time kept for that."""
    runners, contracts = running(candidates), contracts_of(candidates)
    by_events = {i: runner for i, runner in runners.items() if type(runner).gpu_times is not Runner.gpu_times}
    kept = _EVENTS_SHARE * max(deadline - time.perf_counter(), 0.0) if by_events else 0.0
    try:
        with GpuWatch(_card(runners.values(), ordinal)) as watch:
            timings = time_runners(runners, contracts, dataset, batches, deadline - kept, progress, watch.during)
            if by_events:
                inputs = first_inputs(dataset, {index: contracts[index] for index in by_events}, max(batches))
                for (index, batch), found in time_on_gpu(by_events, inputs, batches, kept, watch, progress).items():
                    candidates[index].gpu[batch] = found
    except RunnerFailedError as error:
        candidates[error.index].drop(error)
    else:
        return timings, watch.states
    del runners, by_events  # else its memory would stay
    return _time(candidates, dataset, batches, deadline, ordinal, progress)


def _serve(
    candidates: Sequence[Candidate],
    inputs: Mapping[int, Batch],
    timings: Timings,
    batch: int,
    bound_ms: float,
    seconds: float,
    progress: Progress,
) -> None:
    for index, images in inputs.items():
        runner = candidates[index].runner
        assert runner is not None
        try:
            candidates[index].server = serve(
                runner,
                np.resize(images, (batch, *images.shape[1:])),
                bound_ms=bound_ms,
                capacity_per_s=1000 * batch / float(np.median(timings[index, batch, "host"])),
                seconds=seconds / len(inputs),
                progress=partial(progress, "server"),
            )
        except UnavailableError as error:
            candidates[index].drop(error)


def _rows(
    candidates: Sequence[Candidate],
    batches: Sequence[int],
    timings: Timings,
    labels: Labels | None,
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
                p50_ms = figures["latency_ms"].p50
                figures["limit"] = limit(layers, candidate.input_bytes, batch, p50_ms, machine)
            by_events = candidate.gpu.get(batch)
            figures |= {"reason": by_events} if isinstance(by_events, str) else {"gpu": by_events}
            if batch == batches[0]:
                figures["layers_ms"] = candidate.layers_ms
            if batch == batches[-1]:
                figures["server"] = candidate.server
            rows.append(_row(candidate, batch, status="ok", tf32=_tf32(candidate.runner), **score, **figures))
    return rows


def _tf32(runner: Runner) -> str | None:
    if not runner.on_gpu:
        return None
    return "not known" if runner.tf32 is None else "on" if runner.tf32 else "off"


def _score(candidates: Sequence[Candidate], dataset: ImageDataset, progress: Progress) -> Labels:
    """Run the whole data set through every candidate, batch by batch; returns the labels."""
    outputs: dict[int, list[Logits]] = {index: [] for index in running(candidates)}
    labels: list[Labels] = [dataset.labels[:0]]
    for inputs, truth in dataset.batches_for(contracts_of(candidates).values(), SCORING_BATCH):
        for index, runner in running(candidates).items():
            try:
                logits = runner.infer(inputs[candidates[index].contract])
            except UnavailableError as error:
                candidates[index].drop(error)
                continue
            _check_finite(candidates[index], logits, dataset, sum(map(len, labels)))
            outputs[index].append(logits)
        labels.append(truth)
        progress("answers", sum(map(len, labels)) / len(dataset))
    judged = [candidates[index] for index in running(candidates)]
    for index in running(candidates):
        candidates[index].logits = np.concatenate(outputs[index])
    _check_same_outputs(judged)
    return np.concatenate(labels)


def _check_finite(candidate: Candidate, logits: Logits, dataset: ImageDataset, before: int) -> None:
    """Refuse NaN and infinity, whose largest entry is no answer; ``before`` images were run before these."""
    wrong = ~np.isfinite(logits).all(axis=1)
    if wrong.any():
        read = [name for name in dataset.samples if name not in dataset.skipped]
        image = printable(read[before + int(np.argmax(wrong))])
        raise GateError(
            f"{candidate}: its answer to image '{image}' is NaN or infinite; compare with the float model names the "
            "layer, or make the file anew"
        )


def _check_same_outputs(candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        assert candidate.logits is not None
        assert candidates[0].logits is not None
        found, expected = candidate.logits.shape[1], candidates[0].logits.shape[1]
        if found != expected:
            raise InputError(f"{candidate} has {found} outputs and {candidates[0]} {expected}; bench them separately")


def _judge(candidates: Sequence[Candidate], labels: Labels) -> list[Accuracy]:
    judged: list[Accuracy] = []
    for candidate in candidates:
        if candidate.logits is not None:
            reference = judged[0].wrong if judged else None
            judged.append(judge(candidate.name, candidate.runtime, candidate.logits, labels, reference))
    return judged


def _scores(candidate: Candidate, reference: Candidate, labels: Labels | None) -> dict[str, Any]:
    assert candidate.logits is not None
    assert reference.logits is not None
    return {
        "top1": topk_accuracy(candidate.logits, labels, 1) if labels is not None else None,
        "top5": topk_accuracy(candidate.logits, labels, 5) if labels is not None else None,
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


def _row(candidate: Candidate, batch: int, **figures: Any) -> Row:
    artifact = candidate.artifact
    return Row(
        artifact=candidate.name,
        runtime=candidate.runtime,
        precision=artifact.precision.value,
        batch=batch,
        size_bytes=artifact.size_bytes,
        input_bytes=candidate.input_bytes,
        grouped=[*artifact.record.grouped] if isinstance(artifact, EngineArtifact) else [],
        **figures,
    )
