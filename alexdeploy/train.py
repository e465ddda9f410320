"""The training loop: one cycle of the learning rate, validation after each epoch, the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from alexdeploy import artifacts
from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.preprocess import normalize, preprocess, resize
from alexdeploy.errors import AlexdeployError, InputError, UnavailableError
from alexdeploy.recipe import Recipe
from alexdeploy.zoo.checkpoint import Checkpoint, save_checkpoint
from alexdeploy.zoo.registry import build_network


@dataclass(frozen=True)
class Epoch:
    """What one epoch showed; ``train_loss`` is the mean over its steps, ``top1`` on the held-out split."""

    epoch: int
    train_loss: float
    top1: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """The checkpoint written, the best held-out accuracy and the epochs it was chosen from."""

    path: Path
    top1: float
    epochs: list[Epoch] = field(default_factory=list)


class TrainingDivergedError(AlexdeployError):
    """The loss is no longer a number."""


def train(
    recipe: Recipe,
    learn: ImageDataset,
    judge: ImageDataset,
    path: Path,
    *,
    device: str = "auto",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> TrainResult:
    """Train a network of the zoo on ``learn`` and write the weights that score best on ``judge``.

    Args:
        recipe: network, preprocessing and training settings.
        learn: images to learn from.
        judge: held-out images that choose the best epoch.
        path: checkpoint (safetensors), replaced after each epoch that improves on the best before it.
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        on_epoch: called after each epoch.
        on_step: called with (steps done, steps in all) after each step.

    Raises:
        InputError: the splits name different classes, or an image cannot be read.
        UnavailableError: ``cuda`` without a GPU.
        TrainingDivergedError: NaN or infinite loss.
    """
    artifacts.check_output(path)
    if learn.classes != judge.classes:
        raise InputError(f"{learn.name} and {judge.name} name different classes")
    target = _device(device)
    settings = recipe.train
    contract = msgspec.structs.replace(recipe.preprocess, labels=learn.classes)
    torch.manual_seed(settings.seed)
    model = build_network(recipe.network, len(learn.classes)).to(target)
    loader = _loader(learn, contract, recipe)
    optimizer, schedule = _optimizer(model, recipe, steps=settings.epochs * len(loader))
    held_out = list(judge.batches(contract, 256))
    epochs: list[Epoch] = []
    best = -1.0
    for number in range(1, settings.epochs + 1):
        started = time.perf_counter()
        done = (number - 1) * len(loader)
        losses = _one_epoch(model, loader, optimizer, schedule, target)
        total = 0.0
        for step, loss in enumerate(losses, start=1):
            total += loss
            on_step(done + step, settings.epochs * len(loader))
        top1 = evaluate(model, held_out, target)
        epochs.append(Epoch(number, total / len(loader), top1, time.perf_counter() - started))
        on_epoch(epochs[-1])
        if top1 > best:
            best = top1
            metrics = {"top1": top1, "epoch": float(number)}
            save_checkpoint(path, Checkpoint(model, recipe, contract, len(learn.classes), metrics))
    return TrainResult(path, best, epochs)


def evaluate(
    model: nn.Module,
    batches: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]],
    device: torch.device,
) -> float:
    """Top-1 of the model in evaluation mode; it is left in training mode."""
    model.eval()
    correct = count = 0
    with torch.inference_mode():
        for images, labels in batches:
            predicted = model(torch.from_numpy(images).to(device)).argmax(1).cpu().numpy()
            correct += int((predicted == labels).sum())
            count += len(labels)
    model.train()
    return correct / count


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("--device cuda: PyTorch finds no CUDA device; use --device cpu or auto")
    return torch.device(name)


class _TrainingImages(Dataset[tuple[Tensor, int]]):
    """A split as PyTorch wants it: augmented when the recipe asks, otherwise exactly as the contract says."""

    def __init__(self, dataset: ImageDataset, contract: Contract, augment: bool) -> None:
        self._dataset, self._contract = dataset, contract
        self._augment = augment
        self._crop_mirror = v2.Compose([v2.RandomCrop(contract.crop, pad_if_needed=True), v2.RandomHorizontalFlip()])
        self._good = [index for index, _ in dataset.images()] if dataset.skip_bad else range(len(dataset))

    def __len__(self) -> int:
        return len(self._good)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self._good[position]
        image = self._dataset.image(index)
        if self._augment:
            array = normalize(self._crop_mirror(resize(image, self._contract)), self._contract)
        else:
            array = preprocess(image, self._contract)
        return torch.from_numpy(array), int(self._dataset.labels[index])


def _loader(dataset: ImageDataset, contract: Contract, recipe: Recipe) -> DataLoader[tuple[Tensor, int]]:
    images = _TrainingImages(dataset, contract, recipe.train.augment == "crop-mirror")
    generator = torch.Generator().manual_seed(recipe.train.seed)
    return DataLoader(images, recipe.train.batch_size, shuffle=True, generator=generator)


def _optimizer(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    settings = recipe.train
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(),
            settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(steps, 2), cycle_momentum=False
    )
    return optimizer, schedule


def _one_epoch(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, int]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> Iterator[float]:
    """Train on every image once; yields the loss of each step."""
    for images, labels in loader:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDivergedError(f"the training loss became {value}; lower the learning rate with --lr")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield value
