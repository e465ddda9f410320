"""Loading an engine, its layers as TensorRT tells them, and what TensorRT said when it refused.

The engine must have been checked (``trust``) before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from alexdeploy.engine.versions import Library, process_logger
from alexdeploy.errors import UnavailableError
from alexdeploy.specs import Profile

if TYPE_CHECKING:
    import tensorrt as trt


def deserialize(library: Library, plan: bytes | trt.IHostMemory, *, host_code: bool) -> trt.ICudaEngine:
    """The engine, which keeps its runtime alive; a CUDA context must be current.

    Args:
        library: the TensorRT that built it.
        plan: its bytes, or the builder's own buffer.
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


def inspect_plan(library: Library, plan: bytes | trt.IHostMemory, shapes: Mapping[str, Profile]) -> str:
    """JSON of the layers of a plan that was just built here, at the shapes that it is tuned for.

    Without shapes TensorRT tells no types: "N/A due to dynamic shapes" (developer guide, "Engine Inspector").

    Raises:
        UnavailableError: TensorRT does not load the plan, or tells nothing of it.
    """
    engine = deserialize(library, plan, host_code=True)
    context = library.create_context(engine)
    inspector: trt.EngineInspector | None = engine.create_engine_inspector()
    if context is None or inspector is None:
        raise UnavailableError(refused(library, "the engine cannot be inspected"))
    if not all(context.set_input_shape(name, profile.opt) for name, profile in shapes.items()):
        raise UnavailableError(refused(library, "the engine does not take the shapes of its profile"))
    inspector.execution_context = context
    return str(inspector.get_engine_information(library.module.LayerInformationFormat.JSON))


def refused(library: Library, what: str) -> str:
    """``what``, with the last errors that TensorRT logged since this was last asked."""
    errors = process_logger(library).errors
    last = "; ".join(error[:300] for error in errors[-2:])[:400]
    errors.clear()
    return f"{library.name} {library.version}: {what}: {last or 'no reason given'}"
