"""Progress of a running build, and its interruption."""

from __future__ import annotations

import threading
from typing import Any

from alexdeploy.engine.versions import Library
from alexdeploy.specs import Progress


def layer_profiler(library: Library) -> Any:
    """An ``IProfiler`` that keeps, in ``times_ms``, what each layer took in every run."""
    interface: Any = library.module.IProfiler

    class LayerProfiler(interface):  # type: ignore[misc]
        def __init__(self) -> None:
            interface.__init__(self)
            self.times_ms: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times_ms.setdefault(layer_name, []).append(ms)

    return LayerProfiler()


def build_monitor(library: Library, progress: Progress) -> Any:
    """An ``IProgressMonitor`` that calls ``progress`` with the phase at work and the share of it that is done.

    Phases nest; which of them are long differs from build to build. ``cancel()`` makes the builder stop at its next
    step. TensorRT calls the monitor from threads of its own.
    """
    interface: Any = library.module.IProgressMonitor

    class Monitor(interface):  # type: ignore[misc]
        def __init__(self) -> None:
            interface.__init__(self)
            self._cancelled = threading.Event()
            self._steps: dict[str, int] = {}

        def cancel(self) -> None:
            self._cancelled.set()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps
            progress(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, (step + 1) / self._steps[phase_name])
            return not self._cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            """Nothing: it need not have told every step."""

    return Monitor()
