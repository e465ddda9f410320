"""One process or many: what ``accelerate launch`` and ``torchrun`` say in the environment, and what follows from it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alexdeploy.cuda.wheels import why_too_old
from alexdeploy.errors import InputWarning, UnavailableError, UsageError
from alexdeploy.specs import cuda_ordinal


@dataclass(frozen=True)
class Processes:
    """One process among the ``world`` that train one network; only rank 0 writes and reports."""

    rank: int
    world: int
    device: torch.device
    signalled: list[int] = field(default_factory=list)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, batch: Tensor) -> tuple[Tensor, int]:
        """The part of a global batch of indices that is this process's, and how many of them count.

        A process that a short last batch leaves without an image gets the first one, which does not count.
        """
        mine = batch[self.rank :: self.world]
        return (mine, len(mine)) if len(mine) else (batch[:1], 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, averaging its gradients over the processes in ``backward``."""
        if self.world == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(model)

    @contextlib.contextmanager
    def signals_deferred(self) -> Iterator[None]:
        """Note SIGINT, SIGTERM and a handled SIGHUP instead of obeying them; a second one is obeyed.

        Outside the main thread, nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if callable(signal.getsignal(signal.SIGHUP)):  # the terminal was closed
            usual[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)

        def defer(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the form of a handler)
            self.signalled.append(number)
            for each, handler in usual.items():
                signal.signal(each, handler)

        for number in usual:
            signal.signal(number, defer)
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)

    def any_signalled(self) -> bool:
        """True if any process was told to stop; the same answer in all of them at the same step."""
        return self.total(len(self.signalled))[0] > 0

    def obey_signal(self) -> NoReturn:
        """Do what the signal asked for.

        Raises:
            KeyboardInterrupt: it was SIGINT, or another process got it; after others whatever their handlers raise.
        """
        if self.signalled:
            signal.raise_signal(self.signalled[0])
        raise KeyboardInterrupt

    def total(self, *values: float) -> list[float]:
        """Each value summed over the processes."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return summed.tolist()


def _trains_on_gpu(device: str, ordinal: int) -> bool:
    if device == "cpu":
        return False
    reason = why_too_old("torch")  # not for PyTorch to say, which warns in six lines
    if device == "auto":
        if reason is not None:
            warnings.warn(f"PyTorch trains on the CPU: {reason}", InputWarning, stacklevel=2)
        return reason is None and torch.cuda.is_available()
    count = torch.cuda.device_count() if reason is None else 0
    if ordinal >= count:
        found = reason or f"PyTorch finds {count or 'no'} CUDA devices"
        raise UnavailableError(f"`device` {device}: {found}; use cpu or auto")
    return True


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Meet the other processes, if there are any, and part from them at the end.

    Raises:
        UnavailableError: a GPU that is not there, or a driver that is too old for PyTorch; ``auto`` warns of that.
        UsageError: not a device; one GPU for several processes; a launcher that was asked for several has started one.
    """
    ordinal = cuda_ordinal(device) if device not in ("auto", "cpu") else 0
    on_gpu = _trains_on_gpu(device, ordinal)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and ordinal:
        raise UsageError(f"`device` {device} is for one process; leave it out, the launcher gives each its own")
    if world == 1:
        launched = "MASTER_ADDR" in os.environ and any(name.startswith("ACCELERATE_") for name in os.environ)
        if launched and "WORLD_SIZE" not in os.environ:
            raise UsageError(
                "accelerate launch was to start several processes and started one; see its option multi_gpu, or "
                "start them with torchrun"
            )
        yield Processes(0, 1, torch.device(f"cuda:{ordinal}" if on_gpu else "cpu"))
        return
    target = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(target)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(dist.get_rank(), world, target)
    finally:
        dist.destroy_process_group()
