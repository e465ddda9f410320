"""ONNX Runtime's GPU providers, CUDA and TensorRT: they run there, or fail with the reason; never on the CPU instead.

``get_available_providers()`` names providers whose libraries are missing, and a session without them starts on the CPU
with a line on stderr. So the libraries are loaded beforehand, and the session is asked afterwards where it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from alexdeploy import files
from alexdeploy.arrays import Batch
from alexdeploy.errors import InputError, UnavailableError, UsageError, few
from alexdeploy.machine import current_gpu, tf32_is_forbidden, why_no_cuda
from alexdeploy.optional import require
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner, session_options
from alexdeploy.runners.onnxruntime_cache import cache_folder, engine_cache
from alexdeploy.runners.onnxruntime_graphs import BoundCall, GraphCalls
from alexdeploy.runners.onnxruntime_libraries import load_libraries, tensorrt_version, why_not_loaded
from alexdeploy.specs import DEFAULT_BATCHES, Precision, Profile

if TYPE_CHECKING:
    import onnx_ir as ir

_TELLS_PLACES = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")  # since 1.24
# ONNX Runtime computes shapes on the CPU on purpose (microsoft/onnxruntime#17930)
_OF_SHAPES = """
    Shape Size Gather Slice Concat Squeeze Unsqueeze Cast Identity Reshape Range ConstantOfShape Expand Where
    Equal Less Greater Not And Or Add Sub Mul Div Mod Neg Abs Floor Ceil Min Max
    ReduceProd ReduceSum ReduceMin ReduceMax
"""
_SHAPE_ARITHMETIC = frozenset(_OF_SHAPES.split())
_FELL_BACK = re.compile("Please install TensorRT|explicitly disabled by the user")  # its library was tried in vain


class CudaRunner(OnnxRuntimeRunner):
    """An ONNX model on ``CUDAExecutionProvider``, in FP32 without TF32 or in FP16 as the graph says.

    Shapes may be computed on the CPU, which is where ONNX Runtime puts that; everything else is on the GPU.

    Args:
        model: a file, or a serialised model.
        precision: of the graph.
        options: the provider's own, over ``defaults``: ``cudnn_conv_algo_search`` ("HEURISTIC" starts faster),
            ``use_tf32``, ``prefer_nhwc``, ``gpu_mem_limit`` and so on. ``enable_cuda_graph`` "1": each of the first 16
            batch sizes becomes a CUDA graph when it is first run, one call at a time; other threads of the process
            must leave the GPU alone meanwhile, or the capture fails.
        ordinal: number of the CUDA device.

    Raises:
        UsageError: ``device_id`` among the options.
        UnavailableError: it cannot run on the provider; the message is the reason.
    """

    runtime = "onnxruntime-cuda"
    on_gpu = True
    _provider, _device = "CUDAExecutionProvider", "cuda"

    def __init__(
        self,
        model: Path | bytes,
        precision: Precision,
        options: Mapping[str, str] | None = None,
        *,
        ordinal: int = 0,
    ) -> None:
        if "device_id" in (options or {}):
            raise UsageError("`options`: device_id is chosen by `device`, such as cuda:1")
        chosen = {"device_id": str(ordinal), **self.defaults(precision), **(options or {})}
        self.tf32 = self._computes_in_tf32(chosen)
        self._ordinal = ordinal
        self._check_available()
        try:
            with self._completed(model, chosen) as completed:
                self._start_with(model, {}, self._session_options(), completed)
        except InputError as error:
            if error.__cause__ is None:
                raise
            raise UnavailableError(self._in_words(error.__cause__)) from error
        self._check_placement()
        graphs = chosen.get("enable_cuda_graph") == "1"
        self._graphs = GraphCalls(self._session, (self._device, self._ordinal)) if graphs else None

    def _release(self) -> None:
        super()._release()
        self._graphs = None

    def _bound(self, batch: Batch) -> Callable[[], object]:
        graphs = self._graphs  # once: another thread may close the runner
        if graphs is None:
            return super()._bound(batch)
        return partial(self._run_graph, graphs.call_on(batch, self._logits[0]))

    def _run_graph(self, call: BoundCall) -> object:
        _ = self._session  # refused where the runner is closed
        return call()

    def layer_times_ms(self, batch: Batch) -> dict[str, float]:  # noqa: ARG002
        return {}  # ONNX Runtime's profiler times the launch of a GPU kernel, not the kernel

    @staticmethod
    def defaults(precision: Precision) -> dict[str, str]:
        """Provider options for a graph of that precision.

        Raises:
            UnavailableError: INT8 or FP8.
        """
        if precision.quantized:
            raise UnavailableError(
                "ONNX Runtime's CUDA provider has no INT8 or FP8 convolution: it would dequantize and compute in float;"
                " use `runtime` onnxruntime-tensorrt, or build an engine"
            )
        return {"use_tf32": "0"}

    @staticmethod
    def _computes_in_tf32(options: Mapping[str, str]) -> bool:
        return options.get("use_tf32") != "0" and not tf32_is_forbidden()

    @contextlib.contextmanager
    def _completed(self, model: Path | bytes, options: dict[str, str]) -> Iterator[dict[str, str]]:  # noqa: ARG002
        """The provider's options for a session that is started inside the block."""
        yield options

    def _session_options(self) -> ort.SessionOptions:
        options = session_options()
        if _TELLS_PLACES:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return options

    def _run_piece(self, piece: Batch, names: list[str]) -> list[npt.NDArray[np.float32]]:
        graphs = self._graphs
        return super()._run_piece(piece, names) if graphs is None else graphs.run(piece, names)

    def _check_available(self) -> None:
        if self._provider not in ort.get_available_providers():
            raise UnavailableError(
                f"this onnxruntime {ort.__version__} has no {self._provider}; replace it: pip uninstall onnxruntime, "
                "then pip install onnxruntime-gpu"
            )
        reason = why_no_cuda(self._ordinal)
        if reason is not None:
            raise UnavailableError(reason)
        load_libraries(self._provider)

    def _check_placement(self) -> None:
        """Refuse a session without the provider, or with more than shape arithmetic on the CPU."""
        used = self._session.get_providers()
        if used[:1] != [self._provider]:
            reason = why_not_loaded(self._provider) or "it gives no reason; install onnxruntime-gpu again"
            raise UnavailableError(f"{self._provider} did not start, ONNX Runtime fell back to {used[0]}: {reason}")
        if _TELLS_PLACES:
            check_placement(self._session.get_provider_graph_assignment_info(), self.runtime)

    def _in_words(self, error: BaseException) -> str:
        """One line: CUDA's own word where there is one, the dynamic linker's, else ONNX Runtime's."""
        text = " ".join(str(error).split())
        cuda = re.search(r"CUDA failure \d+: [^;]+", text)
        linker = why_not_loaded(self._provider) if _FELL_BACK.search(text) else None
        return f"{self._provider}: {cuda[0].strip() if cuda else linker or text[:300]}"


class TensorRtProviderRunner(CudaRunner):
    """An ONNX model on ``TensorrtExecutionProvider``, all of it, which builds an engine on loading.

    The engine takes batches up to the largest of ``batches``; larger ones go in pieces. It is kept in the user's cache
    folder (``$XDG_CACHE_HOME/alexdeploy``, else ``~/.cache/alexdeploy``), by model, options, versions and GPU. Where
    the graph leaves sizes open that its contract does not tell, it is built again as sizes come, and not kept.

    Args:
        model: a file, or a serialised model.
        precision: of the graph; INT8 is its Q/DQ, without a calibration table.
        options: the provider's own, over ``defaults``: ``trt_builder_optimization_level``; all three of
            ``trt_profile_min_shapes``, ``_opt_`` and ``_max_`` ("input:1x3x227x227"); ``trt_engine_cache_enable`` "0"
            for no cache; and so on.
        ordinal: number of the CUDA device.
        batches: batch sizes that it will be asked for, kernels tuned for the middle one.

    Raises:
        UsageError: ``trt_cuda_graph_enable``.
        InputError: the file holds a compiled engine (``EPContext``), or is not an ONNX model.
        UnavailableError: it cannot run wholly on the provider; the message is the reason.
    """

    runtime = "onnxruntime-tensorrt"
    _provider = "TensorrtExecutionProvider"

    def __init__(
        self,
        model: Path | bytes,
        precision: Precision,
        options: Mapping[str, str] | None = None,
        *,
        ordinal: int = 0,
        batches: Profile = DEFAULT_BATCHES,
    ) -> None:
        if (options or {}).get("trt_cuda_graph_enable", "0") != "0":
            raise UsageError(
                "`options`: with trt_cuda_graph_enable the provider captures the first batch and repeats it for every "
                "other; build an engine, whose runner has a graph for each size"
            )
        self._batches = batches
        super().__init__(model, precision, options, ordinal=ordinal)

    @staticmethod
    def defaults(precision: Precision) -> dict[str, str]:
        return {
            "trt_fp16_enable": str(int(precision.fp16)),
            "trt_int8_enable": str(int(precision in (Precision.INT8, Precision.INT8_FP16))),
        }

    @staticmethod
    def _computes_in_tf32(options: Mapping[str, str]) -> bool:  # noqa: ARG004
        return not tf32_is_forbidden()  # it has no option for that (microsoft/onnxruntime#26029)

    @contextlib.contextmanager
    def _completed(self, model: Path | bytes, options: dict[str, str]) -> Iterator[dict[str, str]]:
        """With the profile of the model, and the folders of the caches."""
        for library in ("onnx", "onnx_ir"):
            require(library)
        from alexdeploy.graph.model import load_onnx, release_weights

        graph = load_onnx(model)
        _check_no_engine(graph, str(model) if isinstance(model, Path) else "the model")
        if not any(name.startswith("trt_profile_") for name in options):
            options = {**options, **self._profile(graph)}
        key, folder, version = _key(model, graph, options), cache_folder(), tensorrt_version()
        fixed = "trt_profile_max_shapes" in options or not _is_open(graph)
        release_weights(graph)
        chosen = any(name.startswith(("trt_engine_cache", "trt_timing_cache", "trt_dump_ep")) for name in options)
        if chosen or not fixed or not version or folder is None:
            yield options
            return
        machine = f"{current_gpu(self._ordinal)} CUDA {getattr(ort, 'cuda_version', '')} TensorRT {version}"
        key |= {"machine": machine, "onnxruntime": ort.__version__}
        with engine_cache(folder, key, machine) as cached:
            yield {**cached, **options}

    def _profile(self, graph: ir.Model) -> dict[str, str]:
        """Shapes from one image to the most of ``batches``; none for a graph that is fixed or open in other sizes."""
        from alexdeploy.engine.options import BuildSettings
        from alexdeploy.engine.shapes import input_profiles

        most = self._batches
        if not _is_open(graph):
            return {}
        try:
            shapes = input_profiles(graph, "", BuildSettings(batches=Profile((1,), most.opt, most.max)))
        except UsageError:
            return {}
        if any(mark in name for name in shapes for mark in ":,"):  # the provider would misread them
            return {}
        self._most = most.max[0]
        return {
            f"trt_profile_{bound}_shapes": ",".join(
                f"{name}:{'x'.join(map(str, getattr(profile, bound)))}" for name, profile in shapes.items()
            )
            for bound in ("min", "opt", "max")
        }

    def _session_options(self) -> ort.SessionOptions:
        options = super()._session_options()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return options


def check_placement(subgraphs: Iterable[Any], runtime: str) -> None:
    """Refuse a session that computes more than shapes on the CPU.

    Args:
        subgraphs: ONNX Runtime's ``OrtEpAssignedSubgraph``: ``ep_name``, and nodes with ``name`` and ``op_type``.
        runtime: that was asked for, for the message.

    Raises:
        UnavailableError: it does; the message names the nodes.
    """
    on_cpu = [node for part in subgraphs if part.ep_name == "CPUExecutionProvider" for node in part.get_nodes()]
    strays = [node for node in on_cpu if node.op_type not in _SHAPE_ARITHMETIC]
    if strays:
        named = few(f"{node.op_type} '{node.name}'" for node in strays)
        raise UnavailableError(
            f"{runtime} does not take {named}, which would run on the CPU; use `runtime` onnxruntime-cpu, or an engine"
        )


def _check_no_engine(graph: ir.Model, origin: str) -> None:
    if any(node.op_type == "EPContext" for node in graph.graph):
        raise InputError(
            f"{origin}: holds a compiled engine (EPContext), which is executable code that nothing vouches for; give "
            "the ONNX file that it was made from"
        )


def _is_open(graph: ir.Model) -> bool:
    """True if an input leaves a size open."""
    return any(not isinstance(dim, int) for value in graph.graph.inputs for dim in value.shape or ())


def _key(model: Path | bytes, graph: ir.Model, options: Mapping[str, str]) -> dict[str, str]:
    """What of an engine is the model's and the options'. Weights may lie in other files than the model."""
    from onnx.external_data_helper import uses_external_data

    from alexdeploy.graph.mapped import MappedModel

    weights = hashlib.sha256()
    if isinstance(model, Path) and any(map(uses_external_data, MappedModel(model).proto.graph.initializer)):
        for name, value in graph.graph.initializers.items():
            if value.const_value is not None:
                weights.update(name.encode())
                weights.update(value.const_value.tobytes())
    return {
        **options,
        "model": files.sha256_file(model) if isinstance(model, Path) else hashlib.sha256(model).hexdigest(),
        "name": model.name if isinstance(model, Path) else "",
        "weights": weights.hexdigest(),
    }
