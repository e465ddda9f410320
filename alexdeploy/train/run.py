"""The steps of a training run and their arithmetic; what is kept of them is in ``alexdeploy.train.loop``."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from alexdeploy.contract import Contract
from alexdeploy.errors import GateError
from alexdeploy.recipe import TrainSettings
from alexdeploy.train.images import Augmentation, Pixels, normalize_batch
from alexdeploy.train.processes import Processes
from alexdeploy.zoo.lrn import LocalResponseNorm

_EVALUATION_BATCH = 256
_WORTH = 0.8
_ORDER, _AUGMENTATION, _DROPOUT = range(3)


class TrainingDivergedError(GateError):
    """The loss is no longer a number."""


def uses_bf16(precision: str, processes: Processes) -> bool:
    """True if training uses bfloat16 autocast; the same answer in all processes.

    ``auto`` asks the hardware: of the CPUs that have bfloat16 some compute it more slowly than float32.
    """
    if precision != "auto":
        return precision == "bf16"
    if processes.device.type == "cuda":
        pays = torch.cuda.is_bf16_supported()
    else:
        present = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        pays = present and bf16_time_share() < _WORTH
    return processes.total(float(pays))[0] == processes.world


@cache
def bf16_time_share() -> float:
    """Time of a convolution, forward and backward, in bfloat16 over that in float32, measured on this CPU once.

    The convolution is as large as AlexNet's, so that only the arithmetic counts: the share is about 0.5 or 1.5.
    """
    convolution = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.ones(64, 64, 28, 28).contiguous(memory_format=torch.channels_last).requires_grad_()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(6):
        for bf16, found in seconds.items():
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = convolution(images)
            output.backward(torch.ones_like(output))
            found.append(time.perf_counter() - started)
    return min(seconds[True]) / min(seconds[False])


def seed_of(*parts: int) -> int:
    """63 bits that depend on every part: seed, what for, epoch or step, rank."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class Batches:
    """The global batches of every epoch, and this process's share of each."""

    def __init__(self, augmentation: Augmentation, count: int, settings: TrainSettings, processes: Processes) -> None:
        self._augmentation, self._count, self._settings, self._processes = augmentation, count, settings, processes
        self.per_epoch = math.ceil(count / settings.batch_size)

    def from_step(self, step: int) -> Iterator[tuple[Tensor, Tensor, int, int]]:
        """(images, labels, how many of them count, images in the global batch) from ``step`` to its epoch's end.

        The next batch is made while the caller works on this one, where that is more than picking rows of an array.
        """
        epoch, first = divmod(step, self.per_epoch)
        order = torch.Generator().manual_seed(seed_of(self._settings.seed, _ORDER, epoch))
        batches = torch.randperm(self._count, generator=order).split(self._settings.batch_size)  # type: ignore[no-untyped-call]

        def make(number: int) -> tuple[Tensor, Tensor, int, int]:
            places, counted = self._processes.share(torch.arange(len(batches[number])))
            seed = seed_of(self._settings.seed, _AUGMENTATION, epoch, number)
            images, labels = self._augmentation.batch(batches[number][places], places, len(batches[number]), seed)
            return images, labels, counted, len(batches[number])

        if self._augmentation.is_instant:
            yield from map(make, range(first, self.per_epoch))
            return
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(make, first)
            for number in range(first, self.per_epoch):
                ready = coming.result()
                if number + 1 < self.per_epoch:
                    coming = pool.submit(make, number + 1)
                yield ready


class Stepper:
    """One optimizer step at a time, on this process's share of the global batch."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainSettings, processes: Processes
    ) -> None:
        self._model, self._optimizer = processes.wrap(model), optimizer
        self._settings, self._processes = settings, processes

    def step(
        self, number: int, images: Tensor, labels: Tensor, counted: int, size: int, *, bf16: bool
    ) -> tuple[float, float]:
        """Learn from a batch, ``bf16`` in bfloat16.

        Returns:
            The mean loss over the global batch of ``size`` images, and how many of them were answered rightly.

        Raises:
            TrainingDivergedError: that loss is NaN or infinite; the weights are as they were.
        """
        device = self._processes.device
        torch.manual_seed(seed_of(self._settings.seed, _DROPOUT, number, self._processes.rank))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = self._model(images.to(device, non_blocking=True))
        smoothing = self._settings.label_smoothing
        labels = labels.to(device)
        losses = cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
        local = (
            losses[:counted].sum() + 0 * losses.sum()
        )  # the second term keeps padding images in the graph: every rank runs backward
        right = (logits.argmax(1) == labels)[:counted].sum()
        loss, correct = self._processes.total(float(local.detach()) / size, float(right))
        check_loss("training", loss, f"at step {number + 1}", self._optimizer, bf16=bf16)
        self._optimizer.zero_grad(set_to_none=True)
        (local * (self._processes.world / size)).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss, correct


def check_loss(loss: str, value: float, when: str, optimizer: torch.optim.Optimizer, *, bf16: bool) -> None:
    """Nothing where a loss is a number.

    Raises:
        TrainingDivergedError: it is none; the message gives advice.
    """
    if math.isfinite(value):
        return
    group = optimizer.param_groups[0]  # its rate of this step may be that of a warm-up, far below the one that was set
    rate, peak = float(group["lr"]), float(group["peak"])
    of_peak = "" if math.isclose(rate, peak, rel_tol=0.01) else f" of `lr` {peak:.2g}"
    text = f"the {loss} loss became {value} {when}, learning rate {rate:.2g}{of_peak}; try `lr` {peak / 5:.2g}"
    raise TrainingDivergedError(f'{text}, or precision = "fp32" in the recipe' if bf16 else text)


def evaluate(model: nn.Module, images: Pixels, contract: Contract, processes: Processes) -> tuple[float, float]:
    """(top-1, mean cross entropy) over all images, in float32; the model is left in evaluation mode."""
    model.eval()
    for module in model.modules():
        if isinstance(module, LocalResponseNorm):
            module.train()  # it has no state; in training mode it is the fast one
    correct = loss = 0.0
    every = torch.arange(len(images)).split(_EVALUATION_BATCH)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        for batch in every[processes.rank :: processes.world]:
            pixels = images[batch]
            stacked = pixels if isinstance(pixels, Tensor) else torch.stack(pixels)
            logits = model(normalize_batch(stacked, contract).to(processes.device)).cpu()
            labels = images.labels[batch]
            correct += float((logits.argmax(1) == labels).sum())
            loss += float(cross_entropy(logits, labels, reduction="sum"))
    correct, loss = processes.total(correct, loss)
    return correct / len(images), loss / len(images)
