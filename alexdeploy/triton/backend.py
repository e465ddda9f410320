"""What runs inside Triton's Python backend: the ``model.py`` of a published model imports one of these classes.

The server starts a process for each instance of a model, and hands ``execute`` the requests of a batch as a list: it
does not join their tensors. Every request gets an answer of its own, so that a bad one does not sink the others.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # exists inside the server alone

from alexdeploy.arrays import Batch, Logits
from alexdeploy.contract import Contract
from alexdeploy.data.decode import image_from_bytes
from alexdeploy.data.preprocess import preprocess
from alexdeploy.errors import AlexdeployError, DeviceLostError, InputError, UnavailableError, UsageError
from alexdeploy.machine import cores
from alexdeploy.runners.artifact import load
from alexdeploy.triton.golden import likeliest


class _Model:
    """What the three have in common: one input, and the parameters that its ``config.pbtxt`` holds."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called once, by the server; an error is told in its log, and the model is not ready."""
        self._config = json.loads(args["model_config"])
        self._parameters = {name: value["string_value"] for name, value in self._config["parameters"].items()}
        self._name = str(self._config["name"])
        self._input = str(self._config["input"][0]["name"])
        self._outputs = [str(output["name"]) for output in self._config["output"]]

    def _tensor(self, request: Any) -> npt.NDArray[Any]:
        """The request's input, (N, …)."""
        array: npt.NDArray[Any] = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
        return array

    def _response(self, *arrays: npt.NDArray[Any]) -> Any:
        return pb_utils.InferenceResponse(list(map(pb_utils.Tensor, self._outputs, arrays)))


class Network(_Model):
    """The network itself, by the runner of one runtime: all requests of a batch in one call."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the file of this version.

        Raises:
            AlexdeployError: as for ``load``; there is no other runtime to fall back to.
        """
        super().initialize(args)
        runtime = self._parameters["runtime"]
        options: dict[str, Any] = {}
        if args["model_instance_kind"] == "GPU":
            options["device"] = f"cuda:{args['model_instance_device_id']}"
        elif runtime == "onnxruntime-cpu":
            options["threads"] = max(1, cores() // _instances(self._config))
        path = Path(args["model_repository"], args["model_version"], self._parameters["file"])
        self._runner = load(path, runtime=runtime, **options)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """An answer for each request: logits (N, classes) float32, or what is wrong with it."""
        answers: dict[int, Any] = {}
        batches: dict[int, Batch] = {}
        for place, request in enumerate(requests):
            try:
                batches[place] = self._checked(request)
            except UsageError as error:
                answers[place] = _failure(error)
        try:
            answers |= dict(zip(batches, map(self._response, self._infer([*batches.values()])), strict=True))
        except Exception as error:  # as in _answer
            answers |= {place: _failure(error) for place in batches}
        return [answers[place] for place in range(len(requests))]

    def finalize(self) -> None:
        """Called once, when the version is unloaded or the server ends."""
        self._runner.close()

    def _checked(self, request: Any) -> Batch:
        batch = self._tensor(request)
        self._runner.check_batch(batch)
        return batch

    def _infer(self, batches: list[Batch]) -> list[Logits]:
        """The logits of each."""
        if not batches:
            return []
        try:
            logits = self._runner.infer(np.concatenate(batches) if len(batches) > 1 else batches[0])
        except DeviceLostError as error:
            # No call of this process can succeed any more, and the server would go on saying that it is ready: it is
            # told to end, so that whatever watches over it starts it again.
            pb_utils.Logger.log_error(f"{self._name}: {error}; the server ends")
            os.kill(os.getppid(), signal.SIGTERM)
            raise
        return np.split(logits, np.cumsum([len(batch) for batch in batches])[:-1])


class Decode(_Model):
    """Encoded images (N, 1) → the network's input (N, *input_shape), as its contract says."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the contract."""
        super().initialize(args)
        self._contract = Contract.from_json(self._parameters["contract"], self._name)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """An answer for each request; one that holds an unreadable image is an error, whatever else it holds."""
        return [_answer(self._decoded, request) for request in requests]

    def _decoded(self, request: Any) -> Any:
        images = map(image_from_bytes, self._tensor(request).flat)
        return self._response(np.stack([preprocess(image, self._contract) for image in images]))


class Label(_Model):
    """Logits (N, classes) → the likeliest class, (N, 1) text, and its probability, (N, 1) float32."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the class names."""
        super().initialize(args)
        self._contract = Contract.from_json(self._parameters["contract"], self._name)
        self._ends_in_softmax = self._parameters["ends_in_softmax"] == "true"

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """An answer for each request; logits that are not finite are an error."""
        return [_answer(self._labelled, request) for request in requests]

    def _labelled(self, request: Any) -> Any:
        labels, shares = likeliest(
            self._tensor(request), self._contract, ends_in_softmax=self._ends_in_softmax, origin=self._name
        )
        return self._response(np.array([[label.encode()] for label in labels], np.object_), shares[:, None])


def _answer(answer: Callable[[Any], Any], request: Any) -> Any:
    try:
        return answer(request)
    except Exception as error:  # the server would send its traceback, with paths and perhaps content
        return _failure(error)


def _failure(error: Exception) -> Any:
    """A response that holds the error: 400 for what was sent, 503 and 500 for what is wrong here."""
    codes: dict[type[Exception], str] = {
        UsageError: "INVALID_ARG",
        InputError: "INVALID_ARG",
        UnavailableError: "UNAVAILABLE",
    }
    code = getattr(pb_utils.TritonError, codes.get(type(error), "INTERNAL"))
    told = str(error)
    if not isinstance(error, AlexdeployError):  # what it says may quote the content
        told = f"{type(error).__name__} in the model"
        place = traceback.extract_tb(error.__traceback__)[-1]
        pb_utils.Logger.log_error(f"{told}: {place.filename}, line {place.lineno}")
    return pb_utils.InferenceResponse([], pb_utils.TritonError(" ".join(told.split()), code))


def _instances(config: Mapping[str, Any]) -> int:
    """How many processes of this model the server starts."""
    return max(1, sum(int(group["count"]) for group in config["instance_group"]))
