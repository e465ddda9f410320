"""ONNX file → engine file: precision written into the graph, the graph checked, built, and the result looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from alexdeploy import artifacts
from alexdeploy.contract import METADATA_KEY
from alexdeploy.engine import build as engine
from alexdeploy.engine.driver import current_gpu
from alexdeploy.engine.trust import EngineDetails
from alexdeploy.engine.versions import Builder, load_library, this_platform
from alexdeploy.errors import GateError, UsageError
from alexdeploy.graph.lint import check_tensorrt
from alexdeploy.graph.model import class_count, contract_of, image_input, load_onnx, model_bytes, precision_of
from alexdeploy.graph.weighted import is_weighted, quantized_nodes
from alexdeploy.quantize.write import DEFAULT_METHOD, Ranges, quantized, with_fp16
from alexdeploy.specs import BatchProfile


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    Attributes:
        int8: quantize the float model with the ranges given.
        fp16: write FP16 into the float parts of the graph.
        lrn_fp16: FP16 inside LRN too, if the ranges prove that its sums stay in range.
        method: which of the range file's methods gives the INT8 ranges.
        strict: a Conv/Gemm that Q/DQ asks for in INT8 and that is built in float is an error, not a warning.
    """

    int8: bool = False
    fp16: bool = False
    lrn_fp16: bool = False
    method: str = DEFAULT_METHOD
    profile: BatchProfile = BatchProfile()
    builder: Builder = "auto"
    strict: bool = False


def build_engine(
    model_path: Path,
    output: Path,
    *,
    ranges: Ranges | None = None,
    settings: BuildSettings = BuildSettings(),
    rebuild: str = "",
) -> engine.EngineReport:
    """Build ``output`` and its sidecar; ``ranges`` are for INT8, and for FP16 to know its islands.

    ``rebuild`` is the command that does the same, for whoever cannot run the engine where they take it.

    Raises:
        InputError: a graph outside TensorRT's limits, or refused by its parser or builder.
        UnavailableError: no builder on this machine.
        GateError: ranges of another model; with ``strict``, INT8 layers that were built in float. Nothing is written.
    """
    artifacts.check_output(output)
    library = load_library(settings.builder)
    model, certificate = _with_precision(model_path, ranges, settings)
    check_tensorrt(model, str(model_path))
    graph = _graph(model, model_path, settings.profile)
    plan, report = engine.build(graph, settings.profile, library)
    if settings.strict and report.float_layers:
        raise GateError(f"--strict: {int8_verdict(report)}; nothing was written")
    engine.write_engine(
        output,
        plan,
        _details(model, model_path, report, graph, settings, rebuild),
        parents=(artifacts.parent(model_path),),
        options={
            "precision": graph.precision.value,
            "batch": str(settings.profile),
            "method": settings.method if settings.int8 else None,
            "lrn_fp16_headroom": certificate,
            "ranges": ranges.origin if ranges is not None else None,
        },
    )
    return report


def int8_verdict(report: engine.EngineReport) -> str:
    """``8 of 8 Conv/Gemm kernels are INT8``, and which are not."""
    verdict = f"{report.precisions['INT8']} of {len(report.layer_precisions)} Conv/Gemm kernels are INT8"
    if report.float_layers:
        verdict += f"; quantized in the graph but built in float: {', '.join(report.float_layers)}"
    return verdict


def _details(
    model: ir.Model,
    model_path: Path,
    report: engine.EngineReport,
    graph: engine.Graph,
    settings: BuildSettings,
    rebuild: str,
) -> EngineDetails:
    has_contract = METADATA_KEY in model.metadata_props
    contract = contract_of(model, str(model_path)) if has_contract else None
    return EngineDetails(
        builder=report.builder,
        version=report.builder_version,
        rebuild=rebuild,
        platform=this_platform(),
        gpu=current_gpu(),
        profile=str(settings.profile),
        input=report.input,
        output=report.output,
        precision=graph.precision,
        classes=class_count(model),
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
        model = quantized(model_path, ranges, method=settings.method)
    else:
        model = load_onnx(model_path)
        if ranges is not None:
            ranges.check_fits(model, model_path)
    return with_fp16(model, ranges, lrn=settings.lrn_fp16) if settings.fp16 else (model, {})


def _graph(model: ir.Model, model_path: Path, profile: BatchProfile) -> engine.Graph:
    spec = image_input(model, str(model_path))
    batch = spec.shape[0]
    if isinstance(batch, int) and profile != BatchProfile(batch, batch, batch):
        raise UsageError(
            f"{model_path}: the batch is frozen at {batch}; build with --batch {batch}, or export with a dynamic batch"
        )
    channels, height, width = (int(dim) for dim in spec.shape[1:])
    return engine.Graph(
        data=model_bytes(model),
        input_name=spec.name,
        image_shape=(channels, height, width),
        precision=precision_of(model),
        weighted=[str(node.name) for node in model.graph if is_weighted(node)],
        quantized=[str(node.name) for node in quantized_nodes(model)],
    )
