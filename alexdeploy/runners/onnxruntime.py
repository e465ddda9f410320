"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from alexdeploy.errors import InputError
from alexdeploy.runners.base import Runner
from alexdeploy.specs import TensorSpec

_PROVIDER = "CPUExecutionProvider"
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_FATAL_ONLY = 4


class OnnxRuntimeRunner(Runner):
    """An ONNX model on ``CPUExecutionProvider``.

    Args:
        model: a file, or a serialised model.

    Raises:
        InputError: ONNX Runtime cannot load the model; the message is its own.
    """

    runtime = "onnxruntime-cpu"

    def __init__(self, model: Path | bytes) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY  # errors come as exceptions
        try:
            self._session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model, options, providers=[_PROVIDER]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            name = str(model) if isinstance(model, Path) else "the model"
            raise InputError(f"{name}: ONNX Runtime cannot load it: {error}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise InputError(f"expected a model with one input, found {len(inputs)}")
        self.input = TensorSpec(inputs[0].name, tuple(inputs[0].shape), _DTYPES.get(inputs[0].type, inputs[0].type))
        self.output_names = [output.name for output in self._session.get_outputs()]
        last = self._session.get_outputs()[0].shape[-1:]
        self.classes = last[0] if last and isinstance(last[0], int) else -1

    def run(self, batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """All outputs by name."""
        self.check_batch(batch)
        return dict(zip(self.output_names, self._session.run(None, {self.input.name: batch}), strict=True))

    def infer(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.check_batch(batch)
        result: npt.NDArray[np.float32] = self._session.run(self.output_names[:1], {self.input.name: batch})[0]
        return result
