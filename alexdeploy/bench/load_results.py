"""The results of a load report as values; the JSON form is these, key by key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from alexdeploy.bench.intervals import Estimate, Ratio
from alexdeploy.bench.traffic import Load

Target = Literal["server", "queued", "shared"]


@dataclass(frozen=True)
class Served:
    """What the server's own counters say of the slices of one load; they are differences.

    Attributes:
        inferences: images, those of other clients too.
        executions: runs of the model.
        mean_batch: inferences over executions.
        queue_ms: mean wait of a request in the server's queue.
        compute_ms: mean time of a request in the model, with its whole batch.
    """

    inferences: int
    executions: int
    mean_batch: float
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True)
class LoadRow:
    """One target under one load.

    Attributes:
        target: ``server``; ``queued``, the runner in this process with one worker, which runs what waits together; or
            ``shared``, the runner in this process, called by every thread.
        status: ``overloaded`` where arrivals waited ever longer, ``failed`` where a request got no answer or another
            image's.
        reason: of a status that is not ``ok``, in words.
        requests: sent, those too that went before a slice began and do not count.
        failures: of them.
        unsent: arrivals that were due while no sender was free, until the slice was given up.
        images_per_s: answers per second, the mean over the rounds; None where it failed.
        p50_ms, p90_ms, p99_ms: latency; of arrivals counted from when they were due. None but for ``ok``.
        p99_ratio: the p99 of ``queued`` over this one's: above 1 is faster. None for ``queued`` itself, and where
            one of the two is not ``ok``.
        rate_ratio: images/s over those of ``queued``, likewise; None for arrivals, all of which both answered.
        served: None for what is no server, or for one without counters.
        samples_ms: the latency of every answer that counts, a list per round.
        rates_per_s: images per second, round by round.
    """

    target: Target
    load: Load
    status: Literal["ok", "overloaded", "failed"]
    requests: int
    reason: str | None = None
    failures: int = 0
    unsent: int = 0
    images_per_s: Estimate | None = None
    p50_ms: Estimate | None = None
    p90_ms: Estimate | None = None
    p99_ms: Estimate | None = None
    p99_ratio: Ratio | None = None
    rate_ratio: Ratio | None = None
    served: Served | None = None
    samples_ms: list[list[float]] = field(default_factory=list)
    rates_per_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class LoadReport:
    """A server under load beside the same artifact's runner in this process.

    Attributes:
        runtime: of the runner in this process.
        protocol: how the server was asked, such as ``kserve-http``.
        same_machine: whether the server is on this one, where it shares the cores with its clients.
        max_batch: images that the queued runner takes together at most.
        images: different ones, sent in turn.
        agreement, relative_error: of the server's answers with the runner's, before anything was timed.
        rounds: in each every target had every load once, in random order.
        seconds: that all of it took.
    """

    environment: dict[str, Any]
    dataset: str
    dataset_fingerprint: str
    taken: str
    artifact: str
    precision: str
    runtime: str
    url: str
    model: str
    protocol: str
    same_machine: bool
    max_batch: int
    images: int
    agreement: float
    relative_error: float
    rounds: int
    seconds: float
    rows: list[LoadRow]
