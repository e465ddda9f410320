"""A finished ONNX graph → a TensorRT plan and its record. Precision is in the graph; nothing here decides it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alexdeploy import files
from alexdeploy.engine.calibration import Calibration
from alexdeploy.engine.kernels import Kernel, count_precisions, parse_inspection, parse_report, precisions_of_layers
from alexdeploy.engine.monitor import build_monitor
from alexdeploy.engine.options import BuilderOptions
from alexdeploy.engine.record import EngineRecord
from alexdeploy.engine.runtime import inspect_plan, refused
from alexdeploy.engine.timing_cache import attach as attach_cache
from alexdeploy.engine.timing_cache import cache_path
from alexdeploy.engine.timing_cache import save as save_cache
from alexdeploy.engine.versions import Library, process_logger, this_platform
from alexdeploy.errors import InputError, UnavailableError, in_a_line, is_about_memory
from alexdeploy.machine import current_gpu
from alexdeploy.specs import Profile, Progress, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt  # the stubs of TensorRT serve for TensorRT-RTX too

_FIX = "replace the operator, or run the file in ONNX Runtime"
_FIXES = {  # by trt.ErrorCode
    "MODEL_DESERIALIZE_FAILED": "export the file again",
    "MEM_ALLOC_FAILED": "free memory and try again",
    "INVALID_NODE": "correct the node (alexdeploy lint knows the usual causes), or run the file in ONNX Runtime",
}


@dataclass(frozen=True)
class BuilderInput:
    """The ONNX source, and what the builder must know about it.

    Attributes:
        source: the ONNX file, or a serialised, self-contained model.
        shapes: by input, the shapes to accept; an image input is (batch, C, H, W).
        weighted: names of its Conv, Gemm and MatMul nodes.
        quantized: by name, the type that Q/DQ requests: INT8 or FP8.
        half: by name of the others, HALF or BFLOAT16 where the graph computes in it.
    """

    source: bytes | Path
    shapes: Mapping[str, Profile]
    weighted: Sequence[str]
    quantized: Mapping[str, str]
    half: Mapping[str, str] = field(default_factory=dict)


class EngineBuild:
    """A graph that TensorRT's parser has taken, configured and ready to build.

    With ``implicit`` TensorRT 10 calibrates and chooses the types itself, INT8 among them.

    Raises:
        InputError: the parser refused the graph, or the builder its profile.
        UsageError: an option that this library does not have, or no folder for the timing cache.
        UnavailableError: the library does not start.
    """

    def __init__(
        self, graph: BuilderInput, options: BuilderOptions, library: Library, implicit: Calibration | None = None
    ) -> None:
        self.graph, self.options, self.library, self._implicit = graph, options, library, implicit
        library.check(options.compatibility, timing_cache=options.timing_cache is not None)
        if options.timing_cache is not None:
            files.check_output(cache_path(options.timing_cache, library, options.ordinal))
        self._logger = process_logger(library)
        self._logger.errors.clear()
        with options.on_device(self.library.name):
            self._open(graph.source)

    def _open(self, source: bytes | Path) -> None:
        """Start the builder, parse and configure."""
        library, implicit = self.library, self._implicit
        self._builder = self._create_builder()
        network: trt.INetworkDefinition | None = self._builder.create_network(
            library.network_flags(implicit=implicit is not None)
        )
        if network is None:
            raise InputError(self._refused("no network could be created"))
        self._network = network
        _parse(library.module.OnnxParser(network, self._logger), network, source, library)
        self._config = self._configure()

    def run(self, progress: Progress = lambda phase, share: None) -> tuple[memoryview, EngineRecord]:
        """Build in memory: about a second on the CPU (RTX), minutes on a GPU (TensorRT times kernels).

        An exception that arrives meanwhile, such as KeyboardInterrupt, stops the builder at its next step.

        Raises:
            InputError: the builder refused the graph; the message has its words.
            UnavailableError: it had not enough memory.
        """
        self._logger.kernels = ""
        monitor = build_monitor(self.library, progress)
        self._config.progress_monitor = monitor
        cache = self.options.timing_cache
        path = cache_path(cache, self.library, self.options.ordinal) if cache is not None else None
        if path is not None:
            attach_cache(self._config, path)
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as pool:  # leaves this thread free to be interrupted
            future = pool.submit(self._build)
            try:
                plan: trt.IHostMemory | None = future.result()
            except BaseException:
                monitor.cancel()
                raise
            seconds = time.perf_counter() - started
            if plan is None:
                refused = self._refused("the builder refused the graph")
                raise (UnavailableError if is_about_memory(refused) else InputError)(refused)
            # on the builder's thread, whose device it is
            kernels, why_not = pool.submit(self._kernels, plan).result()
        if path is not None:
            save_cache(self._config, path)
        data = memoryview(plan)  # which keeps the plan; an engine is too large to copy without need
        return data, self._record(data, seconds, kernels, why_not)

    def _kernels(self, plan: trt.IHostMemory) -> tuple[list[Kernel], str]:
        """The kernels of the plan, or none and the reason."""
        try:
            if self.library.logs_kernels:
                return parse_report(self._logger.kernels), ""
            with self.options.on_device(self.library.name):
                return parse_inspection(inspect_plan(self.library, plan, self.graph.shapes)), ""
        except UnavailableError as error:
            return [], str(error)
        except Exception as error:  # the binding's, or a report of another form; a good plan is not lost for it
            return [], f"{self.library.name} {self.library.version} tells nothing of its kernels ({in_a_line(error)})"

    def _build(self) -> trt.IHostMemory | None:
        with self.options.on_device(self.library.name):
            return self._builder.build_serialized_network(self._network, self._config)

    def _create_builder(self) -> trt.Builder:
        try:
            builder: trt.Builder = self.library.module.Builder(self._logger)
        except (TypeError, RuntimeError) as error:  # the binding's words for "the library returned nothing"
            raise UnavailableError(self._refused(f"the builder does not start ({error})")) from error
        return builder

    def _configure(self) -> trt.IBuilderConfig:
        module, options = self.library.module, self.options
        config: trt.IBuilderConfig = self._builder.create_builder_config()
        if not options.tf32:
            config.clear_flag(module.BuilderFlag.TF32)
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.level is not None:
            config.builder_optimization_level = options.level
        self.library.apply(options.compatibility, config)
        profile = self._builder.create_optimization_profile()
        told = ", ".join(f"{name}={shape}" for name, shape in self.graph.shapes.items())
        try:
            for name, shape in self.graph.shapes.items():
                profile.set_shape(name, shape.min, shape.opt, shape.max)
        except (RuntimeError, TypeError, ValueError) as error:  # the binding's
            raise InputError(self._refused(f"the profile {told} was refused ({in_a_line(error)})")) from error
        if not profile or config.add_optimization_profile(profile) < 0:  # a bad one does not raise
            raise InputError(self._refused(f"the profile {told} was refused"))
        if self._implicit is not None:
            count = self._implicit.batch
            seen = self._builder.create_optimization_profile()
            for name, shape in self.graph.shapes.items():
                seen.set_shape(name, *[(count, *shape.opt[1:])] * 3)
            self.library.calibrate_with(self._implicit.calibrator, config, seen, fp16=self._implicit.fp16)
        return config

    def _refused(self, what: str) -> str:
        text = refused(self.library, what)
        limited = self.options.workspace_bytes is not None and re.search("workspace limit|OutOfMemory", text)
        return f"{text}; raise `workspace_bytes` or leave it out" if limited else text

    def _record(self, plan: memoryview, seconds: float, kernels: Sequence[Kernel], why_not: str) -> EngineRecord:
        precisions = precisions_of_layers(kernels, self.graph.weighted)
        asked = {**self.graph.half, **self.graph.quantized}
        return EngineRecord(
            builder=self.library.name,
            version=self.library.version,
            size_bytes=len(plan),
            build_seconds=round(seconds, 3),
            platform=this_platform(),
            gpu=current_gpu(self.options.ordinal),
            compatibility=self.options.compatibility,
            tf32=self.options.tf32,
            shapes=dict(self.graph.shapes),
            input=_spec(self._network.get_input(0), self.library),
            output=_spec(self._network.get_output(0), self.library),
            precisions=count_precisions(precisions),
            layer_precisions=precisions,
            quantized=dict(self.graph.quantized),
            half=dict(self.graph.half),
            float_layers=tuple(name for name, kind in asked.items() if precisions.get(name) != kind),
            kernels=tuple(kernels),
            kernels_unknown=why_not,
        )


def _parse(parser: trt.OnnxParser, network: trt.INetworkDefinition, source: bytes | Path, library: Library) -> None:
    parsed = parser.parse(source) if isinstance(source, bytes) else parser.parse_from_file(str(source))
    if not parsed or parser.num_errors:
        raise InputError(f"{library.name} cannot parse the graph: {_parser_errors(parser)}")
    if not (network.num_inputs and network.num_layers and network.num_outputs):
        raise InputError(f"{library.name} parsed an empty network; the ONNX file holds no graph it can use")


def _parser_errors(parser: trt.OnnxParser) -> str:
    """Each error once, with node and operator, and what to do about the first."""
    texts: dict[str, str] = {}
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name = error.node_name()[:80] or f"number {error.node()}"
        node = f"node '{name}' ({error.node_operator()}): " if error.node_operator() else ""
        texts[node + " ".join(str(error.desc()).split())[:200]] = _FIXES.get(error.code().name, _FIX)
    fix = next(iter(texts.values()), _FIX)
    return f"{'; '.join(list(texts)[:2]) or 'no reason given'}; {fix}"


def _spec(tensor: trt.ITensor, library: Library) -> TensorSpec:
    """As the engine has it: the type of an output is the computation's, whatever ONNX declares."""
    dtype = np.dtype(library.module.nptype(tensor.dtype)).name
    return TensorSpec(tensor.name, tuple(int(dim) for dim in tensor.shape), dtype)
