"""Requests to a server by NVIDIA's own client, which knows nothing of ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

_PATIENCE_S = 60.0

Arrays = Mapping[str, npt.NDArray[Any]]


class Client:
    """For one thread; ``url`` as ``Server`` has it. A server waits for those that are not closed before it ends."""

    def __init__(self, url: str) -> None:
        scheme, _, address = url.partition("://")
        self._library: ModuleType = tritonclient.grpc if scheme == "grpc" else tritonclient.http
        self._client = self._library.InferenceServerClient(address)

    def ask(self, model: str, inputs: Arrays, version: str = "", *, classes: int = 0) -> dict[str, npt.NDArray[Any]]:
        """All outputs; with ``classes`` of the first only that many likeliest, as text.

        Raises:
            InferenceServerException: what the server says.
        """
        given = []
        for name, array in inputs.items():
            given.append(self._library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            given[-1].set_data_from_numpy(array)
        asked = [self._library.InferRequestedOutput("logits", class_count=classes)] if classes else None
        result = self._client.infer(model, given, model_version=version, outputs=asked)
        response = result.get_response()
        outputs = response["outputs"] if isinstance(response, dict) else response.outputs
        names = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
        return {name: result.as_numpy(name) for name in names}

    def label(self, model: str, image: bytes) -> tuple[str, float]:
        """Of the model for encoded images."""
        answer = self.ask(model, {"image": as_bytes(image)})
        return answer["label"][0, 0].decode(), float(answer["probability"][0, 0])

    def close(self) -> None:
        self._client.close()

    def is_ready(self, model: str, version: str = "") -> bool:
        return bool(self._client.is_model_ready(model, version))

    def statistics(self, model: str) -> dict[str, Any]:
        """Counters of the latest version, by HTTP."""
        found: dict[str, Any] = self._client.get_inference_statistics(model)["model_stats"][-1]
        return found


def as_bytes(*images: bytes) -> npt.NDArray[np.object_]:
    """(N, 1), as a model for encoded images takes them."""
    return np.array([[image] for image in images], np.object_)


def wait_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)
