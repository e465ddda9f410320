"""Loading an engine, and what TensorRT said when it refused. The engine must have been checked (``trust``) before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexdeploy.engine.versions import Library, process_logger
from alexdeploy.errors import UnavailableError

if TYPE_CHECKING:
    import tensorrt as trt


def deserialize(library: Library, plan: bytes, *, host_code: bool) -> trt.ICudaEngine:
    """The engine, which keeps its runtime alive; a CUDA context must be current.

    Args:
        library: the TensorRT that built it.
        plan: its bytes.
        host_code: allow the runtime that a version-compatible plan brings along.

    Raises:
        UnavailableError: TensorRT refuses it; the message is its own.
    """
    process_logger(library).errors.clear()
    runtime: trt.Runtime = library.module.Runtime(process_logger(library))
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise UnavailableError(refused(library, "the engine cannot be loaded"))
    return engine


def refused(library: Library, what: str) -> str:
    """``what``, with the last errors that TensorRT logged since this was last asked."""
    errors = process_logger(library).errors
    last = "; ".join(errors[-2:])
    errors.clear()
    return f"{library.name} {library.version}: {what}: {last or 'no reason given'}"
