"""Range file + float model → quantized model, in the dialect of the runtime that is to run it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from alexdeploy import artifacts
from alexdeploy.errors import GateError
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import contract_of, load_onnx, save_onnx
from alexdeploy.graph.qdq import insert_qdq
from alexdeploy.quantize.rangefile import RangeFile, load_ranges

DIALECTS = ("tensorrt",)
DEFAULT_METHOD = "mse"


def quantize_onnx(
    model_path: Path, ranges_path: Path, output: Path, *, method: str = DEFAULT_METHOD, fp16: bool = False
) -> ir.Model:
    """Write ``model_path`` as INT8 Q/DQ in TensorRT's dialect; with ``fp16``, FP16 between the INT8 layers.

    Raises:
        InputError: an unusable model or range file.
        GateError: the ranges belong to another model or contract.
    """
    artifacts.check_output(output)
    ranges = load_ranges(ranges_path)
    model = quantized(model_path, ranges, method=method, fp16=fp16)
    save_onnx(
        model,
        output,
        parents=(artifacts.parent(model_path), artifacts.parent(ranges_path)),
        options={"method": method, "for": DIALECTS[0], "fp16": fp16},
    )
    return model


def quantized(model_path: Path, ranges: RangeFile, *, method: str, fp16: bool) -> ir.Model:
    """The same in memory."""
    model = load_onnx(model_path)
    ranges.check_model(model_path)
    contract = contract_of(model, str(model_path))
    if contract.fingerprint != ranges.contract:
        raise GateError(f"the ranges were calibrated with other preprocessing than {model_path} names; calibrate again")
    model = insert_qdq(model, ranges.amax(method))
    return to_fp16(model) if fp16 else model
