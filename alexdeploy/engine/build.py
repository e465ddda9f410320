"""A serialised ONNX graph → an engine file and its sidecar."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from alexdeploy import artifacts
from alexdeploy.engine.kernels import Kernel, count_precisions, parse_report, precisions_of_layers
from alexdeploy.engine.trust import EngineDetails
from alexdeploy.engine.versions import BuilderName, Library, process_logger
from alexdeploy.errors import InputError
from alexdeploy.specs import BatchProfile, Precision, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt  # the stubs of TensorRT serve for TensorRT-RTX too

_LOG_ERROR = 1  # ILogger.Severity.ERROR; INTERNAL_ERROR is 0


@dataclass(frozen=True)
class Graph:
    """What the builder needs to know of the graph besides its bytes.

    Attributes:
        data: the serialised, self-contained ONNX model.
        weighted: names of its Conv, Gemm and MatMul nodes.
        quantized: those of them that Q/DQ asks to run in INT8.
    """

    data: bytes
    input_name: str
    image_shape: tuple[int, int, int]
    precision: Precision
    weighted: Sequence[str]
    quantized: Sequence[str]


@dataclass(frozen=True)
class EngineReport:
    """What was built.

    ``layer_precisions`` maps each Conv/Gemm node to the type its kernel computes in; ``float_layers`` are the nodes
    that Q/DQ asked to run in INT8 and that do not.
    """

    size_bytes: int
    seconds: float
    builder: BuilderName
    builder_version: str
    input: TensorSpec
    output: TensorSpec
    kernels: list[Kernel]
    layer_precisions: dict[str, str]
    float_layers: list[str] = field(default_factory=list)

    @property
    def precisions(self) -> dict[str, int]:
        return count_precisions(self.layer_precisions)


def build(graph: Graph, profile: BatchProfile, library: Library) -> tuple[bytes, EngineReport]:
    """Build in memory. Blocks for about a second on the CPU (RTX), much longer on a GPU (TensorRT times kernels).

    TF32 is off, so that an FP32 engine is FP32.

    Raises:
        InputError: the parser or the builder refused the graph; node, operator and the library's words are in the
            message.
    """
    module = library.module
    logger = process_logger(library)
    logger.messages.clear()
    builder: trt.Builder = module.Builder(logger)
    network: trt.INetworkDefinition | None = builder.create_network(library.network_flags())
    if network is None:
        raise InputError(_refused(library, "no network could be created", logger))
    _parse(module.OnnxParser(network, logger), network, graph.data, library)
    config = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    _add_profile(builder, config, graph, profile, library, logger)
    started = time.perf_counter()
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if plan is None:
        raise InputError(_refused(library, "the builder refused the graph", logger))
    data = bytes(plan)
    return data, _report(data, seconds, graph, network, library, logger)


def write_engine(
    path: Path,
    plan: bytes,
    details: EngineDetails,
    *,
    parents: tuple[artifacts.Parent, ...],
    options: dict[str, Any],
) -> None:
    """Write the engine and its sidecar atomically."""
    artifacts.write_bytes(path, plan)
    artifacts.write_sidecar(
        path,
        "engine",
        parents=parents,
        options=options,
        libraries={details.builder: details.version},
        details=msgspec.to_builtins(details),
    )


def _parse(parser: trt.OnnxParser, network: trt.INetworkDefinition, data: bytes, library: Library) -> None:
    parsed = parser.parse(data)
    if not parsed or parser.num_errors:
        raise InputError(f"{library.name} cannot parse the graph: {_parser_errors(parser)}")
    if not (network.num_inputs and network.num_layers and network.num_outputs):
        raise InputError(f"{library.name} parsed an empty network; the ONNX file holds no graph it can use")


def _parser_errors(parser: trt.OnnxParser) -> str:
    """Each error once, with node and operator."""
    texts: list[str] = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node_operator() else ""
        text = node + " ".join(str(error.desc()).split())
        if text not in texts:
            texts.append(text)
    if not texts:
        return "no reason given"
    return "; ".join(texts[:3]) + "; replace the operator, or run the file in ONNX Runtime"


def _add_profile(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    graph: Graph,
    profile: BatchProfile,
    library: Library,
    logger: Any,
) -> None:
    """One optimization profile for the batch; TensorRT reports a bad one only through bool() and the log."""
    shapes = [(batch, *graph.image_shape) for batch in (profile.min, profile.opt, profile.max)]
    entry = builder.create_optimization_profile()
    entry.set_shape(graph.input_name, *shapes)
    if not entry or config.add_optimization_profile(entry) < 0:
        raise InputError(_refused(library, f"batch profile {profile} was refused", logger))


def _refused(library: Library, what: str, logger: Any) -> str:
    errors = [" ".join(text.split()) for severity, text in logger.messages if severity <= _LOG_ERROR]
    return f"{library.name} {library.version}: {what}: {'; '.join(errors[-2:]) or 'no reason given'}"


def _report(
    plan: bytes, seconds: float, graph: Graph, network: trt.INetworkDefinition, library: Library, logger: Any
) -> EngineReport:
    kernels = next((parse_report(text) for _, text in logger.messages if text.startswith("Layers:")), [])
    precisions = precisions_of_layers(kernels, graph.weighted)
    return EngineReport(
        size_bytes=len(plan),
        seconds=seconds,
        builder=library.name,
        builder_version=library.version,
        input=_spec(network.get_input(0), library),
        output=_spec(network.get_output(0), library),
        kernels=kernels,
        layer_precisions=precisions,
        float_layers=[name for name in graph.quantized if precisions.get(name) != "INT8"],
    )


def _spec(tensor: trt.ITensor, library: Library) -> TensorSpec:
    """As the engine has it: the type of an output is the computation's, whatever ONNX declares."""
    dtype = np.dtype(library.module.nptype(tensor.dtype)).name
    return TensorSpec(tensor.name, tuple(int(dim) for dim in tensor.shape), dtype)
