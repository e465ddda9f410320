"""ONNX Runtime's LRN kernel is slow on a CPU: the same function in fast operators, in memory, once it is proven."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexdeploy.errors import InputError, InputWarning, UnavailableError
from alexdeploy.files import identity
from alexdeploy.metrics import relative_error
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    import onnx_ir as ir

_TOLERANCE = 1e-5
_LRN_NODE = b"\x22\x03LRN"  # how NodeProto.op_type is stored: field 4, three bytes

Weights = Mapping[str, npt.NDArray[np.generic]]


def open_with_fast_lrn(
    source: Path | bytes,
    origin: str,
    read: Callable[[], ir.Model],
    runner: type[OnnxRuntimeRunner],
    options: Mapping[str, Any],
) -> OnnxRuntimeRunner:
    """A runner of the graph that ``read`` gives; without the ``onnx`` libraries, of the file as it is.

    Raises:
        InputError: the file was replaced meanwhile.
    """
    file = source.resolve() if isinstance(source, Path) else None  # ONNX Runtime leaves no folder
    before = identity(file) if file else None
    try:
        model = read()
    except UnavailableError as missing:
        warn_of_slow_lrn(source, origin, missing)
        return runner(source, **options)
    graph, weights = with_fast_lrn(model, file, origin)
    opened = runner(graph, weights, folder=file.parent if file else None, **options)
    if file and identity(file) != before:
        opened.close()
        raise InputError(f"{origin}: was replaced while it was being loaded; load it again")
    return opened


def with_fast_lrn(model: ir.Model, source: Path | None, origin: str) -> tuple[bytes, Weights]:
    """The graph with its LRN lowered and without its large weights, and those that do not lie in ``source``.

    Where the fast form does not give the native kernel's answers, a warning says so and the kernel stays.
    """
    from alexdeploy.graph.emulate import for_cpu
    from alexdeploy.graph.lrn.lower import lower_lrn
    from alexdeploy.graph.model import release_weights, split_weights

    floats = for_cpu(model)  # before the LRN is lowered, whose sums stay in FP32
    lowered = lower_lrn(floats)
    try:
        return split_weights(lowered if _is_proven(floats, lowered, origin) else floats, source)
    finally:
        release_weights(*(ours for ours in (floats, lowered) if ours is not model))


def warn_of_slow_lrn(source: Path | bytes, origin: str, cause: Exception) -> None:
    """Warn where a file that cannot be read without the ``onnx`` libraries seems to hold an LRN."""
    if _LRN_NODE in (source.read_bytes() if isinstance(source, Path) else source):
        warnings.warn(f"{origin}: its LRN runs slowly: {cause}", InputWarning, stacklevel=2)


def _is_proven(model: ir.Model, lowered: ir.Model, origin: str) -> bool:
    """True if each LRN that was lowered gives the kernel's answers, alone, on small and on large values."""
    from alexdeploy.graph.lrn.lower import lower_lrn, lrn_alone
    from alexdeploy.graph.model import model_bytes

    left = {node.outputs[0].name for node in lowered.graph if node.op_type == "LRN"}
    for node in model.graph:
        if node.op_type != "LRN" or node.outputs[0].name in left:
            continue
        probe = lrn_alone(node)
        distance = _distance(model_bytes(lower_lrn(probe)), model_bytes(probe))
        if not distance <= _TOLERANCE:
            warnings.warn(
                f"{origin}: the fast form of LRN '{node.outputs[0].name}' is {distance:.1e} away from ONNX "
                f"Runtime's own (relative, at most {_TOLERANCE:.0e}); the slow one is used",
                InputWarning,
                stacklevel=2,
            )
            return False
    return True


def _distance(fast: bytes, native: bytes) -> float:
    """Largest relative error over images from small to large, where LRN hardly acts and where it rules."""
    with OnnxRuntimeRunner(fast) as a, OnnxRuntimeRunner(native) as b:
        noise = np.random.default_rng(0).standard_normal((1, *map(int, a.input.shape[1:])), dtype=np.float32)
        images = [noise * np.float32(10.0**exponent) for exponent in range(-2, 4)]
        name = a.output_names[0]
        return max(relative_error(a.run(image)[name], b.run(image)[name]) for image in images)
