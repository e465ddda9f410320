"""A server that speaks KServe v2 under load, beside the same artifact's runner in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np

from alexdeploy.arrays import Batch, Logits
from alexdeploy.bench.candidates import for_batches
from alexdeploy.bench.environment import environment
from alexdeploy.bench.load_results import LoadReport, Target
from alexdeploy.bench.load_rounds import Expected, take_rounds
from alexdeploy.bench.traffic import SENDERS, Ask, Load
from alexdeploy.bench.waiting import QueuedRunner
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import GateError, InputError, UsageError
from alexdeploy.files import printable
from alexdeploy.metrics import agreement, relative_error, rerun_tolerance
from alexdeploy.runners.artifact import open_artifact
from alexdeploy.runners.base import Runner
from alexdeploy.runners.kserve import KServeRunner, parse_url
from alexdeploy.specs import Progress, Runtime, cuda_ordinal

IMAGES = 64
_MOST_IN_FLIGHT = 1024
_RATES = 0.1, 100_000.0
_REFUSED = "nothing was timed; alexdeploy publish with `check` says more"


def run_load(
    path: Path,
    dataset: ImageDataset,
    url: str,
    *,
    model: str | None = None,
    in_flight: Sequence[int],
    rates: Sequence[float],
    runtime: Runtime | None = None,
    device: str | None = None,
    seconds: float,
    progress: Progress = lambda what, share: None,
) -> LoadReport:
    """Send single images to a server, and to the artifact's runner here: queued, and shared by threads.

    Args:
        path: what the server serves.
        dataset: up to 64 of its images are sent, in turn.
        url: of the server, as ``KServeRunner`` takes it.
        model: its name there; None for the artifact's stem.
        in_flight: numbers of requests that are kept in flight.
        rates: arrivals per second, at random (Poisson).
        runtime: of the runner here; None for the usual one.
        device: its GPU, where it has one.
        seconds: for everything; ten rounds are taken even if that is longer.
        progress: called with what is being done and the share of it that is.

    Raises:
        UsageError: no such URL; no load, one beyond 1,024 in flight, or a rate out of 0.1 to 100,000.
        UnavailableError: no server, or nothing here runs the artifact.
        InputError: an unusable file, or no such model on the server.
        GateError: the server answers something else than the runner.
    """
    loads = loads_for(url, in_flight, rates)
    started = time.perf_counter()
    artifact = open_artifact(path)
    name = model or path.stem
    chosen = dataset.subset(IMAGES)
    images = next((inputs[artifact.contract] for inputs, _ in chosen.batches_for([artifact.contract], IMAGES)), None)
    if images is None:
        raise InputError(f"{dataset.name}: no image that can be read")
    here = environment(cuda_ordinal(device))
    with KServeRunner(url, name) as server:
        max_batch = _max_batch(server) or max(in_flight, default=SENDERS)
        options = for_batches(runtime, (1, max_batch)) if runtime is not None else {}
        with artifact.runner(runtime, device=device, **options) as runner:
            progress("answers", 0.0)
            compared = _compare(server, runner, images, rerun_tolerance(artifact.precision), f"{url}: model '{name}'")
            with QueuedRunner(runner, max_batch) as queued:
                targets: dict[Target, Ask] = {"server": server.infer, "queued": queued.infer, "shared": runner.infer}
                rows, rounds = take_rounds(
                    targets,
                    loads,
                    compared.expected,
                    seconds=max(seconds - (time.perf_counter() - started), 1e-3),
                    one_image_s=compared.one_image_s,
                    counters=server.counters,
                    progress=progress,
                )
    return LoadReport(
        environment=here,
        dataset=printable(dataset.name),
        dataset_fingerprint=chosen.fingerprint,
        taken=printable(chosen.taken),
        artifact=printable(path),
        precision=artifact.precision.value,
        runtime=runner.runtime,
        url=url,
        model=name,
        protocol=server.runtime,
        same_machine=is_loopback(url),
        max_batch=max_batch,
        images=len(images),
        agreement=compared.agreement,
        relative_error=compared.relative_error,
        rounds=rounds,
        seconds=round(time.perf_counter() - started, 1),
        rows=rows,
    )


def loads_for(url: str, in_flight: Sequence[int], rates: Sequence[float]) -> list[Load]:
    """The loads of a server, which is not asked yet.

    Raises:
        UsageError: as ``run_load``.
    """
    parse_url(url)
    loads = [*(Load(in_flight=count) for count in in_flight), *(Load(rate_per_s=rate) for rate in rates)]
    if not loads:
        raise UsageError("no load was given; expected `in_flight`, such as 1 and 16, or `rates`")
    if max(in_flight, default=1) > _MOST_IN_FLIGHT:
        raise UsageError(f"`in_flight` {max(in_flight)}: expected at most {_MOST_IN_FLIGHT}, each is a thread here")
    least, most = _RATES
    beyond = next((rate for rate in rates if not least <= rate <= most), None)
    if beyond is not None:
        raise UsageError(f"`rates` {beyond:g}: expected {least:g} to {most:,.0f} images per second")
    return loads


def _max_batch(server: KServeRunner) -> int:
    """The largest batch of its configuration; 0 where that does not say, or where the server tells none."""
    try:
        return int(server.config().max_batch_size)
    except InputError:  # not Triton
        return 0


def is_loopback(url: str) -> bool:
    """Whether a server's address says that it is on this machine."""
    host = urlsplit(f"//{parse_url(url)[1]}").hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True)
class _Compared:
    """The server's answers beside the runner's; ``one_image_s`` is what the slower of the two takes for one image."""

    expected: Expected
    agreement: float
    relative_error: float
    one_image_s: float


def _compare(server: Runner, runner: Runner, images: Batch, bound: float, who: str) -> _Compared:
    """Refuse a server that does not answer as the runner does; ``who`` is the subject of the message."""
    takes = [dim if isinstance(dim, int) and dim != -1 else found for dim, found in _dims(server, images)]
    if takes != [*images.shape[1:]] or len(server.input.shape) != images.ndim or images.dtype not in server.batch_types:
        raise GateError(f"{who} takes {server.input}, the artifact {runner.input}; {_REFUSED}")
    logits, here_s = _answers(runner.infer, images)
    if not np.isfinite(logits).all():
        raise GateError(f"{runner.runtime}: an answer of the artifact is NaN or infinite; compare names the layer")
    theirs, there_s = _answers(server.infer, images)
    if theirs.shape != logits.shape:
        raise GateError(f"{who} has {theirs.shape[1]} outputs, the artifact {logits.shape[1]}; {_REFUSED}")
    error = max(relative_error(one, right) for one, right in zip(theirs, logits, strict=True))
    shared = agreement(theirs, logits)
    if not error <= bound:
        raise GateError(
            f"{who} is not the artifact: its answers differ by {error:.2e} (relative), where {bound:g} is allowed, and "
            f"agree on {shared:.2%} of {len(images)} images; {_REFUSED}"
        )
    return _Compared(Expected(images, logits, bound), shared, error, max(here_s, there_s))


def _dims(server: Runner, images: Batch) -> Iterator[tuple[int | str, int]]:
    return zip(server.input.shape[1:], images.shape[1:], strict=False)


def _answers(infer: Callable[[Batch], Logits], images: Batch) -> tuple[Logits, float]:
    """Logits of the images, sent one by one as later under load, and the typical seconds of one."""
    logits, taken = [], []
    for index in range(len(images)):
        started = time.perf_counter()
        logits.append(infer(images[index : index + 1]))
        taken.append(time.perf_counter() - started)
    return np.concatenate(logits), median(taken)
