"""The results of a bench as values; the JSON form is these, key by key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexdeploy.bench.accuracy import Accuracy
from alexdeploy.bench.gpu_state import GpuState
from alexdeploy.bench.gpu_times import GpuFigures
from alexdeploy.bench.intervals import Floats, Latency, Ratio
from alexdeploy.bench.limits import Limit, Machine
from alexdeploy.bench.server import Server


@dataclass(frozen=True)
class Row:
    """One line of the table. Accuracy is of the artifact on that runtime and the same for each of its batch sizes.

    Attributes:
        reason: why it was skipped, or why an engine that ran has no ``gpu``.
        input_bytes: of one image as the model takes it: a request without its envelope.
        latency_ms: host to host: a batch in host memory goes in, logits in host memory come out.
        device_ms: in the runtime's own memory, without host copies. CPU runtimes have none; unless the runner
            has a call of its own for this, it equals ``latency_ms``.
        end_to_end_ms: from encoded images (in the page cache): decoded, preprocessed on one thread, then as above.
            Of preprocessed tensors: from their file.
        images_per_s: batch over median of ``latency_ms``.
        ratio: speed against the reference, the first row that ran, at the same batch; None for the reference.
        top1, top5: share of images answered rightly; None where the labels are not known, as the report says.
        agreement: share of images with the same top-1 as the reference.
        tf32: whether FP32 could be computed as TF32; None for a row that did not run on a GPU.
        gpu: times by CUDA events; only of a runtime that has them, on a GPU.
        layers_ms: median time by layer of the runtime, at the first batch size.
        grouped: convolutions with groups that TensorRT computes in INT8.
        server: single images arriving at random, up to ``batch`` run together; at the last batch size, where asked for.
        samples_ms: every timed call by boundary (``host``, ``device``, ``end_to_end``), a list per round.
    """

    artifact: str
    runtime: str
    precision: str
    batch: int
    size_bytes: int
    status: Literal["ok", "skipped"]
    reason: str | None = None
    input_bytes: int | None = None
    latency_ms: Latency | None = None
    device_ms: Latency | None = None
    end_to_end_ms: Latency | None = None
    images_per_s: float | None = None
    ratio: Ratio | None = None
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    limit: Limit | None = None
    tf32: Literal["off", "on", "not known"] | None = None
    gpu: GpuFigures | None = None
    layers_ms: dict[str, float] = field(default_factory=dict)
    grouped: list[str] = field(default_factory=list)
    server: Server | None = None
    samples_ms: dict[str, list[list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.latency_ms is None) != (self.images_per_s is None):
            raise ValueError("`latency_ms` and `images_per_s` are of a row that ran, both")
        rounds = [samples for boundary in self.samples_ms.values() for samples in boundary]
        if self.samples_ms and not self.samples_ms.get("host"):
            raise ValueError("`samples_ms` lacks those of `host`")
        if not all(samples and min(samples) > 0 for samples in rounds):
            raise ValueError("`samples_ms` has a round without calls, or a call that took no time")

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The identity of the row in another bench."""
        return self.artifact, self.runtime, self.precision, self.batch

    @property
    def rounds(self) -> list[Floats]:
        """The host's samples, in ms, an array for each round."""
        return [np.array(samples, np.float64) for samples in self.samples_ms["host"]]


@dataclass(frozen=True)
class Choice:
    """The fastest that meets the accuracy gate at one batch size, and why."""

    batch: int
    artifact: str
    runtime: str
    reason: str


@dataclass(frozen=True)
class Change:
    """A row beside the same row of an earlier bench. ``ratio`` above 1 is faster than then."""

    artifact: str
    runtime: str
    batch: int
    ratio: Ratio
    p_less_accurate: float | None
    regression: bool


@dataclass(frozen=True)
class NotFaster:
    """An INT8 row that is not faster than one of a wider type, by the samples of both, and facts that may explain it.

    ``facts`` are in words; there is at least one.
    """

    artifact: str
    runtime: str
    batch: int
    than: str
    than_runtime: str
    verdict: Literal["slower", "no difference shown"]
    facts: list[str]


@dataclass(frozen=True)
class BenchReport:
    """What was measured, where, and on what.

    Attributes:
        classes: names in label order; empty without labels.
        images: how many were judged.
        seconds: that the whole bench took.
        gpu_states: clocks, power and temperature of the GPU during each group of measurements, where a row ran on one.
        not_faster: INT8 rows that are not faster than a wider type, and what is known of them.
        taken: which images of how many, in words; empty in reports that are older than this.
        unlabelled: why accuracy is not known, in words; empty where it is.
    """

    environment: dict[str, Any]
    dataset: str
    dataset_fingerprint: str
    classes: list[str]
    images: int
    seconds: float
    machine: Machine | None
    rows: list[Row]
    accuracy: list[Accuracy]
    choices: list[Choice] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    gpu_states: list[GpuState] = field(default_factory=list)
    not_faster: list[NotFaster] = field(default_factory=list)
    taken: str = ""
    unlabelled: str = ""

    @property
    def judged_on(self) -> str:
        """``359 of 1797 images (the held-out fifth)``."""
        return self.taken or f"{self.images} images"

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("it has no rows")

    def name(self, artifact: str) -> str:
        """The file's name, with as many of its folders as tell it from the other files of the bench."""
        others = [Path(row.artifact).parts for row in self.rows if row.artifact != artifact]
        parts = Path(artifact).parts
        for count in range(1, len(parts)):
            if all(other[-count:] != parts[-count:] for other in others):
                return str(Path(*parts[-count:]))
        return artifact
