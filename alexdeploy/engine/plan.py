"""A finished ONNX graph → an engine file: checked, parsed by TensorRT, built, and the result looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from alexdeploy import files
from alexdeploy.contract import METADATA_KEY
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.engine.build import BuilderInput, EngineBuild
from alexdeploy.engine.calibration import Calibration
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.record import EngineRecord, write_engine
from alexdeploy.engine.shapes import input_profiles, open_inputs
from alexdeploy.engine.versions import Library, load_library
from alexdeploy.errors import GateError, InputError, UsageError, few
from alexdeploy.graph.infer import why_not_inferred
from alexdeploy.graph.interface import ends_in_softmax
from alexdeploy.graph.lint import check_tensorrt
from alexdeploy.graph.memory import MemoryNeed, predict_memory
from alexdeploy.graph.model import (
    PreparedGraph,
    class_count,
    contract_of,
    image_input,
    load_onnx,
    model_bytes,
    precision_of,
)
from alexdeploy.graph.weighted import grouped_layers, half_type, is_weighted, layers_left, quantized_type, why_not_fp8
from alexdeploy.machine import free_memory_bytes
from alexdeploy.specs import Precision, Profile, Progress

_CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class ImplicitInt8:
    """TensorRT 10 calibrates on images, or takes a calibration cache, and chooses the types itself; no Q/DQ is written.

    ``fp16`` lets it choose FP16 too.
    """

    calibrate_on: ImageDataset | Path
    fp16: bool = False


@dataclass(frozen=True)
class Plan:
    """A build that was checked and is ready to run.

    ``free_bytes`` is None without a GPU; ``options`` end up in the engine's sidecar.
    """

    graph: PreparedGraph
    precision: Precision
    settings: BuildSettings
    build: EngineBuild
    memory: MemoryNeed
    free_bytes: int | None
    options: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def batches(self) -> Profile:
        """Batch sizes that the image input accepts."""
        return next(iter(self.build.graph.shapes.values())).batches


def open_library(settings: BuildSettings, *, implicit: bool = False) -> Library:
    """The library that the settings ask for, before any work that would be for nothing.

    Raises:
        UnavailableError: no such builder on this machine, or one that cannot calibrate (``implicit``).
        UsageError: options that this builder does not have.
    """
    library = load_library(settings.builder)
    options = settings.options
    library.check(options.compatibility, timing_cache=options.timing_cache is not None)
    if implicit:
        library.check_implicit()
    if settings.strict and implicit:
        raise UsageError("`strict` does not go with `implicit`, where TensorRT chooses the types; leave one out")
    return library


def plan_engine(
    source: Path | PreparedGraph, *, settings: BuildSettings = BuildSettings(), implicit: ImplicitInt8 | None = None
) -> Plan:
    """Do all that comes before the build: check the graph and have TensorRT parse it.

    Args:
        source: an ONNX file in any precision, or a graph that ``quantize.apply.with_precision`` wrote.
        settings: see there.
        implicit: for a float ONNX file, TensorRT 10's own calibration instead of Q/DQ.

    Raises:
        InputError: a graph outside TensorRT's limits, or refused by its parser.
        UnavailableError: no builder on this machine.
        UsageError: options that do not fit the model or the builder.
    """
    library = open_library(settings, implicit=implicit is not None)
    graph = PreparedGraph(load_onnx(source), source) if isinstance(source, Path) else source
    _check_graph(graph)
    built_from = BuilderInput(
        # TensorRT reads the file itself where it can, which saves serialising the graph
        source=graph.path if isinstance(source, Path) and files.is_text(graph.path) else model_bytes(graph.model),
        shapes=input_profiles(graph.model, str(graph.path), settings),
        weighted=[_in_reports(node) for node in graph.model.graph if is_weighted(node)],
        quantized={_in_reports(node): asked for node in graph.model.graph if (asked := quantized_type(node))},
        half={_in_reports(node): asked for node in graph.model.graph if (asked := half_type(node))},
    )
    image = next(iter(built_from.shapes.values()))
    ordinal = settings.options.ordinal
    feed = _calibration(graph, implicit, library, image.opt[1:], ordinal) if implicit is not None else None
    precision = precision_of(graph.model)
    if implicit is not None:
        if built_from.quantized:
            raise UsageError(f"{graph.path} has Q/DQ, which decides what is quantized; build it without `implicit`")
        precision = Precision.of(int8=True, fp16=implicit.fp16)
    _check_targets(precision, settings.options.compatibility.targets)
    build = EngineBuild(built_from, settings.options, library, feed)
    largest = {name: shape.max for name, shape in built_from.shapes.items() if name in open_inputs(graph.model)}
    batches = image.batches
    options = {
        "precision": precision.value,
        "batch": str(batches),
        **{"method": None, "lrn_fp16_headroom": {}, "ranges": None},
        **graph.options,
        **({"method": "tensorrt"} if implicit is not None else {}),
        "workspace_bytes": settings.options.workspace_bytes,
        "level": settings.options.level,
        "tf32": settings.options.tf32,
    }
    memory = predict_memory(graph.model, batches.max[0], largest)
    return Plan(graph, precision, settings, build, memory, free_memory_bytes(ordinal), options, feed)


def _check_graph(graph: PreparedGraph) -> None:
    """Refuse what TensorRT would refuse, misread, or end the process on: its parser relies on shapes that fit.

    Raises:
        InputError: with the node, and the fix.
    """
    check_tensorrt(graph.model, str(graph.path))
    why = why_not_inferred(graph.model)
    if why is not None:
        raise InputError(f"{graph.path}: its shapes do not fit each other: {why}; correct the node and export it again")


def _calibration(
    graph: PreparedGraph, implicit: ImplicitInt8, library: Library, sizes: tuple[int, ...], ordinal: int
) -> Calibration:
    """Of images of those sizes, on that device."""
    dtype, data = image_input(graph.model, str(graph.path)).dtype, implicit.calibrate_on
    if isinstance(data, Path):
        cache = data.read_bytes()
        return Calibration(
            library, (1, *sizes), iter(()), lambda: 0, dtype=dtype, ordinal=ordinal, fp16=implicit.fp16, cache=cache
        )
    count = 1 if data.skip_bad else math.gcd(len(data), _CALIBRATION_BATCH)  # TensorRT takes whole batches only
    batches = (batch for batch, _ in data.batches(contract_of(graph.model, str(graph.path)), count))
    seen: Callable[[], int] = lambda: len(data) - len(data.skipped)  # noqa: E731
    return Calibration(library, (count, *sizes), batches, seen, dtype=dtype, ordinal=ordinal, fp16=implicit.fp16)


def build_engine(
    source: Path | PreparedGraph,
    output: Path,
    *,
    settings: BuildSettings = BuildSettings(),
    rebuild: str = "",
    progress: Progress = lambda what, share: None,
) -> EngineRecord:
    """Build a TensorRT engine and its sidecar from a finished ONNX graph.

    Args:
        source: an ONNX file in any precision, or a graph that ``quantize.apply.with_precision`` wrote.
        output: file to write; what fails or is interrupted leaves nothing there.
        settings: see there.
        rebuild: the command that does the same, for whoever cannot run the engine where they take it.
        progress: called with the builder's phase and the share of that phase that is done.

    Raises:
        InputError, UnavailableError, UsageError: see ``plan_engine``.
        GateError: ``strict``, and a layer was built in another type than the graph asks for, or its type is unknown.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import build_engine
        >>> record = build_engine(Path("int8.onnx"), Path("int8.engine"))
        >>> record.precisions["INT8"]
        8
    """
    path = source if isinstance(source, Path) else source.path
    files.check_output(output, path)
    return build_planned(plan_engine(source, settings=settings), output, rebuild=rebuild, progress=progress)


def build_planned(
    plan: Plan, output: Path, *, rebuild: str = "", progress: Progress = lambda what, share: None
) -> EngineRecord:
    """Build what ``plan_engine`` has planned; see ``build_engine``."""
    with ThreadPoolExecutor(1) as pool:  # hashed while the builder runs
        graph = plan.graph
        parents = pool.submit(lambda: graph.parents or (files.parent(graph.path),))
        data, built = _run(plan, output, progress)
    grouped = tuple(name for name in grouped_layers(plan.graph.model) if built.quantized.get(name) == "INT8")
    left = layers_left(graph.model, graph.asked or plan.precision) if plan.calibration is None else {}
    built = msgspec.structs.replace(built, reasons=reasons_of(built, graph.model), grouped=grouped, left=left)
    if plan.settings.strict and (built.float_layers or built.left):
        raise GateError(strict_refusal(built, graph.path))
    model = plan.graph.model
    contract = contract_of(model, str(plan.graph.path)) if METADATA_KEY in model.metadata_props else None
    record = msgspec.structs.replace(
        built,
        rebuild=rebuild,
        precision=plan.precision,
        classes=class_count(model),
        probabilities=ends_in_softmax(model),
        contract=contract,
        contract_sha256=contract.fingerprint if contract is not None else None,
    )
    write_engine(output, data, record, parents=parents.result(), options=plan.options)
    return record


def _run(plan: Plan, output: Path, progress: Progress) -> tuple[memoryview, EngineRecord]:
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


def precision_verdict(record: EngineRecord) -> str:
    """``8 of 8 layers in INT8``, for each type that the graph asks for, and the layers built in another type."""
    asked, found = {**record.half, **record.quantized}, record.layer_precisions
    total, kinds = len(asked | found | record.left), sorted(set(asked.values()))
    judged = [kind for name, kind in found.items() if name in asked or name not in record.left]
    verdict = ", ".join(f"{judged.count(kind)} of {total} layers in {kind}" for kind in kinds)
    if record.float_layers and record.kernels_unknown:
        return f"{verdict}, as far as is known; {record.kernels_unknown}"
    why = {name: f" ({reason})" for name, reason in record.reasons.items()}
    other = [name for name in record.float_layers if name in found]
    parts = {
        "quantized in the graph but built in float": [n + why.get(n, "") for n in other if n in record.quantized],
        "of 16 bits in the graph but built in another type": [n for n in other if n not in record.quantized],
        "of unknown type, since not found among the kernels": [n for n in record.float_layers if n not in found],
    }
    parts["left in float in the graph"] = [f"{name} ({reason})" for name, reason in record.left.items()]
    told = [f"{what}: {few(names)}" for what, names in parts.items() if names]
    verdict = "; ".join([verdict, *told] if verdict else told)
    return verdict + ("; quantize to INT8, or with such layers in `keep_float`" if why else "")


def strict_refusal(record: EngineRecord, origin: Path) -> str:
    """What ``strict`` says of an engine that it refuses; all the layers in one list, to be copied."""
    unknown = any(name not in record.layer_precisions for name in record.float_layers)
    rule = ", which also refuses layers whose type is not known" if unknown else ""
    layers = ",".join([*record.float_layers, *record.left])
    return f"{origin}: {precision_verdict(record)}; by `strict`{rule}, nothing was written. The layers: {layers}"


def reasons_of(built: EngineRecord, model: ir.Model) -> dict[str, str]:
    """Why layers were built in another type than their Q/DQ requests, where it is known, by node."""
    found = {_in_reports(node): why for node in model.graph if (why := why_not_fp8(node)) is not None}
    return {name: why for name, why in found.items() if name in built.float_layers}


def _check_targets(precision: Precision, targets: Sequence[str]) -> None:
    """The compute capabilities that an engine is built for must have its type (TensorRT-RTX 1.7.1)."""
    needed = (8, 9) if "fp8" in precision.value else (8, 0) if precision.bf16 else (0, 0)
    lower = [target for target in targets if tuple(map(int, target.split("."))) < needed]
    if lower:
        raise UsageError(
            f"`targets` {lower[0]}: {precision.value.split('+')[0]} needs compute capability {needed[0]}.{needed[1]} "
            "or later; leave that target out, or take another precision"
        )


def _in_reports(node: ir.Node) -> str:
    """The node's name in TensorRT's reports."""
    return str(node.name or f"node_of_{node.outputs[0].name}")
