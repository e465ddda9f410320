"""Range file + float model → quantized model, in the dialect of the runtime that is to run it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from alexdeploy import files
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import UsageError
from alexdeploy.graph.equalize import scale_factors
from alexdeploy.graph.fp16 import certify_lrn, to_fp16
from alexdeploy.graph.model import class_count, contract_of, load_onnx, save_onnx
from alexdeploy.graph.qdq import Dialect, TensorRange, insert_qdq
from alexdeploy.quantize import tensorrt_cache
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.quantize.search import BudgetResult, Judge, MethodChoice, choose_methods, meet_budget

Ranges = RangeFile | tensorrt_cache.CalibrationCache

DEFAULT_METHOD = "mse"
AUTO = "auto"


def check_lrn_fp16(lrn_fp16: bool, fp16: bool) -> None:
    """Refuse what would be passed over in silence."""
    if lrn_fp16 and not fp16:
        raise UsageError("--lrn fp16 is for --fp16; add it or leave --lrn out")


@dataclass(frozen=True)
class QuantizeSettings:
    """How to quantize.

    Attributes:
        method: which of the range file's methods, or ``auto``: measured on images, then per tensor. None: mse, or
            the one that a calibration cache holds.
        dialect: see ``alexdeploy.graph.qdq``.
        fp16: FP16 instead of FP32 between the INT8 layers.
        lrn_fp16: FP16 inside LRN too, if calibration proves that its sums stay in range.
        max_drop: largest loss of top-1 in points; layers are kept in float until it is met. None: no budget.
    """

    method: str | None = None
    dialect: Dialect = "tensorrt"
    fp16: bool = False
    lrn_fp16: bool = False
    max_drop: float | None = None

    def __post_init__(self) -> None:
        check_lrn_fp16(self.lrn_fp16, self.fp16)


@dataclass(frozen=True)
class QuantizeResult:
    """The model written, and what was found on the way: the methods chosen (``auto``), the budget search."""

    model: ir.Model
    choice: MethodChoice | None
    budget: BudgetResult | None


def quantize_onnx(
    model_path: Path,
    ranges_path: Path,
    output: Path,
    *,
    settings: QuantizeSettings = QuantizeSettings(),
    choose_on: ImageDataset | None = None,
    judge_on: ImageDataset | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> QuantizeResult:
    """Write ``model_path`` as INT8 Q/DQ.

    Args:
        model_path: the float model that was calibrated.
        ranges_path: what calibrate wrote, or a calibration cache of TensorRT.
        output: written atomically with its sidecar.
        settings: see there.
        choose_on: images for ``auto``.
        judge_on: labelled images for ``max_drop``.
        progress: told, in words, how far ``auto`` is and what the budget search finds.

    Raises:
        InputError: an unusable model, range file or calibration cache.
        UsageError: ``auto`` or ``max_drop`` without images, or ``auto`` with a calibration cache.
        GateError: the ranges belong to another model or contract, or the budget cannot be met.
    """
    files.check_output(output, model_path, ranges_path)
    ranges = tensorrt_cache.load(ranges_path)
    model = load_onnx(model_path)
    ranges.check_fits(model, model_path)
    contract = contract_of(model, str(model_path))
    choice = budget = None
    method = settings.method or default_method(ranges)
    write = partial(_written, seen=ranges, settings=settings)
    if method == AUTO:
        if not isinstance(ranges, RangeFile) or choose_on is None:
            raise UsageError("--method auto needs a range file with every method, and images to measure on (--data)")
        judge = Judge(model, contract, choose_on, write=write)
        choice = choose_methods(judge, ranges, progress=lambda share: progress(f"auto: {share:.0%}"))
        model = choice.equalized or model
    tensor_ranges = choice.ranges if choice is not None else ranges.of(method)
    if settings.max_drop is not None:
        if judge_on is None:
            raise UsageError("--max-drop needs labelled images to judge on; name them with --data")
        classes = class_count(model)
        judge_on.check_labels(contract, classes if classes >= 0 else len(judge_on.classes), str(model_path))
        judge = Judge(model, contract, judge_on, write=write)
        budget = meet_budget(judge, tensor_ranges, settings.max_drop, progress=progress)
    kept = budget.chosen.kept_float if budget is not None else ()
    model = write(model, tensor_ranges, kept)
    origin = ranges.model_parent(model_path) if isinstance(ranges, RangeFile) else files.parent(model_path)
    save_onnx(
        model,
        output,
        parents=(origin, files.parent(ranges_path)),
        options={
            "method": method,
            "for": settings.dialect,
            "fp16": settings.fp16,
            "lrn": "fp16" if settings.lrn_fp16 else "fp32",
            "max_drop": settings.max_drop,
        },
        details={
            "kept_float": list(kept),
            "method_of": choice.method_of if choice is not None else None,
            "equalized": choice is not None and choice.equalized is not None,
            "lrn_fp16_headroom": certify_lrn(model, _largest(model, ranges)) if settings.lrn_fp16 else {},
        },
    )
    return QuantizeResult(model, choice, budget)


def _written(
    model: ir.Model,
    ranges: Mapping[str, TensorRange],
    keep_float: Collection[str] = (),
    *,
    seen: Ranges,
    settings: QuantizeSettings,
) -> ir.Model:
    """What is judged, and in the end written."""
    model = insert_qdq(model, ranges, dialect=settings.dialect, keep_float=keep_float)
    return with_fp16(model, seen, lrn=settings.lrn_fp16)[0] if settings.fp16 else model


def default_method(ranges: Ranges) -> str:
    """The method where none is named."""
    return tensorrt_cache.METHOD if isinstance(ranges, tensorrt_cache.CalibrationCache) else DEFAULT_METHOD


def quantized(model_path: Path, ranges: Ranges, *, method: str) -> ir.Model:
    """INT8 in TensorRT's dialect, by one method, in memory.

    Raises:
        InputError: an unusable model.
        GateError: the ranges belong to another model or contract.
    """
    model = load_onnx(model_path)
    ranges.check_fits(model, model_path)
    return insert_qdq(model, ranges.of(method))


def with_fp16(model: ir.Model, ranges: Ranges | None, *, lrn: bool) -> tuple[ir.Model, dict[str, float]]:
    """FP16 in the float parts, with islands where calibration saw values close to its limit.

    Returns:
        The model, and with ``lrn`` the certificate: how many times each LRN's sum of squares fits below 65504.

    Raises:
        GateError: ``lrn``, and the ranges do not prove it safe.
    """
    largest = _largest(model, ranges)
    certificate = certify_lrn(model, largest) if lrn else {}
    return to_fp16(model, largest=largest, lrn=lrn), certificate


def _largest(model: ir.Model, ranges: Ranges | None) -> dict[str, float]:
    """Largest magnitudes that calibration saw, as they are in this model, whose channels may have been equalized."""
    factors = {name: float(factor.max()) for name, factor in scale_factors(model).items()}
    seen = ranges.largest if isinstance(ranges, RangeFile) else {}
    return {name: value * factors.get(name, 1.0) for name, value in seen.items()}
