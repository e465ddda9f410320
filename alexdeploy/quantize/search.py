"""The measured cost of quantization: layer by layer, method by method, and down to an accuracy budget.

Every answer here comes from running the quantized graph on images and comparing its logits with the float model's.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import GateError, InputError, few
from alexdeploy.graph.emulate import for_cpu
from alexdeploy.graph.equalize import equalizable, equalize
from alexdeploy.graph.lrn.lower import lower_lrn
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.table import layer_table
from alexdeploy.graph.taps import with_outputs
from alexdeploy.graph.weighted import weighted_nodes
from alexdeploy.metrics import agreement, sqnr_db, topk_accuracy
from alexdeploy.quantize.methods import METHODS
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.specs import Progress

_BATCH = 32
_WORTH_DB = 0.5  # smaller gains do not generalise to other images
_CANDIDATES = 16  # layers tried per round of the budget search; in a larger net, the most sensitive ones

TensorRanges = Mapping[str, TensorRange]


@dataclass(frozen=True)
class Score:
    """The distance of a quantized model from the float one on the same images.

    Attributes:
        sqnr_db: power of the float logits over power of the error, in dB; more is better.
        typical_db: the same image by image, and the mean of that; unlike the sum over all images it is not
            dominated by the images with the largest logits.
        agreement: share of images with the same top-1.
        drop: top-1 of the float model minus that of the quantized one, in points (1 = 1 %); NaN without labels.
    """

    sqnr_db: float
    typical_db: float
    agreement: float
    drop: float


class QuantizationScorer:
    """The float model's answers on a set of images, and the scores of quantized versions of it.

    Args:
        model: float model; not changed.
        images: data set to judge on, its labels in the order of the model's outputs or not known. Its preprocessed
            images lie in temporary files (600 KB each at 3×224×224).
        write: makes the quantized graph that is judged: of a float model, with ranges and the layers to keep in float.

    Raises:
        InputError: an image that cannot be read.
    """

    def __init__(
        self, model: ir.Model, contract: Contract, images: ImageDataset, *, write: Callable[..., ir.Model] = insert_qdq
    ) -> None:
        self.model, self._write = model, write
        self._folder = tempfile.TemporaryDirectory(prefix="alexdeploy-")  # goes when the judge goes
        self._batches: list[npt.NDArray[np.float32]] = []
        labels = []
        for number, (batch, truth) in enumerate(images.batches(contract, _BATCH)):
            path = Path(self._folder.name, f"{number}.npy")
            np.save(path, batch)
            self._batches.append(np.load(path, mmap_mode="r"))
            labels.append(truth)
        self._labels = np.concatenate(labels)
        self._reference = self._logits(model)
        self.images = len(self._labels)
        self.top1 = self._top1(self._reference)
        self.layers = [node.name for node in weighted_nodes(model)]
        macs = {layer.name: layer.macs for layer in layer_table(model)}
        total = sum(macs.get(name, 0) for name in self.layers) or 1
        self.macs_share = {name: macs.get(name, 0) / total for name in self.layers}

    def score(self, ranges: TensorRanges, keep_float: Collection[str] = (), *, equalized: bool = False) -> Score:
        """Quantize every layer but those in ``keep_float``, and compare."""
        if set(keep_float) >= set(self.layers):
            return Score(float("inf"), float("inf"), 1.0, 0.0)
        model = self.equalized(ranges) if equalized else self.model
        logits = self._logits(self._write(model, ranges, keep_float=keep_float))
        return Score(
            sqnr_db=sqnr_db(logits, self._reference),
            typical_db=_typical_db(logits, self._reference),
            agreement=agreement(logits, self._reference),
            drop=round(100 * (self.top1 - self._top1(logits)), 9),  # 0.3, not 0.30000000000000027
        )

    def equalized(self, ranges: TensorRanges) -> ir.Model:
        """The float model with channels of similar size, as these images show them."""
        return equalize(self.model, self._channels, {name: ranges[name].amax for name in self._channels})

    @cached_property
    def _channels(self) -> dict[str, npt.NDArray[np.float32]]:
        """Largest |x| per index of axis 1 of each tensor that can be equalized."""
        names = equalizable(self.model)
        if not names:
            return {}
        found: dict[str, npt.NDArray[np.float32]] = {}
        with OnnxRuntimeRunner(model_bytes(with_outputs(lower_lrn(self.model), names))) as runner:
            for batch in self._batches:
                for name, array in runner.run(batch).items():
                    largest = np.abs(array).max(axis=(0, *range(2, array.ndim)))
                    found[name] = np.maximum(found.get(name, largest), largest)
        return found

    def _top1(self, logits: npt.NDArray[np.float32]) -> float:
        return topk_accuracy(logits, self._labels, 1) if np.all(self._labels >= 0) else float("nan")

    def _logits(self, model: ir.Model) -> npt.NDArray[np.float32]:
        with OnnxRuntimeRunner(model_bytes(lower_lrn(for_cpu(model)))) as runner:
            return np.concatenate([runner.infer(batch) for batch in self._batches])


@dataclass(frozen=True)
class Sensitivity:
    """The cost of quantizing one layer alone; ``macs_share`` is its part of the multiply-accumulates."""

    layer: str
    score: Score
    macs_share: float


def analyze(
    scorer: QuantizationScorer, ranges: TensorRanges, *, progress: Progress = lambda what, share: None
) -> list[Sensitivity]:
    """Quantize each layer alone; the most harmful first (by SQNR, which resolves more than top-1 does)."""
    found = []
    for number, layer in enumerate(scorer.layers, start=1):
        others = [name for name in scorer.layers if name != layer]
        found.append(Sensitivity(layer, scorer.score(ranges, others), scorer.macs_share[layer]))
        progress(f"{layer} alone in INT8", number / len(scorer.layers))
    return sorted(found, key=lambda sensitivity: sensitivity.score.sqnr_db)


@dataclass(frozen=True)
class Attempt:
    """One set of layers kept in float and what that gave; ``int8_macs`` is the share of MACs left in INT8."""

    kept_float: tuple[str, ...]
    score: Score
    int8_macs: float

    def __str__(self) -> str:
        kept = few(self.kept_float) or "nothing"
        return (
            f"float: {kept} · drop {self.score.drop:+.2f} points · SQNR {self.score.sqnr_db:.1f} dB · "
            f"{self.int8_macs:.1%} of MACs in INT8"
        )


@dataclass(frozen=True)
class BudgetResult:
    """The chosen attempt, and all that were tried."""

    chosen: Attempt
    attempts: list[Attempt] = field(default_factory=list)


def meet_budget(
    scorer: QuantizationScorer,
    ranges: TensorRanges,
    max_drop: float,
    *,
    progress: Progress = lambda what, share: None,
) -> BudgetResult:
    """Search for the smallest set of float layers that holds the top-1 drop at ``max_drop`` points or less.

    Greedy. Single layers are searched exhaustively, so one layer is found when one suffices; of several that do, the
    one with the least MACs. Beyond that the best layer so far is kept and the next is searched beside it.

    Raises:
        InputError: the scorer's images have no labels.
        GateError: even with every layer but one in float the budget is not met.
    """
    if math.isnan(scorer.top1):
        raise InputError("`max_drop` is measured in top-1, which takes images with labels")
    best = _attempt(scorer, ranges, ())
    attempts = [best]
    progress("every layer in INT8", 0.0)
    order: list[str] = []
    while best.score.drop > max_drop and len(best.kept_float) < len(scorer.layers) - 1:
        if not order:
            many = len(scorer.layers) > _CANDIDATES
            order = [found.layer for found in analyze(scorer, ranges)] if many else scorer.layers
        open_layers = [layer for layer in order if layer not in best.kept_float][:_CANDIDATES]
        tried = [_attempt(scorer, ranges, (*best.kept_float, layer)) for layer in open_layers]
        attempts += tried
        enough = [attempt for attempt in tried if attempt.score.drop <= max_drop]
        best = (
            max(enough, key=lambda attempt: attempt.int8_macs)
            if enough
            else min(tried, key=lambda attempt: (attempt.score.drop, -attempt.score.sqnr_db))
        )
        progress(
            f"{len(best.kept_float)} of {len(scorer.layers)} layers in float", len(best.kept_float) / len(scorer.layers)
        )
    if best.score.drop > max_drop:
        raise GateError(
            f"`max_drop` {max_drop:g}: with {len(best.kept_float)} of {len(scorer.layers)} layers in float the top-1 "
            f"drop is still {best.score.drop:.2f} points on {scorer.images} images; nothing was written"
        )
    return BudgetResult(best, attempts)


def _attempt(scorer: QuantizationScorer, ranges: TensorRanges, kept: tuple[str, ...]) -> Attempt:
    int8 = sum(share for name, share in scorer.macs_share.items() if name not in kept)
    return Attempt(kept, scorer.score(ranges, kept), int8)


@dataclass(frozen=True)
class MethodChoice:
    """The choice, and the scores that it was made by.

    Attributes:
        ranges: by tensor.
        method_of: the method of each tensor.
        scores: of each method used alone.
        chosen: of the choice.
        equalized: None, or the float model with equalized channels, which the ranges are for.
    """

    ranges: dict[str, TensorRange]
    method_of: dict[str, str]
    scores: dict[str, Score]
    chosen: Score
    equalized: ir.Model | None


def choose_methods(
    scorer: QuantizationScorer, seen: RangeFile, *, progress: Progress = lambda what, share: None
) -> MethodChoice:
    """Measure each method end to end, take the best, then change single tensors to another method where that helps.

    Each method is measured with the channels as they are and equalized. Best is the higher agreement with the float
    model, then the higher SQNR. A tensor is changed only when both SQNRs rise by more than 0.5 dB and the agreement
    does not fall: what helps in sum or on the typical image alone does not carry over to others.
    """
    by_method = {method: seen.of(method) for method in METHODS}
    measured = {
        (method, equalized): scorer.score(ranges, equalized=equalized)
        for equalized in (False, True)
        for method, ranges in by_method.items()
    }
    best, equalized = max(measured, key=lambda key: (measured[key].agreement, measured[key].sqnr_db))
    current = measured[best, equalized]
    scores = {method: measured[method, False] for method in by_method}
    ranges = dict(by_method[best])
    method_of = dict.fromkeys(ranges, best)
    tensors = [name for name in ranges if name in {str(n.activation.name) for n in weighted_nodes(scorer.model)}]
    for number, tensor in enumerate(tensors, start=1):
        for method, alternative in by_method.items():
            if alternative[tensor] == ranges[tensor]:
                continue
            score = scorer.score({**ranges, tensor: alternative[tensor]}, equalized=equalized)
            if _clearly_better(score, current):
                ranges[tensor], method_of[tensor], current = alternative[tensor], method, score
        progress(f"methods for {tensor}", number / len(tensors))
    return MethodChoice(ranges, method_of, scores, current, scorer.equalized(ranges) if equalized else None)


def _typical_db(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """Within ±100 dB for each image, so that one without signal or noise does not outweigh all others."""
    return float(np.mean(np.clip([sqnr_db(*pair) for pair in zip(logits, reference, strict=True)], -100, 100)))


def _clearly_better(score: Score, than: Score) -> bool:
    worth = score.sqnr_db > than.sqnr_db + _WORTH_DB and score.typical_db > than.typical_db + _WORTH_DB
    return worth and score.agreement >= than.agreement
