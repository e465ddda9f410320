"""A training run from recipe to checkpoint: best and last weights, log, curves, and going on after an interruption."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError, InputWarning, UsageError
from alexdeploy.recipe import Recipe
from alexdeploy.train import optimizer as learning
from alexdeploy.train.folder import curves_path, folder_of_run, log_path, state_path, write_class_names
from alexdeploy.train.images import Augmentation, Pixels
from alexdeploy.train.processes import Processes, join_processes
from alexdeploy.train.progress import Epoch, FinalTest, Step, epochs_logged, write_curves, write_log
from alexdeploy.train.run import Batches, Stepper, check_loss, evaluate, uses_bf16
from alexdeploy.train.state import State, load_state, save_state
from alexdeploy.zoo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from alexdeploy.zoo.convnet import ConvNet
from alexdeploy.zoo.fake_quantize import fold_in_place, quantize_layers
from alexdeploy.zoo.registry import build_network, check_images_fit
from alexdeploy.zoo.weights import start_from

SAVE_EVERY_S = 300.0


@dataclass(frozen=True)
class TrainResult:
    """The checkpoint written, the best held-out accuracy and the epochs it was chosen from; whether in bfloat16.

    ``test`` is what the checkpoint does on the test images, in the first process. ``fresh`` names the parameters that
    ``weights`` did not fill, ``is_first`` is False in all processes but one. ``before`` is the held-out top-1 of a
    network that is tuned for INT8, rounded and not tuned yet.
    """

    path: Path
    top1: float
    epochs: list[Epoch]
    fresh: list[str]
    is_first: bool
    bf16: bool
    test: FinalTest | None = None
    before: float | None = None


def train_network(
    recipe: Recipe,
    learn: ImageDataset,
    judge: ImageDataset,
    path: Path,
    *,
    device: str = "auto",
    weights: Path | None = None,
    ranges: Mapping[str, float] | None = None,
    resume: bool = False,
    test: ImageDataset | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> TrainResult:
    """Train a network of the zoo on ``learn``, write the weights that score best on ``judge``, try them on ``test``.

    ``NAME.safetensors`` holds the best weights. ``NAME.last.pt`` holds the last ones and all that ``resume`` needs; it
    is replaced after each epoch, every five minutes and on interruption. ``NAME.jsonl`` and ``NAME.png`` are log and
    curves, ``class_indices.json`` the class names. The folder is this run's: another one at the same time is refused,
    and a new one where these files are. On a CPU a resumed run ends with the very bits of one that was not interrupted.
    Started by ``torchrun`` or ``accelerate launch`` the processes share each batch; the first one writes and reports.

    Args:
        recipe: network, preprocessing and training settings.
        learn: images to learn from.
        judge: held-out images that choose the best epoch.
        path: the checkpoint to write, ``NAME.safetensors``.
        device: ``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        weights: start from these instead of fresh ones; the last layer is new when they are for other classes.
        ranges: tune ``weights`` for INT8: layers round while they learn, their inputs clipped at the largest |x| given
            by layer (``alexdeploy.tuning.ranges_by_layer``), in float32. ``export`` writes the result as Q/DQ.
        resume: go on with the run that left ``NAME.last.pt``, if its settings and images are the same.
        test: images that the checkpoint is tried on once, at the end; they choose nothing.
        on_epoch: called after each epoch.
        on_step: called after each step.

    Raises:
        InputError: the splits name different classes, an image or ``weights`` cannot be read, nothing to resume.
        UsageError: images that the network does not take, a layer to train that it lacks, ``resume`` with other
            settings, ``weights`` that ``path`` would overwrite, ``ranges`` without ``weights``, or a folder that is
            another run's.
        UnavailableError: ``cuda`` without a GPU.
        TrainingDivergedError: NaN or infinite loss.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import train_network
        >>> from alexdeploy.data.sources import load_dataset
        >>> from alexdeploy.recipe import load_recipe
        >>> learn, judge = (load_dataset("digits", split).subset(64) for split in ("train", "val"))
        >>> result = train_network(load_recipe("mnist-cnn"), learn, judge, Path("mnist-cnn.safetensors"))
        >>> Path("mnist-cnn.safetensors").exists()
        True
    """
    files.check_output(path, *([weights] if weights is not None else []))
    for images in filter(None, (learn, judge, test)):
        if not images.is_labelled:
            raise InputError(f"{images.unlabelled or images.name}; training needs images in class folders")
        if len(images.classes) < 2:
            raise InputError(f"{images.name}: only one class, '{images.classes[0]}'; a classifier needs at least two")
    if learn.name == judge.name:
        raise InputError(f"{learn.name}: is not split, and nothing would be held out; use class folders")
    if learn.classes != judge.classes:
        raise InputError(f"{learn.name} and {judge.name} name different classes")
    if test is not None and test.classes != learn.classes:
        raise InputError(f"{learn.name} and {test.name} name different classes")
    if ranges is not None and weights is None:
        raise UsageError("`ranges` tune trained weights for INT8; name them with `weights`")
    with folder_of_run(path, learn.classes, resume=resume), join_processes(device) as processes:
        run = _Run(recipe, learn, judge, path, processes, weights, ranges)
        before = run.judge()[0] if ranges is not None else None
        if resume:
            run.resume()
        if run.state.bf16 is None:
            run.state.bf16 = ranges is None and uses_bf16(recipe.train.precision, processes)
        with processes.signals_deferred():
            while run.state.step < run.steps:
                run.epoch(on_step, on_epoch)
        bf16, is_first = bool(run.state.bf16), processes.is_first
        if is_first:
            _warn_of_chance(run.state, len(learn.classes), recipe.train.learning_rate)
        tested = run.try_on(test) if test is not None and is_first else None
        return TrainResult(path, run.state.best, run.state.epochs, run.fresh, is_first, bf16, tested, before)


def _warn_of_chance(state: State, classes: int, rate: float) -> None:
    """A loss far above that of guessing, ln(classes), is of weights that a step threw out of reach."""
    loss = state.epochs[-1].train_loss
    if state.best < 1.2 / classes and loss > 2 * math.log(classes):
        warnings.warn(
            f"the network learned nothing: held-out top-1 {state.best:.1%} of {classes} classes is chance, training "
            f"loss {loss:.3g}; try a much smaller `lr` than {rate:.2g}",
            InputWarning,
            stacklevel=3,
        )


class _Run:
    """One run, between its epochs a ``State``."""

    def __init__(
        self,
        recipe: Recipe,
        learn: ImageDataset,
        judge: ImageDataset,
        path: Path,
        processes: Processes,
        weights: Path | None,
        ranges: Mapping[str, float] | None,
    ) -> None:
        self.state = State()
        self._recipe, self._path, self._processes = recipe, path, processes
        self._contract: Contract = msgspec.structs.replace(recipe.preprocess, labels=learn.classes)
        settings = recipe.train
        torch.manual_seed(settings.seed)
        model = build_network(recipe.network, len(learn.classes))
        learning.initialise(model, settings.initialisation)
        self.fresh = start_from(model, weights, recipe.network.name) if weights is not None else []
        self._parents = (files.parent(weights),) if weights is not None else ()
        learning.freeze(model, settings.train_layers)
        if ranges is not None:
            fold_in_place(model)
            quantize_layers(model, ranges)
        self._model: ConvNet = model.to(processes.device).to(memory_format=torch.channels_last)
        check_images_fit(self._model, self._contract, recipe.network.name)
        self._optimizer = learning.make_optimizer(self._model, settings)
        self._stepper = Stepper(self._model, self._optimizer, settings, processes)
        pixels = Pixels(learn, self._contract, cropped=settings.augment == "none")
        self._held_out = Pixels(judge, self._contract, cropped=True)
        augmentation = Augmentation(pixels, self._contract, settings)
        self._batches = Batches(augmentation, len(pixels), settings, processes)
        self.steps = settings.epochs * self._batches.per_epoch
        self._identity = {
            **msgspec.to_builtins(recipe.train),
            "network": msgspec.to_builtins(recipe.network),
            "preprocessing": self._contract.fingerprint,
            "images": learn.fingerprint,
            "held-out images": judge.fingerprint,
            "weights": self._parents[0].sha256 if self._parents else None,
            "ranges": dict(ranges) if ranges is not None else None,
        }
        self._images = {"train": learn.fingerprint, "val": judge.fingerprint}
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Take over where ``save`` left off.

        Raises:
            InputError, UsageError: see ``load_state``; InputError also where the best weights so far are gone.
        """
        last = state_path(self._path)
        self.state = load_state(last, self._identity, self._model, self._optimizer)
        epochs = len(self.state.epochs)
        if not self._processes.is_first or not epochs:
            return
        if epochs_logged(log_path(self._path)) != epochs:
            self._publish()
        if not self._path.exists():
            raise InputError(
                f"{self._path}: no such file, though {last.name} goes on with its run; put it back, or name another "
                "folder for a new run"
            )

    def save(self) -> None:
        """Write ``NAME.last.pt``, in the first process."""
        if self._processes.is_first:
            model, optimizer = self._model.state_dict(), self._optimizer.state_dict()
            save_state(state_path(self._path), self.state, self._identity, model, optimizer)
        self._saved_at = time.monotonic()

    def judge(self) -> tuple[float, float]:
        """(top-1, loss) of the present weights on the held-out images."""
        return evaluate(self._model, self._held_out, self._contract, self._processes)

    def epoch(self, on_step: Callable[[Step], None], on_epoch: Callable[[Epoch], None]) -> None:
        """From the state's step to the end of its epoch."""
        state, settings = self.state, self._recipe.train
        number = state.step // self._batches.per_epoch + 1
        started = time.perf_counter() - state.seconds
        learning.set_training(self._model)
        rate = 0.0
        for images, labels, counted, size in self._batches.from_step(state.step):
            rate = learning.set_learning_rate(self._optimizer, settings.schedule, state.step, self.steps)
            loss, correct = self._stepper.step(state.step, images, labels, counted, size, bf16=bool(state.bf16))
            state.step += 1
            state.loss_sum += loss * size
            state.correct += correct
            state.images += size
            state.seconds = time.perf_counter() - started
            if self._processes.is_first:
                on_step(Step(state.step, self.steps, number, loss, state.images / state.seconds))
            interrupted = self._processes.any_signalled()
            if state.step % self._batches.per_epoch == 0:
                break  # what an epoch leaves behind is written even when it was interrupted in its last step
            if interrupted or time.monotonic() - self._saved_at > SAVE_EVERY_S:
                self.save()
            if interrupted:
                self._processes.obey_signal()
        speed = state.images / state.seconds
        top1, val_loss = self.judge()
        check_loss("held-out", val_loss, f"after epoch {number}", self._optimizer, bf16=bool(state.bf16))
        seconds = time.perf_counter() - started
        train_loss, train_top1 = state.loss_sum / state.images, state.correct / state.images
        ended = Epoch(number, train_loss, val_loss, top1, rate, speed, seconds, train_top1)
        self._close(ended)
        if self._processes.is_first:
            on_epoch(ended)
        if self._processes.any_signalled():
            self._processes.obey_signal()

    def try_on(self, test: ImageDataset) -> FinalTest:
        """The best checkpoint on other images, alone in this process; the log gets it too."""
        alone = Processes(0, 1, self._processes.device)
        best = load_checkpoint(self._path).model.to(alone.device)
        images = Pixels(test, self._contract, cropped=True)
        top1, loss = evaluate(best, images, self._contract, alone)
        tested = FinalTest(top1, loss, len(images))
        write_log(log_path(self._path), self.state.epochs, tested)
        return tested

    def _close(self, ended: Epoch) -> None:
        """Write what an epoch leaves behind; the state first, from which ``resume`` can write the rest."""
        best = max(self.state.best, ended.top1)
        self.state = State(self.state.bf16, step=self.state.step, best=best, epochs=[*self.state.epochs, ended])
        self.save()
        if self._processes.is_first:
            self._publish()

    def _publish(self) -> None:
        """The present weights if they are the best so far, and class names, curves and log of the epochs that ended.

        The log comes last: where it has all epochs, the others are up to date.
        """
        *earlier, ended = self.state.epochs
        write_class_names(self._path, self._contract.labels)
        within_epoch = self.state.images > 0  # resumed there without a log: the weights are no longer its own
        if ended.top1 > max((epoch.top1 for epoch in earlier), default=-1.0) and not within_epoch:
            metrics = {"top1": ended.top1, "epoch": float(ended.epoch)}
            checkpoint = Checkpoint(self._model, self._recipe, self._contract, len(self._contract.labels), metrics)
            save_checkpoint(self._path, checkpoint, self._parents, images=self._images)
        write_curves(curves_path(self._path), self.state.epochs)
        write_log(log_path(self._path), self.state.epochs)
