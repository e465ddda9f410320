"""ONNX Runtime's GPU providers, CUDA and TensorRT: they run there, or fail with the reason; never on the CPU instead.

``get_available_providers()`` names providers whose libraries are missing, and a session without them starts on the CPU
with a line on stderr. So falling back is forbidden to the session, and it is asked afterwards where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from alexdeploy.arrays import Batch
from alexdeploy.errors import InputError, UnavailableError
from alexdeploy.machine import why_no_cuda
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner, session_options
from alexdeploy.specs import Precision


class CudaRunner(OnnxRuntimeRunner):
    """An ONNX model on ``CUDAExecutionProvider``, in FP32 without TF32 or in FP16 as the graph says.

    Args:
        model: a file, or a serialised model.
        precision: of the graph.
        options: the provider's own, over ``defaults``: ``cudnn_conv_algo_search`` ("HEURISTIC" starts faster),
            ``use_tf32``, ``prefer_nhwc``, ``gpu_mem_limit``, ``device_id`` and so on.
        ordinal: number of the CUDA device.

    Raises:
        InputError: ONNX Runtime cannot load the model.
        UnavailableError: it cannot run wholly on the provider; the message is the reason.
    """

    runtime = "onnxruntime-cuda"
    _provider, _device = "CUDAExecutionProvider", "cuda"

    def __init__(
        self,
        model: Path | bytes,
        precision: Precision,
        options: Mapping[str, str] | None = None,
        *,
        ordinal: int = 0,
    ) -> None:
        chosen = {"device_id": str(ordinal), **self.defaults(precision), **(options or {})}
        self._check_available()
        session = session_options()
        session.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._start_with(model, {}, session, chosen)
        except InputError as error:
            raise UnavailableError(f"{self.runtime}: {error.__cause__ or error}") from error
        self._check_provider(self._session.get_providers())

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

    def _check_available(self) -> None:
        if self._provider not in ort.get_available_providers():
            raise UnavailableError(
                f"this onnxruntime {ort.__version__} has no {self._provider}; replace it: pip uninstall onnxruntime, "
                "then pip install onnxruntime-gpu"
            )
        reason = why_no_cuda()
        if reason is not None:
            raise UnavailableError(reason)
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()

    def _check_provider(self, used: list[str]) -> None:
        if used[:1] != [self._provider]:
            raise UnavailableError(
                f"asked for {self._provider}, but ONNX Runtime started on {', '.join(used)}; its libraries are missing "
                "or of another version (CUDA 13, cuDNN 9 and TensorRT 10 for onnxruntime-gpu 1.31)"
            )


class TensorRtProviderRunner(CudaRunner):
    """An ONNX model on ``TensorrtExecutionProvider``, which builds an engine on loading.

    Args:
        model: a file, or a serialised model.
        precision: of the graph; INT8 is its Q/DQ, without a calibration table.
        options: the provider's own, over ``defaults``: ``trt_profile_min_shapes``, ``_opt_`` and ``_max_`` (all three,
            "input:1x3x227x227"; without them the engine is built again for every new batch size),
            ``trt_builder_optimization_level``, ``trt_timing_cache_enable``, ``trt_engine_cache_enable`` and so on.
    """

    runtime = "onnxruntime-tensorrt"
    _provider = "TensorrtExecutionProvider"

    @staticmethod
    def defaults(precision: Precision) -> dict[str, str]:
        return {
            "trt_fp16_enable": str(int(precision.fp16)),
            "trt_int8_enable": str(int(precision in (Precision.INT8, Precision.INT8_FP16))),
        }
