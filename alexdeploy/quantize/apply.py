"""Precision written into a float graph, in memory: INT8 or FP8 as Q/DQ from the ranges, FP16 or BF16 around it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from alexdeploy import files
from alexdeploy.contract import METADATA_KEY
from alexdeploy.errors import InputWarning, UsageError
from alexdeploy.graph.equalize import scale_factors
from alexdeploy.graph.fp16 import certify_lrn, to_bf16, to_fp16
from alexdeploy.graph.model import PreparedGraph, contract_of, load_onnx
from alexdeploy.graph.names import name_unnamed
from alexdeploy.graph.qdq import QuantizedWeight, TensorRange, insert_qdq
from alexdeploy.quantize import tensorrt_cache
from alexdeploy.quantize.gate import check_answers
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.quantize.refine import Refined, refine
from alexdeploy.specs import DEFAULT_METHOD, Dialect, Method, Precision, Rounding

Ranges = RangeFile | tensorrt_cache.CalibrationCache


@dataclass(frozen=True)
class PrecisionSettings:
    """The arithmetic that is to be written into a float graph.

    Attributes:
        int8: quantize with the ranges given.
        fp8: the same in FP8 (E4M3), in the dialect tensorrt.
        fp16: FP16 instead of FP32 in the float parts.
        bf16: bfloat16 there; its range is that of FP32, so it needs no ranges.
        lrn_fp16: FP16 inside LRN too, if the ranges prove that its sums stay in range.
        method: which of the range file's methods. None: mse, or the one that a calibration cache holds.
        rounding: of the weights: gptq (``alexdeploy.quantize.refine``) or nearest. None: gptq where the ranges have
            the moments that it needs.
        dialect: see ``alexdeploy.graph.qdq``.
    """

    int8: bool = False
    fp8: bool = False
    fp16: bool = False
    bf16: bool = False
    lrn_fp16: bool = False
    method: Method | None = None
    rounding: Rounding | None = None
    dialect: Dialect = "tensorrt"

    def __post_init__(self) -> None:
        """Refuse what would be passed over in silence."""
        if self.lrn_fp16 and not self.fp16:
            raise UsageError("`lrn_fp16` is for `fp16`; add it, or leave `lrn_fp16` out")
        if self.int8 and self.fp8:
            raise UsageError("`int8` and `fp8` are both types of the quantized layers; leave one out")
        if self.fp16 and self.bf16:
            raise UsageError("`fp16` and `bf16` are both types of the float parts; leave one out")
        if self.fp8 and self.dialect != "tensorrt":
            raise UsageError(f"`fp8` is for `dialect` tensorrt; {self.dialect} has no FP8 kernels, so take INT8 there")

    @property
    def quantized(self) -> str:
        """INT8 or FP8, or empty where nothing is quantized."""
        return "INT8" if self.int8 else "FP8" if self.fp8 else ""


def with_precision(
    model_path: Path, ranges: Ranges | Path | None = None, *, settings: PrecisionSettings
) -> PreparedGraph:
    """The graph of a float ONNX file in the precision asked for, ready to be built; the file is not changed.

    Args:
        model_path: float ONNX; with no precision asked for, any ONNX.
        ranges: for INT8 and FP8, and for FP16 to find its islands; a file that ``calibrate`` or
            TensorRT wrote, or its content.
        settings: see there.

    Raises:
        UsageError: INT8 or FP8 without ranges.
        InputError: an unusable model or range file.
        GateError: ranges of another model or contract, ``lrn_fp16`` that they do not prove safe, or a graph that does
            not run, or answers otherwise than the file (``alexdeploy.quantize.gate``; not without a contract).
    """
    if settings.quantized and ranges is None:
        raise UsageError(
            f"{settings.quantized} needs ranges: a file that calibrate wrote, or a calibration cache of TensorRT"
        )
    model = name_unnamed(load_onnx(model_path))  # ranges name layers
    parents: tuple[files.Parent, ...] = ()
    if isinstance(ranges, Path):
        path, ranges = ranges, tensorrt_cache.load(ranges)
        parents = (files.parent(path),)
    headroom: dict[str, float] = {}
    method = rounding = None
    original = model
    if ranges is not None:
        ranges.check_fits(model, model_path)
    if settings.quantized and ranges is not None:
        method = settings.method or default_method(ranges)
        writer = QuantizedWriter(ranges, settings)
        model, rounding, headroom = writer(model, ranges.of(method)), writer.rounding, writer.headroom
    else:
        model, headroom = _with_float_type(model, ranges, settings)
    if model is not original and METADATA_KEY in original.metadata_props:  # or its images are not known
        contract = contract_of(original, str(model_path))
        check_answers(model, original, contract, model_path, calibrated=ranges is not None)
    options = {
        "method": method,
        "rounding": rounding,
        "lrn_fp16_headroom": headroom,
        "ranges": ranges.origin if ranges is not None else None,
    }
    asked = Precision.of(int8=settings.int8, fp8=settings.fp8, fp16=settings.fp16, bf16=settings.bf16)
    return PreparedGraph(model, model_path, (model_parent(model_path, ranges), *parents), options, asked)


def model_parent(model_path: Path, ranges: Ranges | None) -> files.Parent:
    """The float model as an origin; hashed only where ranges have not verified its hash already."""
    return ranges.model_parent(model_path) if isinstance(ranges, RangeFile) else files.parent(model_path)


def default_method(ranges: Ranges) -> str:
    """The method where none is named."""
    return tensorrt_cache.METHOD if isinstance(ranges, tensorrt_cache.CalibrationCache) else DEFAULT_METHOD


class QuantizedWriter:
    """Writes INT8 or FP8 by chosen ranges, FP16 or BF16 around it: the graph that is scored and in the end written.

    Args:
        seen: what calibration saw.
        settings: the precision; ``method`` is not used.

    Attributes:
        rounding: of the weights.
        nearest: quantized layers whose weights were rounded to the nearest all the same, for want of moments.
        headroom: of FP16 inside LRN: how many times each sum of squares fits below 65504.

    Raises:
        UsageError: gptq without moments, or for FP8.
    """

    def __init__(self, seen: Ranges, settings: PrecisionSettings) -> None:
        self._seen, self._settings = seen, settings
        self._moments = seen.moments if isinstance(seen, RangeFile) else None
        if settings.rounding == "gptq" and settings.fp8:
            raise UsageError("`rounding` gptq is for INT8; leave it out with `fp8`")
        if settings.rounding == "gptq" and self._moments is None:
            raise UsageError(
                "`rounding` gptq needs the moments that calibrate gathers, which these ranges lack; calibrate again, "
                "or round to the nearest"
            )
        missing = self._moments.missing if self._moments is not None else None
        if missing and settings.rounding is None and not settings.fp8:
            warnings.warn(
                f"{missing} is missing, which calibrate wrote beside the range file: the weights are rounded to the "
                "nearest, not by gptq",
                InputWarning,
                stacklevel=2,
            )
        default: Rounding = "nearest" if self._moments is None or missing or settings.fp8 else "gptq"
        self.rounding: Rounding = settings.rounding or default
        self.nearest: tuple[str, ...] = ()
        self.headroom: dict[str, float] = {}
        self._last: tuple[ir.Model, dict[str, TensorRange], Refined] | None = None

    def __call__(
        self, model: ir.Model, ranges: Mapping[str, TensorRange], keep_float: Collection[str] = ()
    ) -> ir.Model:
        """A quantized copy of a float model."""
        weights: Mapping[str, QuantizedWeight] = {}
        if self.rounding == "gptq":
            refined = self._refined(model, ranges)
            model, weights = refined.model, refined.weights
            self.nearest = tuple(name for name in refined.nearest if name not in keep_float)
        settings = self._settings
        model = insert_qdq(
            model, ranges, dialect=settings.dialect, keep_float=keep_float, weights=weights, fp8=settings.fp8
        )
        model, self.headroom = _with_float_type(model, self._seen, settings)
        return model

    def _refined(self, model: ir.Model, ranges: Mapping[str, TensorRange]) -> Refined:
        """Kept for the next call, which often differs in the layers to keep in float alone."""
        if self._last is None or self._last[0] is not model or self._last[1] != ranges:
            assert isinstance(self._seen, RangeFile)
            assert self._seen.moments is not None
            self._last = (model, dict(ranges), refine(model, ranges, self._seen.moments, self._seen.samples))
        return self._last[2]


def _with_float_type(
    model: ir.Model, ranges: Ranges | None, settings: PrecisionSettings
) -> tuple[ir.Model, dict[str, float]]:
    """FP16, with islands where calibration saw values close to its limit, or bfloat16 in the float parts, or neither.

    Returns:
        The model, and with ``lrn_fp16`` the certificate: how many times each LRN's sum of squares fits below 65504.

    Raises:
        GateError: ``lrn_fp16``, and the ranges do not prove it safe.
    """
    if settings.bf16:
        return to_bf16(model), {}
    if not settings.fp16:
        return model, {}
    largest = _largest_values_seen(model, ranges)
    certificate = certify_lrn(model, largest) if settings.lrn_fp16 else {}
    return to_fp16(model, largest=largest, lrn=settings.lrn_fp16), certificate


def _largest_values_seen(model: ir.Model, ranges: Ranges | None) -> dict[str, float]:
    """Largest magnitudes that calibration saw, as they are in this model, whose channels may have been equalized."""
    factors = {name: float(factor.max()) for name, factor in scale_factors(model).items()}
    seen = ranges.largest if isinstance(ranges, RangeFile) else {}
    return {name: value * factors.get(name, 1.0) for name, value in seen.items()}
