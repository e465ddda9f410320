"""The measured cost of quantization: layer by layer, by method and rounding, and down to an accuracy budget.

Every answer here comes from running the quantized graph on images and comparing its logits with the float model's.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import GateError, InputError, few
from alexdeploy.graph.emulate import for_cpu
from alexdeploy.graph.lrn.lower import lower_lrn
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.names import name_unnamed
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.table import layer_table
from alexdeploy.graph.weighted import weighted_nodes
from alexdeploy.metrics import agreement, sqnr_db, topk_accuracy
from alexdeploy.quantize.methods import METHODS
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.specs import DEFAULT_METHOD, Progress, Rounding

_BATCH = 32
AUTO_SECONDS = 60.0
_CANDIDATES = 16  # layers tried per round of the budget search; in a larger net, the most sensitive ones

TensorRanges = Mapping[str, TensorRange]


@dataclass(frozen=True)
class Score:
    """The distance of a quantized model from the float one on the same images.

    Attributes:
        sqnr_db: power of the float logits over power of the error, in dB; more is better.
        agreement: share of images with the same top-1.
        drop: top-1 of the float model minus that of the quantized one, in points (1 = 1 %); NaN without labels.
    """

    sqnr_db: float
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
        self.model, self._write = name_unnamed(model), write  # layers are told apart by name
        self._folder = tempfile.TemporaryDirectory(prefix="alexdeploy-")  # goes when the judge goes
        self._batches: list[npt.NDArray[np.float32]] = []
        labels = []
        for number, (batch, truth) in enumerate(images.batches(contract, _BATCH)):
            path = Path(self._folder.name, f"{number}.npy")
            np.save(path, batch)
            self._batches.append(np.load(path, mmap_mode="r"))
            labels.append(truth)
        self._labels = np.concatenate(labels)
        self._reference = self._logits(self.model)
        self.images = len(self._labels)
        self.top1 = self._top1(self._reference)
        self.layers = [node.name for node in weighted_nodes(self.model)]
        macs = {layer.name: layer.macs for layer in layer_table(self.model)}
        total = sum(macs.get(name, 0) for name in self.layers) or 1
        self.macs_share = {name: macs.get(name, 0) / total for name in self.layers}

    def score(
        self, ranges: TensorRanges, keep_float: Collection[str] = (), *, write: Callable[..., ir.Model] | None = None
    ) -> Score:
        """Quantize every layer but those in ``keep_float``, and compare; ``write`` in place of the scorer's own."""
        if set(keep_float) >= set(self.layers):
            return Score(float("inf"), 1.0, 0.0)
        logits = self._logits((write or self._write)(self.model, ranges, keep_float=keep_float))
        return Score(
            sqnr_db=sqnr_db(logits, self._reference),
            agreement=agreement(logits, self._reference),
            drop=round(100 * (self.top1 - self._top1(logits)), 9),  # 0.3, not 0.30000000000000027
        )

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
        method: of the ranges.
        rounding: of the weights.
        scores: by ``"<method>, <rounding>"``, of those that were measured in time.
        left_out: those that were not.
    """

    method: str
    rounding: Rounding
    scores: dict[str, Score]
    left_out: tuple[str, ...] = ()


def choose_method(
    scorer: QuantizationScorer,
    seen: RangeFile,
    writers: Mapping[Rounding, Callable[..., ir.Model]],
    *,
    seconds: float = AUTO_SECONDS,
    progress: Progress = lambda what, share: None,
) -> MethodChoice:
    """Measure each method with each rounding end to end, and take the one with the highest SQNR.

    The SQNR of all logits decides: on a few hundred images the agreement changes with single images that are close
    between two classes. The default is measured first, and none is begun that would end after ``seconds``.
    """
    methods = dict.fromkeys([DEFAULT_METHOD, *METHODS])
    candidates = [(method, rounding) for rounding in writers for method in methods]
    scores: dict[str, Score] = {}
    best, started, longest = candidates[0], time.monotonic(), 0.0
    for number, (method, rounding) in enumerate(candidates):
        before = time.monotonic()
        if scores and before - started + longest > seconds:
            break
        progress(f"{method}, {rounding}", number / len(candidates))
        scores[_key(method, rounding)] = scorer.score(seen.of(method), write=writers[rounding])
        longest = max(longest, time.monotonic() - before)
        best = max(best, (method, rounding), key=lambda candidate: scores[_key(*candidate)].sqnr_db)
    return MethodChoice(*best, scores, tuple(_key(*left) for left in candidates if _key(*left) not in scores))


def _key(method: str, rounding: Rounding) -> str:
    return f"{method}, {rounding}"
