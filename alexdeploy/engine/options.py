"""The settings of a build that a caller chooses. Everything else is in the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alexdeploy.cuda.open import open_device
from alexdeploy.engine.versions import Compatibility
from alexdeploy.errors import UsageError
from alexdeploy.specs import DEFAULT_BATCHES, Builder, BuilderName, Profile, cuda_ordinal


@dataclass(frozen=True)
class BuilderOptions:
    """Settings of the builder itself.

    Attributes:
        workspace_bytes: largest scratch memory a kernel may take; None leaves it to TensorRT (all of the device's).
        level: effort from 0 to 5; None is TensorRT's default, 3.
        tf32: FP32 multiplications may round their inputs to 10 bits; off, so that an FP32 engine is FP32.
        timing_cache: folder for what TensorRT measures, kept for later builds.
        device: the GPU to build on, ``cuda:1`` for the second; None for the first, if the builder needs one.
        compatibility: where else the engine is to run.
    """

    workspace_bytes: int | None = None
    level: int | None = None
    tf32: bool = False
    timing_cache: Path | None = None
    device: str | None = None
    compatibility: Compatibility = Compatibility()

    @property
    def ordinal(self) -> int:
        """The number of ``device``."""
        return cuda_ordinal(self.device)

    def on_device(self, builder: BuilderName) -> contextlib.AbstractContextManager[None]:
        """A block in which ``device`` is current on this thread; a builder takes the current one.

        TensorRT always needs one, TensorRT-RTX only where it was chosen.

        Raises:
            UsageError: not a device.
            UnavailableError: it is not there.
        """
        needed = self.device is not None or builder == "tensorrt"
        return open_device(self.ordinal).current() if needed else contextlib.nullcontext()


@dataclass(frozen=True)
class BuildSettings:
    """Settings of ``build_engine``. Precision is not among them: it is in the graph.

    Attributes:
        builder: the library; ``auto`` is TensorRT where it is installed and a GPU answers, else TensorRT-RTX.
        batches: batch sizes to accept.
        shapes: whole shapes by name, for inputs that are dynamic beyond the batch.
        strict: a layer that was built in another type than the graph asks for is an error, not a warning.
        options: see there.
    """

    builder: Builder = "auto"
    batches: Profile = DEFAULT_BATCHES
    shapes: Mapping[str, Profile] = field(default_factory=dict)
    strict: bool = False
    options: BuilderOptions = BuilderOptions()

    def __post_init__(self) -> None:
        if len(self.batches.min) != 1:
            raise UsageError(f"`batches` {self.batches}: expected MIN:OPT:MAX such as 1:8:64, or one number")
