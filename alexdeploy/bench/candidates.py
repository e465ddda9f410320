"""What a bench compares: artifacts, each on a runtime, until one of them cannot run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import prod
from pathlib import Path

import numpy as np

from alexdeploy.arrays import Batch, Logits
from alexdeploy.bench.gpu_times import GpuFigures
from alexdeploy.bench.server import Server
from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError, UnavailableError, UsageError
from alexdeploy.files import printable
from alexdeploy.machine import why_no_cuda
from alexdeploy.runners.artifact import Artifact
from alexdeploy.runners.base import Runner
from alexdeploy.runners.runtimes import RUNTIMES, on_device
from alexdeploy.specs import Profile, Runtime, cuda_ordinal

SCORING_BATCH = 64


@dataclass
class Candidate:
    """An artifact on a runtime, and what was found of it; without a runner it is skipped, for the ``reason``."""

    artifact: Artifact
    runtime: Runtime
    runner: Runner | None = None
    reason: str | None = None
    logits: Logits | None = None
    layers_ms: dict[str, float] = field(default_factory=dict)
    layer_types: dict[str, str] = field(default_factory=dict)
    server: Server | None = None
    gpu: dict[int, GpuFigures | str] = field(default_factory=dict)

    @property
    def contract(self) -> Contract:
        return self.artifact.contract

    @property
    def input_bytes(self) -> int:
        """Of one image."""
        return prod(self.contract.input_shape) * np.dtype(self.contract.input_type).itemsize

    @property
    def name(self) -> str:
        """Of the file, as the report has it."""
        return printable(self.artifact.path)

    def close(self) -> None:
        """Close the runner, if there is one."""
        runner, self.runner = self.runner, None
        if runner is not None:
            runner.close()

    def drop(self, error: Exception) -> None:
        """It could be loaded and cannot run."""
        self.reason, self.logits = str(error), None
        with contextlib.suppress(UnavailableError):
            self.close()

    def __str__(self) -> str:
        return f"{self.name} on {self.runtime}"


def candidates_of(
    artifacts: Sequence[Artifact], runtimes: Sequence[str] | Mapping[Path, Sequence[str]]
) -> list[Candidate]:
    """Each file on those of its runtimes that were asked for, or on its usual one.

    Raises:
        UsageError: a file that none of them takes.
    """
    found: list[Candidate] = []
    for artifact in artifacts:
        asked = runtimes.get(artifact.path, ()) if isinstance(runtimes, Mapping) else runtimes
        chosen = [name for name in artifact.runtimes if name in asked] if asked else artifact.runtimes[:1]
        if not chosen:
            raise UsageError(
                f"{artifact.path} does not run on {', '.join(asked)}; it runs on {', '.join(artifact.runtimes)}"
                f" (runtimes: {', '.join(RUNTIMES)})"
            )
        found += [Candidate(artifact, name) for name in chosen]
    return found


def check_device(candidates: Sequence[Candidate], device: str | None) -> None:
    """Refuse a device that nothing would run on.

    Raises:
        UsageError: it was chosen, and every candidate runs on the CPU; the message has the reason.
    """
    if device is None or any(on_device(candidate.runtime, device) for candidate in candidates):
        return
    reason = why_no_cuda(cuda_ordinal(device)) or "name a runtime that has one, such as onnxruntime-cuda"
    names = ", ".join(dict.fromkeys(candidate.runtime for candidate in candidates))
    raise UsageError(f"`device` {device}: {names} would run on the CPU; {reason}")


def for_batches(runtime: Runtime, batches: Sequence[int]) -> dict[str, Profile]:
    """For a runtime that builds an engine on loading: the sizes that are timed, and that of scoring."""
    most = max(batches)
    sizes = Profile((1,), (most,), (max(most, SCORING_BATCH),))
    return {"batches": sizes} if "batches" in RUNTIMES[runtime].options else {}


def check_one_network(candidates: Sequence[Candidate]) -> None:
    """Refuse files that are not versions of one network.

    All pairs: a uint8 graph fits float graphs that do not fit together.
    """
    of_contract = {candidate.contract: candidate.artifact for candidate in candidates}
    for (ours, a), (theirs, b) in combinations(of_contract.items(), 2):
        different = ours.differs_from(theirs)
        if different is not None:
            raise InputError(f"{a.path} and {b.path} have different contracts ({different}); bench them separately")


def running(candidates: Sequence[Candidate]) -> dict[int, Runner]:
    """By number in the list."""
    return {index: c.runner for index, c in enumerate(candidates) if c.runner is not None}


def contracts_of(candidates: Sequence[Candidate]) -> dict[int, Contract]:
    """Of those that run."""
    return {index: candidates[index].contract for index in running(candidates)}


def first_inputs(dataset: ImageDataset, contracts: Mapping[int, Contract], count: int) -> dict[int, Batch]:
    """The first ``count`` images as each candidate takes them."""
    for inputs, _ in dataset.batches_for(contracts.values(), count):
        return {index: inputs[contract] for index, contract in contracts.items()}
    return {}
