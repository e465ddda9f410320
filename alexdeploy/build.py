"""ONNX file → engine file: precision written into the graph, the graph checked, built, and the result looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from alexdeploy import files
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.engine.build import BuilderOptions, EngineBuild, EngineReport, Graph, write_engine
from alexdeploy.engine.calibration import Calibration
from alexdeploy.engine.monitor import Progress
from alexdeploy.engine.trust import EngineDetails
from alexdeploy.engine.versions import Builder, Library, load_library, this_platform
from alexdeploy.errors import GateError, InputError, UsageError, unknown_name
from alexdeploy.graph.lint import check_tensorrt
from alexdeploy.graph.memory import MemoryNeed, predict_memory
from alexdeploy.graph.model import class_count, contract_of, image_input, load_onnx, model_bytes, precision_of
from alexdeploy.graph.weighted import is_weighted, quantized_nodes
from alexdeploy.machine import current_gpu, free_memory_bytes
from alexdeploy.quantize import tensorrt_cache
from alexdeploy.quantize.quantize import Ranges, check_lrn_fp16, default_method, quantized, with_fp16
from alexdeploy.specs import BatchProfile, Precision, ShapeProfile, TensorSpec

_CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    Attributes:
        int8: quantize the float model with the ranges given.
        fp16: write FP16 into the float parts of the graph.
        lrn_fp16: FP16 inside LRN too, if the ranges prove that its sums stay in range.
        method: which of the range file's methods gives the INT8 ranges. None: mse, or what a calibration cache holds.
        implicit: with ``int8``, TensorRT 10 calibrates and chooses the types itself; no Q/DQ is written.
        batches: batch sizes to accept.
        shapes: whole shapes by name, for inputs that are dynamic beyond the batch.
        strict: a Conv/Gemm that Q/DQ asks for in INT8 and that is built in float is an error, not a warning.
    """

    int8: bool = False
    fp16: bool = False
    lrn_fp16: bool = False
    method: str | None = None
    builder: Builder = "auto"
    implicit: bool = False
    batches: BatchProfile = BatchProfile()
    shapes: Mapping[str, ShapeProfile] = field(default_factory=dict)
    strict: bool = False
    options: BuilderOptions = BuilderOptions()

    def __post_init__(self) -> None:
        check_lrn_fp16(self.lrn_fp16, self.fp16)


@dataclass(frozen=True)
class EnginePlan:
    """What is to be built: everything that is known, and has been checked, before the builder runs.

    ``lrn_fp16_headroom`` is the certificate of ``BuildSettings.lrn_fp16``; ``free_bytes`` is None without a GPU.
    """

    model: ir.Model
    model_path: Path
    ranges: Ranges | None
    ranges_path: Path | None
    settings: BuildSettings
    build: EngineBuild
    lrn_fp16_headroom: dict[str, float]
    memory: MemoryNeed
    free_bytes: int | None
    calibration: Calibration | None = None

    @property
    def graph(self) -> Graph:
        return self.build.graph

    @property
    def contract(self) -> Contract | None:
        has_contract = METADATA_KEY in self.model.metadata_props
        return contract_of(self.model, str(self.model_path)) if has_contract else None


def open_library(settings: BuildSettings) -> Library:
    """The library that the settings ask for, before any work that would be for nothing.

    Raises:
        UnavailableError: no such builder on this machine.
        UsageError: options that this builder does not have.
    """
    library = load_library(settings.builder)
    options = settings.options
    library.check(options.compatibility, timing_cache=options.timing_cache is not None)
    if settings.implicit:
        library.check_implicit()
    if settings.strict and not library.reports_kernels:
        raise UsageError("--strict is for --builder tensorrt-rtx; TensorRT does not report which kernels it chose")
    return library


def plan_engine(
    model_path: Path, *, ranges: Ranges | Path | ImageDataset | None = None, settings: BuildSettings = BuildSettings()
) -> EnginePlan:
    """Do all that comes before the build: write the precision into the graph, check it, have TensorRT parse it.

    Args:
        model_path: ONNX, float or with Q/DQ.
        ranges: for INT8, and for FP16 to know its islands; a file that calibrate wrote, or its content. With
            ``settings.implicit`` images, or a calibration cache of TensorRT.
        settings: see there.

    Raises:
        InputError: a graph outside TensorRT's limits, or refused by its parser.
        UnavailableError: no builder on this machine.
        UsageError: options that do not fit the model or the builder.
        GateError: ranges of another model.
    """
    library = open_library(settings)
    if settings.int8 and ranges is None:
        raise UsageError("INT8 needs ranges: what calibrate wrote, or a calibration cache of TensorRT")
    if settings.implicit or isinstance(ranges, ImageDataset):
        if not isinstance(ranges, Path | ImageDataset) or not settings.implicit:
            raise UsageError("images, or a calibration cache of TensorRT, are what implicit quantization takes")
        return _plan_implicit(model_path, ranges, settings, library)
    ranges_path = ranges if isinstance(ranges, Path) else None
    seen = tensorrt_cache.load(ranges) if isinstance(ranges, Path) else ranges
    if seen is not None:
        settings = replace(settings, method=settings.method or default_method(seen))
    model, headroom = _with_precision(model_path, seen, settings)
    check_tensorrt(model, str(model_path))  # before TensorRT sees it, which some broken graphs crash
    written = settings.int8 or settings.fp16  # else TensorRT reads the file itself, which saves serialising it
    graph = _graph(model, model_path, settings, source=model_bytes(model) if written else model_path)
    build = EngineBuild(graph, settings.options, library)
    memory = _memory(model, graph, settings)
    return EnginePlan(model, model_path, seen, ranges_path, settings, build, headroom, memory, free_memory_bytes())


def _plan_implicit(
    model_path: Path, calibrate_on: ImageDataset | Path, settings: BuildSettings, library: Library
) -> EnginePlan:
    model = load_onnx(model_path)
    check_tensorrt(model, str(model_path))
    images = image_input(model, str(model_path))
    graph = _graph(model, model_path, settings, source=model_path)
    if graph.quantized:
        raise UsageError(f"{model_path} has Q/DQ, which says what is INT8; build it without --implicit")
    graph = replace(graph, precision=Precision.of(int8=True, fp16=settings.fp16))
    if isinstance(calibrate_on, Path):
        feed = Calibration(library, _of_batch(1, images), iter(()), lambda: 0, calibrate_on.read_bytes())
    else:
        data = calibrate_on
        count = 1 if data.skip_bad else math.gcd(len(data), _CALIBRATION_BATCH)  # TensorRT takes whole batches only
        batches = (batch for batch, _ in data.batches(contract_of(model, str(model_path)), count))
        feed = Calibration(library, _of_batch(count, images), batches, lambda: len(data) - len(data.skipped))
    build = EngineBuild(graph, settings.options, library, feed.calibrator)
    memory = _memory(model, graph, settings)
    brought = calibrate_on if isinstance(calibrate_on, Path) else None
    settings = replace(settings, method="tensorrt")
    return EnginePlan(model, model_path, None, brought, settings, build, {}, memory, free_memory_bytes(), feed)


def build_engine(
    model_path: Path,
    output: Path,
    *,
    ranges: Ranges | Path | None = None,
    settings: BuildSettings = BuildSettings(),
    rebuild: str = "",
) -> EngineReport:
    """``plan_engine`` and ``build_planned`` in one; raises what they raise."""
    files.check_output(output, model_path)
    return build_planned(plan_engine(model_path, ranges=ranges, settings=settings), output, rebuild=rebuild)


def build_planned(
    plan: EnginePlan, output: Path, *, rebuild: str = "", progress: Progress = lambda phase, share: None
) -> EngineReport:
    """Build ``output`` and its sidecar. What fails or is interrupted leaves nothing behind.

    Args:
        plan: what to build.
        output: file to write.
        rebuild: the command that does the same, for whoever cannot run the engine where they take it.
        progress: called with the builder's phase and the share of that phase that is done.

    Raises:
        InputError: the builder refused the graph.
        GateError: ``strict``, and INT8 layers were built in float.
    """
    settings = plan.settings
    parents = [path for path in (plan.model_path, plan.ranges_path) if path is not None]
    with ThreadPoolExecutor(1) as pool:  # hashed while the builder runs
        origins = pool.submit(lambda: tuple(files.parent(path) for path in parents))
        data, report = _run(plan, output, progress)
    if settings.strict and report.float_layers:
        raise GateError(f"--strict: {int8_verdict(report)}; nothing was written")
    write_engine(
        output,
        data,
        _details(plan, report, rebuild),
        parents=origins.result(),
        options={
            "precision": plan.graph.precision.value,
            "batch": str(plan.graph.batches),
            "method": settings.method if settings.int8 else None,
            "lrn_fp16_headroom": plan.lrn_fp16_headroom,
            "ranges": plan.ranges.origin if plan.ranges is not None else None,
            "workspace_bytes": settings.options.workspace_bytes,
            "level": settings.options.level,
            "tf32": settings.options.tf32,
        },
    )
    return report


def _run(plan: EnginePlan, output: Path, progress: Progress) -> tuple[memoryview, EngineReport]:
    """The build; where TensorRT calibrates, also the cache it wrote, beside the engine."""
    feed = plan.calibration
    if feed is None:
        return plan.build.run(progress)
    with feed:
        try:
            built = plan.build.run(progress)
        except InputError:
            if feed.error is not None:  # that is what the builder complains of
                raise feed.error from None
            raise
        feed.check()
    if feed.written:
        files.write_bytes(output.with_name(output.name + ".cache"), feed.written)
    return built


def int8_verdict(report: EngineReport) -> str:
    """``8 of 8 Conv/Gemm kernels are INT8``, and which are not."""
    verdict = f"{report.precisions['INT8']} of {len(report.layer_precisions)} Conv/Gemm kernels are INT8"
    if report.float_layers:
        verdict += f"; quantized in the graph but built in float: {', '.join(report.float_layers)}"
    return verdict


def _details(plan: EnginePlan, report: EngineReport, rebuild: str) -> EngineDetails:
    contract = plan.contract
    return EngineDetails(
        builder=report.builder,
        version=report.builder_version,
        rebuild=rebuild,
        platform=this_platform(),
        gpu=current_gpu(),
        compatibility=plan.settings.options.compatibility,
        profile=str(plan.graph.batches),
        shapes={name: str(shape) for name, shape in plan.graph.shapes.items()},
        input=report.input,
        output=report.output,
        precision=plan.graph.precision,
        classes=class_count(plan.model),
        contract=contract,
        contract_sha256=contract.fingerprint if contract is not None else None,
        build_seconds=round(report.seconds, 3),
        precisions=report.precisions,
        layer_precisions=report.layer_precisions,
        kernels=tuple(report.kernels),
    )


def _with_precision(
    model_path: Path, ranges: Ranges | None, settings: BuildSettings
) -> tuple[ir.Model, dict[str, float]]:
    """The graph to build, and the certificate of ``lrn_fp16``."""
    if settings.int8 and ranges is not None:
        model = quantized(model_path, ranges, method=str(settings.method))
    else:
        model = load_onnx(model_path)
        if ranges is not None:
            ranges.check_fits(model, model_path)
    return with_fp16(model, ranges, lrn=settings.lrn_fp16) if settings.fp16 else (model, {})


def _graph(model: ir.Model, model_path: Path, settings: BuildSettings, *, source: bytes | Path) -> Graph:
    return Graph(
        source=source,
        shapes=_shapes(model, str(model_path), settings),
        precision=precision_of(model),
        weighted=[_in_reports(node) for node in model.graph if is_weighted(node)],
        quantized=[_in_reports(node) for node in quantized_nodes(model)],
    )


def _shapes(model: ir.Model, origin: str, settings: BuildSettings) -> dict[str, ShapeProfile]:
    """The shapes to accept at every input.

    Raises:
        InputError: there is none.
        UsageError: the settings name no such input, contradict its shape, or leave open what is dynamic.
    """
    inputs = {str(v.name): list(v.shape or ()) for v in model.graph.inputs if not v.is_initializer()}
    declared = {name: dims for name, dims in inputs.items() if dims}  # a scalar has one shape
    for name in settings.shapes.keys() - declared.keys():
        raise UsageError(f"{origin}: {unknown_name('input', name, list(declared))}")
    if not declared:
        raise InputError(f"{origin}: has no input with a batch; there is nothing to build an engine for")
    batches = settings.batches
    name, dims = next(iter(declared.items()))  # the images
    if name not in settings.shapes and isinstance(dims[0], int) and batches != BatchProfile(*[dims[0]] * 3):
        raise UsageError(
            f"{origin}: the batch is frozen at {dims[0]}; build with --batch {dims[0]}, or export with a dynamic batch"
        )
    return {
        name: _asked(origin, name, dims, settings.shapes[name])
        if name in settings.shapes
        else _by_batch(origin, name, dims, batches)
        for name, dims in declared.items()
    }


def _asked(origin: str, name: str, dims: Sequence[ir.SymbolicDim | int], asked: ShapeProfile) -> ShapeProfile:
    fits = len(asked.min) == len(dims) and all(
        not isinstance(dim, int) or dim == low == high
        for dim, low, high in zip(dims, asked.min, asked.max, strict=True)
    )
    if not fits:
        raise UsageError(f"{origin}: --profile {name}={asked}: the input has shape {_in_words(dims)}")
    return asked


def _by_batch(origin: str, name: str, dims: Sequence[ir.SymbolicDim | int], batches: BatchProfile) -> ShapeProfile:
    fixed = tuple(dim for dim in dims[1:] if isinstance(dim, int))
    if len(fixed) < len(dims) - 1:
        raise UsageError(
            f"{origin}: input '{name}' has shape {_in_words(dims)}; say which sizes it is to take: "
            f"--profile {name}=MIN:OPT:MAX, each such as 8x3x224x224"
        )
    if isinstance(dims[0], int):
        batches = BatchProfile(dims[0], dims[0], dims[0])
    return ShapeProfile.of(batches, fixed)


def _in_words(dims: Sequence[ir.SymbolicDim | int]) -> str:
    return f"({', '.join(str(dim if isinstance(dim, int) else dim.value or '?') for dim in dims)})"


def _memory(model: ir.Model, graph: Graph, settings: BuildSettings) -> MemoryNeed:
    return predict_memory(model, graph.batches.max, {name: shape.max for name, shape in settings.shapes.items()})


def _of_batch(count: int, images: TensorSpec) -> tuple[int, ...]:
    return (count, *(int(dim) for dim in images.shape[1:]))


def _in_reports(node: ir.Node) -> str:
    """What TensorRT's parser calls the node."""
    return str(node.name or f"node_of_{node.outputs[0].name}")
