"""Range file + float model → quantized model, in the dialect of the runtime that is to run it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from alexdeploy import files
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputWarning, UsageError, unknown_name
from alexdeploy.graph.model import class_count, contract_of, load_onnx, save_onnx
from alexdeploy.graph.names import name_unnamed
from alexdeploy.graph.weighted import weighted_nodes
from alexdeploy.quantize import tensorrt_cache
from alexdeploy.quantize.apply import (
    PrecisionSettings,
    QuantizedWriter,
    default_method,
    model_parent,
)
from alexdeploy.quantize.gate import check_answers
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.quantize.search import (
    AUTO_SECONDS,
    BudgetResult,
    MethodChoice,
    QuantizationScorer,
    choose_method,
    meet_budget,
)
from alexdeploy.specs import Dialect, Method, Progress, Rounding

_FEWEST_TO_JUDGE = 16  # images


@dataclass(frozen=True)
class QuantizeSettings:
    """Settings of ``quantize_onnx``.

    Attributes:
        method: which of the range file's methods, or ``auto``: each is measured on images. None: mse, or the one that
            a calibration cache holds.
        rounding: of the weights: ``gptq``, by the error of what the layer gives, with biases corrected and channels
            equalized (``alexdeploy.quantize.refine``), or each to the ``nearest``. None: with ``auto`` measured too,
            else gptq where the range file has moments.
        dialect: see ``alexdeploy.graph.qdq``.
        fp8: FP8 (E4M3) instead of INT8, in the dialect tensorrt; for compute capability 8.9 and later.
        fp16: FP16 instead of FP32 between the quantized layers.
        bf16: bfloat16 there.
        lrn_fp16: FP16 inside LRN too, if calibration proves that its sums stay in range.
        keep_float: names of layers that stay in float, such as ``fc8``.
        max_drop: largest loss of top-1 in points; layers are kept in float until it is met. None: no budget.

    Example:
        >>> from alexdeploy import QuantizeSettings
        >>> QuantizeSettings(method="entropy", keep_float=("fc8",)).dialect
        'tensorrt'
    """

    method: Method | Literal["auto"] | None = None
    rounding: Rounding | None = None
    dialect: Dialect = "tensorrt"
    fp8: bool = False
    fp16: bool = False
    bf16: bool = False
    lrn_fp16: bool = False
    keep_float: Sequence[str] = ()
    max_drop: float | None = None

    def __post_init__(self) -> None:
        _ = self.precision
        if self.keep_float and self.max_drop is not None:
            raise UsageError("`keep_float` names the layers and `max_drop` searches for them; use one of them")

    @property
    def precision(self) -> PrecisionSettings:
        """The precision of every layer that is quantized."""
        return PrecisionSettings(
            int8=not self.fp8,
            fp8=self.fp8,
            fp16=self.fp16,
            bf16=self.bf16,
            lrn_fp16=self.lrn_fp16,
            rounding=self.rounding,
            dialect=self.dialect,
        )


@dataclass(frozen=True)
class QuantizeResult:
    """The model written, how it was quantized, and what the searches found: the methods (``auto``), the budget.

    ``nearest`` names layers that were rounded to the nearest although gptq was used, for want of moments.
    ``measured_on`` says in words which images ``auto`` measured on.
    """

    model: ir.Model
    method: str
    rounding: Rounding
    nearest: tuple[str, ...]
    choice: MethodChoice | None
    measured_on: str | None
    budget: BudgetResult | None


def quantize_onnx(
    model_path: Path,
    ranges_path: Path,
    output: Path,
    *,
    settings: QuantizeSettings = QuantizeSettings(),
    selection_images: ImageDataset | None = None,
    selection_samples: int = 256,
    validation_images: ImageDataset | None = None,
    progress: Progress = lambda what, share: None,
) -> QuantizeResult:
    """Write a float ONNX model as INT8 or FP8 Q/DQ.

    Args:
        model_path: the float model that was calibrated.
        ranges_path: the range file that ``calibrate`` wrote, or a calibration cache of TensorRT.
        output: written atomically with its sidecar.
        settings: see there.
        selection_images: images that ``auto`` measures on, with or without labels: those that were not calibrated on,
            where the ranges are from these images.
        selection_samples: how many of them.
        validation_images: labelled images that ``max_drop`` is measured on.
        progress: called with what is being searched and the share that is done.

    Raises:
        InputError: an unusable model, range file or calibration cache.
        UsageError: ``auto`` or ``max_drop`` without images, ``auto`` with a calibration cache, or a layer to keep in
            float that the model does not have.
        GateError: the ranges belong to another model or contract, the budget cannot be met, or what was written
            does not run, or answers otherwise than the model (``alexdeploy.quantize.gate``).

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import quantize_onnx
        >>> quantize_onnx(Path("model.onnx"), Path("ranges.json"), Path("int8.onnx")).method
        'mse'
    """
    files.check_output(output, model_path, ranges_path)
    ranges = tensorrt_cache.load(ranges_path)
    model = name_unnamed(load_onnx(model_path))
    ranges.check_fits(model, model_path)
    _check_layers(model, settings.keep_float)
    choice = budget = measured_on = None
    if settings.method == "auto":
        if not isinstance(ranges, RangeFile) or selection_images is None:
            raise UsageError("`method` auto needs a range file with every method, and images to measure on (`data`)")
        images = _not_calibrated_on(selection_images, ranges, selection_samples)
        choice, write = _choose(model, model_path, ranges, settings, images, progress)
        method, measured_on = choice.method, f"{images.name}: {images.taken}"
    else:
        method, write = settings.method or default_method(ranges), QuantizedWriter(ranges, settings.precision)
    kept: Sequence[str] = settings.keep_float
    if settings.max_drop is not None:
        if validation_images is None:
            raise UsageError("`max_drop` needs labelled images to judge on; name them with `data`")
        contract = contract_of(model, str(model_path))
        validation_images = validation_images.labelled(contract, class_count(model), str(model_path))
        scorer = QuantizationScorer(model, contract, validation_images, write=write)
        budget = meet_budget(scorer, ranges.of(method), settings.max_drop, progress=progress)
        kept = budget.chosen.kept_float
    original, model = model, write(model, ranges.of(method), kept)
    check_answers(model, original, contract_of(original, str(model_path)), model_path, calibrated=True)
    save_onnx(
        model,
        output,
        parents=(model_parent(model_path, ranges), files.parent(ranges_path)),
        options={
            "method": method,
            "rounding": write.rounding,
            "for": settings.dialect,
            "fp8": settings.fp8,
            "fp16": settings.fp16,
            "bf16": settings.bf16,
            "lrn": "fp16" if settings.lrn_fp16 else "fp32",
            "max_drop": settings.max_drop,
        },
        details={
            "kept_float": list(kept),
            "rounded_to_nearest": list(write.nearest),
            "lrn_fp16_headroom": write.headroom,
        },
    )
    return QuantizeResult(model, method, write.rounding, write.nearest, choice, measured_on, budget)


def _not_calibrated_on(images: ImageDataset, ranges: RangeFile, samples: int) -> ImageDataset:
    """``samples`` of the images, spread over those that calibration left out.

    Which it took is known where they were taken from these very images, none of which it left out as unreadable.
    """
    if images.subset(ranges.samples).fingerprint != ranges.dataset["fingerprint"]:
        return images.subset(samples)
    left = images.without(ranges.samples)
    if len(left) >= _FEWEST_TO_JUDGE:
        return left.subset(samples)
    warnings.warn(
        f"{images.name} has {len(left)} images that were not calibrated on, and auto needs {_FEWEST_TO_JUDGE}; "
        "it measures on those that were; calibrate on fewer, or name others",
        InputWarning,
        stacklevel=3,
    )
    return images.subset(samples)


def _choose(
    model: ir.Model,
    path: Path,
    ranges: RangeFile,
    settings: QuantizeSettings,
    images: ImageDataset,
    progress: Progress,
) -> tuple[MethodChoice, QuantizedWriter]:
    """The best method and rounding, and the writer of that rounding."""
    started = time.monotonic()
    contract = contract_of(model, str(path))
    writers = _writers(ranges, settings)
    scorer = QuantizationScorer(model, contract, images.matched(contract, class_count(model), str(path)))
    left = AUTO_SECONDS - (time.monotonic() - started)
    choice = choose_method(scorer, ranges, writers, seconds=left, progress=progress)
    return choice, writers[choice.rounding]


def _writers(ranges: RangeFile, settings: QuantizeSettings) -> dict[Rounding, QuantizedWriter]:
    """What ``auto`` measures: both roundings, unless one is named or the moments for gptq are not there."""
    first = QuantizedWriter(ranges, settings.precision)
    writers = {first.rounding: first}
    if settings.rounding is None and first.rounding == "gptq":
        writers["nearest"] = QuantizedWriter(ranges, replace(settings.precision, rounding="nearest"))
    return writers


def _check_layers(model: ir.Model, names: Sequence[str]) -> None:
    """Every name must be a layer that can be quantized, and one must be left."""
    layers = [node.name for node in weighted_nodes(model)]
    for name in names:
        if name not in layers:
            raise UsageError(f"`keep_float`: {unknown_name('layer', name, layers)}")
    if layers and set(names) >= set(layers):
        raise UsageError("`keep_float` names every layer, so nothing would be quantized; leave some of them out")
