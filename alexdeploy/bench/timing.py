"""The candidates of a bench timed against each other, batch size by batch size and boundary by boundary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from alexdeploy.arrays import Batch
from alexdeploy.bench.measure import Call, Rounds, measure
from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import UnavailableError
from alexdeploy.runners.base import Runner
from alexdeploy.specs import Progress

BOUNDARIES = ("host", "device", "end_to_end")
_SHARES = {"host": 2, "device": 1, "end_to_end": 1}  # of the time: the ratios are of host to host
Timings = dict[tuple[int, int, str], Rounds]


class RunnerFailedError(Exception):
    """A runner that could be loaded cannot run, such as for want of memory; ``index`` is whose it is."""

    def __init__(self, index: int, error: UnavailableError) -> None:
        super().__init__(str(error))
        self.index = index


class _Group(NamedTuple):
    """Calls that take turns: one of each candidate, on the same images within the same boundary.

    Each candidate gets the images as its own contract wants them.
    """

    batch: int
    boundary: str
    calls: dict[int, Call]


def time_runners(
    runners: Mapping[int, Runner],
    contracts: Mapping[int, Contract],
    dataset: ImageDataset,
    batches: Sequence[int],
    deadline: float,
    progress: Progress,
    during: Callable[[str, int], AbstractContextManager[None]] = lambda boundary, batch: nullcontext(),
) -> Timings:
    """Rounds by (index of the runner, batch, boundary), finished at ``deadline`` (``time.perf_counter``) if it can be.

    Each group gets its share of the time that is left when its turn comes, and is measured inside ``during``.

    Raises:
        RunnerFailedError: a runner cannot run this; time the others without it.
    """
    groups = _groups(runners, contracts, dataset, batches) if runners else []
    timings: Timings = {}
    for done, group in enumerate(groups):
        share = _SHARES[group.boundary] / sum(_SHARES[other.boundary] for other in groups[done:])
        left = max(deadline - time.perf_counter(), 1e-3) * share
        report = partial(progress, f"{group.boundary.replace('_', ' ')}, batch {group.batch}")
        with during(group.boundary, group.batch):
            measured = measure([*group.calls.values()], seconds=left, progress=report)
        for index, rounds in zip(group.calls, measured, strict=True):
            timings[index, group.batch, group.boundary] = rounds
    for (index, batch, boundary), rounds in list(timings.items()):
        if boundary == "host":
            timings.setdefault((index, batch, "device"), rounds)
    return timings


def _groups(
    runners: Mapping[int, Runner], contracts: Mapping[int, Contract], dataset: ImageDataset, batches: Sequence[int]
) -> list[_Group]:
    distinct = dict.fromkeys(contracts.values())
    readable = [index for index, _ in islice(dataset.inputs(next(iter(distinct))), max(batches))]
    groups = []
    for batch in batches:
        chosen = [readable[i % len(readable)] for i in range(batch)]
        inputs = {contract: _read(dataset, contract, chosen) for contract in distinct}
        host: dict[int, Call] = {i: partial(runner.infer, inputs[contracts[i]]) for i, runner in runners.items()}
        device: dict[int, Any] = {
            i: _blaming(i, partial(runner.device_call, inputs[contracts[i]]))()
            for i, runner in runners.items()
            if type(runner).device_call is not Runner.device_call
        }
        whole = {i: _whole_call(runner, dataset, contracts[i], chosen) for i, runner in runners.items()}
        for boundary, calls in zip(BOUNDARIES, (host, device, whole), strict=True):
            groups.append(_Group(batch, boundary, {i: _blaming(i, call) for i, call in calls.items()}))
    return [group for group in groups if group.calls]


def _blaming(index: int, call: Call) -> Call:
    def run() -> object:
        try:
            return call()
        except UnavailableError as error:
            raise RunnerFailedError(index, error) from error

    return run


def _whole_call(runner: Runner, dataset: ImageDataset, contract: Contract, chosen: Sequence[int]) -> Call:
    return lambda: runner.infer(_read(dataset, contract, chosen))


def _read(dataset: ImageDataset, contract: Contract, indices: Sequence[int]) -> Batch:
    return np.stack([dataset.network_input(index, contract) for index in indices])
