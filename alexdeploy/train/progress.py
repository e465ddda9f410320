"""Progress of a training run: a log and its curves, beside the checkpoint."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from alexdeploy import files


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch.

    ``train_loss`` and ``train_top1`` are over its images as they were learnt: in each batch before its step, with
    augmentation, dropout and label smoothing. ``val_loss`` (plain cross entropy) and ``top1`` are over the held-out
    split. ``train_top1`` is NaN for an epoch of an older version.
    """

    epoch: int
    train_loss: float
    val_loss: float
    top1: float
    learning_rate: float
    images_per_s: float
    seconds: float
    train_top1: float = math.nan


@dataclass(frozen=True)
class Step:
    """One step: ``done`` of ``total``; ``images_per_s`` over this epoch so far, on all processes together."""

    done: int
    total: int
    epoch: int
    loss: float
    images_per_s: float


@dataclass(frozen=True)
class FinalTest:
    """The best checkpoint on images that neither taught nor chose it."""

    test_top1: float
    test_loss: float
    test_images: int


def write_log(path: Path, epochs: list[Epoch], test: FinalTest | None = None) -> None:
    """One JSON object per epoch and line, and one for the test."""
    files.write_bytes(path, msgspec.json.Encoder().encode_lines([*epochs, *([test] if test else [])]))


def epochs_logged(path: Path) -> int:
    """How many epochs a log holds; 0 where there is none, or something else."""
    try:
        lines = msgspec.json.Decoder(dict[str, float | None]).decode_lines(path.read_bytes())
    except (OSError, *files.UNDECODABLE):
        return 0
    return sum("epoch" in line for line in lines)


def write_curves(path: Path, epochs: list[Epoch]) -> None:
    """Losses and accuracies over the epochs, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracy = figure.subplots(1, 2)
    numbers = [epoch.epoch for epoch in epochs]
    losses.plot(numbers, [epoch.train_loss for epoch in epochs], ".-", label="training")
    losses.plot(numbers, [epoch.val_loss for epoch in epochs], ".-", label="held out")
    losses.set(xlabel="epoch", ylabel="cross entropy")
    accuracy.plot(numbers, [100 * epoch.train_top1 for epoch in epochs], ".-", label="training")
    accuracy.plot(numbers, [100 * epoch.top1 for epoch in epochs], ".-", label="held out")
    accuracy.set(xlabel="epoch", ylabel="top-1, %")
    for axes in (losses, accuracy):
        axes.legend()
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    files.write_bytes(path, image.getvalue())
